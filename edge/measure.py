"""Measuring what a version that was just loaded holds, and remembering it by the backend that it runs on.

A session knows its GPU memory, or has none, or cannot tell: ONNX Runtime's GPU providers are seen from outside only, by
the growth of what the device has in use. What cannot be told is not written down as nothing. Not here: comparing with
what is free (``preflight``), readings (``room``).
"""

from __future__ import annotations

import asyncio

from edge.footprints import Footprints
from edge.instance import Instance
from edge.preflight import Footprint
from edge.settings import ModelsSettings
from hardware.process_memory import resident_bytes

ON_CPU = ("onnxruntime-cpu", "python")
"""Backends that hold nothing on a GPU."""


class Measure:
    def __init__(self, settings: ModelsSettings, footprints: Footprints) -> None:
        self._own_worker = settings.isolation == "model"
        self._footprints = footprints

    async def take(self, instance: Instance, *, grown: int | None = None, unified: bool = False) -> None:
        """``grown`` are bytes that the device holds more since before the load, and with ``unified`` the box as well.

        Where it is not given and the session cannot tell, what was measured before stands.
        """
        loaded, box = instance.loaded, await self._box(instance)
        if loaded is None or box is None:  # the worker died right after
            return
        device = 0 if loaded.effective in ON_CPU else loaded.device_bytes
        if device is None and grown is not None:
            device = max(grown - box, 0) if unified else grown
        if device is None:
            instance.footprint = self._footprints.get(instance.identity.digest, instance.backend)
            return
        instance.footprint = Footprint(box, device)
        digest, backend = instance.identity.digest, instance.backend
        await asyncio.to_thread(self._footprints.remember, digest, backend, instance.footprint)

    def needs_growth(self, instance: Instance) -> bool:
        """Whether only growth can tell, and has not yet."""
        loaded = instance.loaded
        return (
            instance.state == "READY"
            and loaded is not None
            and loaded.device_bytes is None
            and loaded.effective not in ON_CPU
            and self._footprints.get(instance.identity.digest, instance.backend) is None
        )

    async def _box(self, instance: Instance) -> int | None:
        """A worker of its own is what the version takes; of a shared one it is what the load added."""
        runtime, loaded = instance.served.runtime, instance.loaded
        if runtime is None or loaded is None:
            return None
        own_worker = self._own_worker or instance.stored.is_step
        return await asyncio.to_thread(resident_bytes, runtime.pid) if own_worker else loaded.memory_bytes
