"""Composition root of the cloud router: a node that holds no models and routes to all that do. Stateless.

Any number of replicas may run: each hears every heartbeat, and applications on NATS reach them as one queue group.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from cloud.settings import CloudSettings
from mesh.holdings import Holdings
from mesh.listening import Listening
from mesh.node import Node
from mesh.node_id import NodeIdentity


class App:
    """One replica. Enter :meth:`running` to serve, leave to drain."""

    def __init__(self, settings: CloudSettings, identity: NodeIdentity) -> None:
        self._node = Node(settings, identity, "router", Holdings())

    @property
    def bound(self) -> Listening:
        """Where the doors are, while they are open."""
        return self._node.bound

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve until left; yields the bound HOST:PORT."""
        async with self._node.running() as address:
            self._node.changed()
            try:
                yield address
            finally:
                await self._node.drain()
