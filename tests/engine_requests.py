"""Requests for engines: a model file, a cache folder of its own, and who is to build.

Not here: the models themselves (``onnx_models``), anything that looks at the result.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from hardware.backend import EngineOptions, Profile, ShapeRange
from hardware.engine_build import BuildLimits, Engine, EngineRequest, build_engine
from tests.onnx_models import save

SITE = Path(__file__).resolve().parent.parent / "hardware" / "fakes" / "site"
"""On the PYTHONPATH of a child it makes ``import tensorrt`` meet the fake."""


@dataclass
class Cache:
    """A cache folder with its key file, and requests that use it."""

    folder: Path
    compute_capability: tuple[int, int] | None = None
    """Of a device that is not at hand, for TensorRT-RTX."""
    limit_bytes: int = 1 << 30
    limits: BuildLimits = field(default_factory=lambda: BuildLimits(stall_s=60.0, grace_s=20.0))

    @property
    def key_file(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.key"

    def request(self, model: bytes | Path, options: EngineOptions | None = None) -> EngineRequest:
        if isinstance(model, bytes):
            digest = hashlib.sha256(model).hexdigest()
            model = save(model, self.folder.parent / "models" / f"{digest[:8]}.onnx")
        else:
            digest = hashlib.sha256(model.read_bytes()).hexdigest()
        return EngineRequest(
            model_path=str(model),
            model_digest=digest,
            options=options or EngineOptions(),
            device=0,
            cache_dir=str(self.folder),
            key_file=str(self.key_file),
            cache_limit_bytes=self.limit_bytes,
            compute_capability=self.compute_capability,
        )

    async def build(self, model: bytes | Path, options: EngineOptions | None = None) -> Engine:
        return (await self.build_told(model, options))[0]

    async def build_told(self, model: bytes | Path, options: EngineOptions | None = None) -> tuple[Engine, list[float]]:
        """The engine, and every share that was told on the way."""
        shares: list[float] = []
        request = await asyncio.to_thread(self.request, model, options)
        return await build_engine(request, shares.append, self.limits), shares

    def entries(self) -> list[str]:
        """What lies in the cache beside lock files and timings."""
        found = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        return [name for name in found if not name.startswith(("lock", "timings-"))]


def rows(name: str, most: int, *rest: int) -> tuple[Profile, ...]:
    """One profile for one input: 1 to ``most`` rows of shape ``rest``."""
    return ((ShapeRange(name, (1, *rest), (most, *rest), (most, *rest)),),)
