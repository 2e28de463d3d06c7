"""Which repository whom a door serves: applications, other nodes, with or without the right to change it.

Not here: the repositories themselves (``edge.control``, ``fleet_repository``).
"""

from __future__ import annotations

from mesh.errors import Unsupported
from mesh.fleet_repository import FleetRepository
from mesh.repository import ModelRepository
from mesh.view import View


class Repositories:
    """``own`` is None where the node runs no models. ``opened`` says whether callers at its doors may change it."""

    def __init__(self, own: ModelRepository | None, fleet: FleetRepository, view: View, *, opened: bool) -> None:
        self._own = own
        self._fleet = fleet
        self._view = view
        self.opened = opened

    def at_door(self, *, change: bool) -> ModelRepository:
        """For applications: the models of this node, or those of all nodes where it has none. Raises
        ``Unsupported``."""
        if change and not self.opened:
            raise Unsupported("models are loaded and unloaded at a loopback door only, or with http.repository = true")
        return self._own or self._fleet

    def for_node(self, caller: str, *, change: bool) -> ModelRepository:
        """For a proven node that asks over HTTP: the models of this node; only a router may change them where callers
        may not. Raises ``Unsupported``."""
        asking = self._view.watcher.membership.get(caller)
        if change and not self.opened and (asking is None or asking.report.role != "router"):
            raise Unsupported("models are loaded and unloaded by routers only, or with http.repository = true")
        return self.own()

    def own(self) -> ModelRepository:
        """For whoever the bus lets through. Raises ``Unsupported``."""
        if self._own is None:
            raise Unsupported(f"node {self._view.node} has no model repository")
        return self._own
