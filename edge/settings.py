"""Settings that only the agent has. Shared groups and the loader are in ``mesh.settings``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mesh.settings import Group, MeshSettings

Backend = Literal["tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime-cpu", "python"]
Chain = Annotated[tuple[Backend, ...], Field(min_length=1, max_length=8)]
"""Backends to try in turn; the first is what is asked for."""


class ModelsSettings(Group):
    """What the agent serves and how it runs it."""

    dir: Path | None = None
    """Model repository in Triton's layout: ``<dir>/<model>/<version>/model.onnx``, or ``model.py``."""
    control: Literal["none", "poll", "explicit"] = "none"
    """As Triton's model control: all models at the start and no change by itself; the same, and what changes on disk
    is followed; or only the models of ``load`` and those that are asked for by name."""
    load: tuple[str, ...] = ()
    """With ``control`` explicit: models to load at the start, ``*`` for all."""
    poll_s: float = Field(default=15.0, gt=0)
    """With ``control`` poll: seconds between two looks at the repository. What changed is taken once it stayed the
    same from one look to the next."""
    isolation: Literal["model", "device", "none"] = "model"
    """A worker process for each version, one for all of the device, or none: in this process, for trusted models. Steps
    in Python have one each in any case."""
    python: bool = True
    """Whether steps in Python are run, which are code of whoever owns the repository; else those models FAIL."""
    backends: Chain = ("onnxruntime-cpu",)
    """Backends to try in turn; ``model.toml`` may name others."""
    allow_cpu: bool = False
    """Serve on the CPU, marked degraded, when the last of ``backends`` is a GPU's and cannot be used; else the model
    FAILS."""
    device: int = Field(default=0, ge=0)
    """Which GPU, as CUDA numbers them."""
    threads: int = Field(default=0, ge=0, le=256)
    """Threads of one inference; 0 is all cores divided by ``concurrency``."""
    concurrency: int = Field(default=1, ge=1, le=256)
    """Inferences that run at the same time on the device."""
    queue_limit: int = Field(default=256, ge=1)
    """Most requests that wait; above it they are refused with a Retry-After."""
    max_file_bytes: int = Field(default=2 << 30, ge=1)
    """Largest model file that is loaded."""
    reserve_bytes: int | None = Field(default=None, ge=0)
    """Memory that loading a model must leave free; not given, it is the larger of 512 MiB and a tenth of all."""
    evict: bool = False
    """Unload the models that were not asked for the longest when another needs their memory; a request brings them
    back."""
    watchdog_s: float = Field(default=30.0, ge=0)
    """A model that answered nothing for this long is asked for an inference, to see that it can; 0 never asks."""
    watchdog_limit_s: float = Field(default=10.0, gt=0)
    """Longest that the watchdog's inference may take before the worker is killed and started again."""
    hang_s: float = Field(default=30.0, gt=0)
    """A run that goes on this long after its deadline counts as hung: its worker is killed and started again."""
    warmup_s: float = Field(default=300.0, gt=0)
    """Longest that a warm-up may take in all; a model that takes longer FAILS and its worker is started again. What it
    can do without (timing more runs, finding out about batching) is left out rather than to come near to that."""
    drain_s: float = Field(default=30.0, ge=0)
    """Longest that a version which is unloaded may finish what it was asked before."""
    crash_limit: int = Field(default=3, ge=1)
    """Ends of its worker that a model causes within a minute, or in a row with no request answered in between, after
    which it is QUARANTINED."""
    quarantine_s: float = Field(default=600.0, gt=0)
    """Seconds until a QUARANTINED model is tried again, doubled each time; loading it by name tries at once."""

    def run_threads(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.concurrency)


class EdgeSettings(MeshSettings):
    """Effective settings of ``mesh-edge``."""

    models: ModelsSettings = ModelsSettings()
