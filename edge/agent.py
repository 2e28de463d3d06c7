"""Composition root of the agent: the node's models, and everything a node has. Decides nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from edge.instances import Instances
from edge.models import Models
from edge.repository import scan
from edge.settings import EdgeSettings
from hardware.gauges import Gauges as BoxGauges
from mesh.lifecycle import Tasks
from mesh.messages import Gauges
from mesh.node import Holdings, Node
from mesh.node_id import NodeIdentity

log = logging.getLogger(__name__)

GAUGES_S = 1.0


class Agent:
    """One box's agent. Enter :meth:`running`; :meth:`until_ready` returns when no model is on its way any more."""

    def __init__(self, settings: EdgeSettings, identity: NodeIdentity) -> None:
        self._settings = settings
        self._identity = identity
        self._changed = asyncio.Event()
        self._gauges = Gauges()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve until left, then drain; yields the bound HOST:PORT."""
        settings = self._settings.models
        stored = []
        if settings.dir is not None:
            stored = await asyncio.to_thread(scan, settings.dir, settings.max_file_bytes)
            if not stored:
                log.warning("there is no model in %s: put each at <model>/<version>/model.onnx", settings.dir)
        self._instances = Instances(stored, settings, self._on_change)
        self._models = Models(self._instances)
        self._node = Node(
            self._settings,
            self._identity,
            "agent",
            Holdings(
                local=self._models,
                models=self._models.reports,
                coming=self._models.coming,
                wait_ms=self._models.wait_ms,
                gauges=lambda: self._gauges,
            ),
        )
        async with Tasks("agent") as tasks, self._instances.running(), self._node.running() as address:
            tasks.start(self._read_gauges(), "gauges")
            self._on_change()
            try:
                yield address
            finally:
                self._models.draining = True
                await self._node.drain()

    async def until_ready(self) -> None:
        while self._models.coming():
            self._changed.clear()
            await self._changed.wait()

    def failed(self) -> list[str]:
        """Models that cannot be served, and why."""
        return [
            f"{m.name}/{m.version}: {m.reason}" for m in self._models.reports() if m.state in ("FAILED", "QUARANTINED")
        ]

    def _on_change(self) -> None:
        self._changed.set()
        self._node.changed()

    async def _read_gauges(self) -> None:
        """Sensors are files, some of them slow: read off the loop, reported as last seen."""
        box, failing = BoxGauges(), False
        while True:
            try:
                r = await asyncio.to_thread(box.read)
                self._gauges = Gauges(r.cpu_percent, r.memory_used_bytes, r.memory_total_bytes, r.temperature_c)
                failing = False
            except OSError as error:  # no file left to open, say: the last reading stands until one works again
                if not failing:
                    log.warning("the gauges cannot be read: %s", error.strerror)
                failing = True
            await asyncio.sleep(GAUGES_S)
