"""What an engine depends on, and the content key it comes to: equal keys mean interchangeable engines.

Plans are not portable across TensorRT builds, operating systems or GPUs, and names say nothing: everything here is
content (microsoft/onnxruntime#32254 shows a cache that went by names). Not here: the entries (``engine_cache``).
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hardware import tensorrt
from hardware.backend import EngineOptions, Profile, ShapeRange

if TYPE_CHECKING:
    from hardware.cuda import DeviceFacts

SCHEMA = 1
"""To be raised whenever ``engine_plan`` builds in another way: it fixes streams, flags and compatibility, and loads no
plugins."""

_L4T_RELEASE = Path("/etc/nv_tegra_release")


class Target(msgspec.Struct, frozen=True):
    """The device an engine is for. With no device at hand it is known by its compute capability alone."""

    name: str
    compute_capability: tuple[int, int]
    sm_count: int = 0
    integrated: bool = False
    cuda_runtime: int = 0
    """Major version."""

    @classmethod
    def of(cls, facts: DeviceFacts) -> Target:
        runtime = facts.runtime_version // 1000  # CUDA: 1000 * major + 10 * minor
        return cls(facts.name, facts.compute_capability, facts.sm_count, facts.integrated, runtime)

    @classmethod
    def absent(cls, compute_capability: tuple[int, int]) -> Target:
        major, minor = compute_capability
        return cls(f"compute capability {major}.{minor}", compute_capability)


class Ingredients(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    backend: str
    version: str
    """Of TensorRT, down to the build."""
    system: str
    machine: str
    l4t: str
    """Release of NVIDIA's Linux for Tegra, on a Jetson."""
    target: Target
    model: str
    """SHA-256 of the model file."""
    precision: str
    profiles: tuple[Profile, ...]
    workspace_bytes: int
    optimization_level: int

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def ingredients(trt: Any, target: Target, model: str, options: EngineOptions) -> Ingredients:
    """``model`` is the file's SHA-256 in hex. The order of ranges inside a profile means nothing."""
    return Ingredients(
        backend=tensorrt.backend_name(trt),
        version=tensorrt.version(trt),
        system=platform.system(),
        machine=platform.machine(),
        l4t=_l4t(),
        target=target,
        model=model,
        precision=options.precision,
        profiles=tuple(tuple(sorted(profile, key=_name)) for profile in options.profiles),
        workspace_bytes=options.workspace_bytes,
        optimization_level=options.optimization_level,
    )


def _name(shape_range: ShapeRange) -> str:
    return shape_range.name


def _l4t() -> str:
    try:
        lines = _L4T_RELEASE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not a Jetson
        return ""
    return lines[0].strip() if lines else ""
