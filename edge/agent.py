"""Composition root of the agent: the node's models, and everything a node has. Decides nothing itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from edge.control import Control
from edge.instances import Instances
from edge.metrics import agent_metrics
from edge.models import Models
from edge.readings import Readings
from edge.settings import EdgeSettings
from mesh.holdings import Holdings
from mesh.lifecycle import Tasks
from mesh.listening import Listening
from mesh.node import Node
from mesh.node_id import NodeIdentity


class Agent:
    """One box's agent. Enter :meth:`running`; :meth:`until_ready` returns when no model is on its way any more."""

    def __init__(self, settings: EdgeSettings, identity: NodeIdentity) -> None:
        self._settings = settings
        self._identity = identity
        self._instances: Instances
        self._node: Node

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve until left, then drain; yields the bound HOST:PORT."""
        models = self._settings.models
        readings = Readings(lambda: self._instances.completed, device=models.device)
        self._instances = Instances(
            models, self._on_change, folder=self._identity.folder, gauges=lambda: readings.gauges
        )
        self._models = Models(self._instances, lambda: readings.capacity, self._settings.sequences)
        control = Control(models, self._instances)
        self._node = Node(
            self._settings,
            self._identity,
            "agent",
            Holdings(
                local=self._models,
                models=self._models.reports,
                coming=self._models.coming,
                work=self._models.work,
                gauges=lambda: readings.gauges,
                capacity=lambda: readings.capacity,
                repository=None if models.dir is None else control,
                metrics=lambda: agent_metrics(self._instances, self._models.sequences),
            ),
        )
        async with Tasks("agent") as tasks, self._instances.running():
            tasks.start(readings.run(), "readings")
            tasks.start(self._models.expire(), "sequences")
            async with control.running(), self._node.running() as address:
                self._on_change()
                try:
                    yield address
                finally:
                    self._models.draining = True
                    await self._node.drain()

    async def until_ready(self) -> None:
        await self._instances.changed.until(lambda: not self._models.coming())

    @property
    def bound(self) -> Listening:
        """Where the doors are, while they are open."""
        return self._node.bound

    def failed(self) -> list[str]:
        """Models that cannot be served, and why."""
        return [
            f"{m.name}/{m.version}: {m.reason}" for m in self._models.reports() if m.state in ("FAILED", "QUARANTINED")
        ]

    def _on_change(self) -> None:
        self._node.changed()
