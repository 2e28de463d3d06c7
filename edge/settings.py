"""Settings that only the agent has. Shared groups and the loader are in ``mesh.settings``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from mesh.settings import Group, MeshSettings


class ModelsSettings(Group):
    """What the agent serves and how it runs it."""

    dir: Path | None = None
    """Model repository in Triton's layout: ``<dir>/<model>/<version>/model.onnx``."""
    isolation: Literal["model", "device", "none"] = "model"
    """A worker process for each model, one for all of the device, or none: in this process, for trusted models."""
    backend: Literal["onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt"] = "onnxruntime-cpu"
    """Backend asked for; ``model.toml`` may ask for another."""
    allow_cpu: bool = False
    """Serve on the CPU, marked degraded, when the GPU that was asked for cannot be used; else the model FAILS."""
    threads: int = Field(default=0, ge=0, le=256)
    """Threads of one inference; 0 is all cores divided by ``concurrency``."""
    concurrency: int = Field(default=1, ge=1, le=256)
    """Inferences that run at the same time on the device."""
    queue_limit: int = Field(default=256, ge=1)
    """Most requests that wait; above it they are refused with a Retry-After."""
    max_file_bytes: int = Field(default=2 << 30, ge=1)
    """Largest model file that is loaded."""
    hang_s: float = Field(default=30.0, gt=0)
    """A run that goes on this long after its deadline counts as hung: its worker is killed and started again."""
    warmup_s: float = Field(default=300.0, gt=0)
    """Longest that a warm-up inference may take; a model that takes longer FAILS and its worker is started again."""
    crash_limit: int = Field(default=3, ge=1)
    """Crashes within a minute after which a model is QUARANTINED."""

    def run_threads(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.concurrency)


class EdgeSettings(MeshSettings):
    """Effective settings of ``mesh-edge``."""

    models: ModelsSettings = ModelsSettings()
