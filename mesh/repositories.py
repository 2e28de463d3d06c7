"""Which repository whom a door serves: applications, other nodes, with or without the right to change it.

Not here: the repositories themselves (``edge.control``, ``fleet_repository``).
"""

from __future__ import annotations

from typing import NamedTuple

from mesh.errors import Unsupported
from mesh.fleet_repository import FleetRepository
from mesh.repository import ModelRepository
from mesh.trust import Kind
from mesh.view import View


class Opened(NamedTuple):
    """To whom a node's repository is open for changes, beside those who prove the site key."""

    doors: bool = False
    """Whoever reaches its doors."""
    bus: bool = False
    """Whoever the bus lets through."""


CLOSED = Opened()
"""Only to them."""


class Repositories:
    """``own`` is None where the node runs no models."""

    def __init__(self, own: ModelRepository | None, fleet: FleetRepository, view: View, opened: Opened) -> None:
        self._own = own
        self._fleet = fleet
        self._view = view
        self.opened = opened

    def at_door(self, *, change: bool) -> ModelRepository:
        """For applications: the models of this node, or those of all nodes where it has none. Raises
        ``Unsupported``."""
        if change and not self.opened.doors:
            raise Unsupported("models are loaded and unloaded at a loopback door only, or with http.repository = true")
        return self._own or self._fleet

    def for_node(self, caller: str, kind: Kind, *, change: bool) -> ModelRepository:
        """For a node that asks over HTTP, proven by a token of that ``kind``: the models of this node. Where callers
        may not change them a router may, by the site key. Raises ``Unsupported``."""
        if change and not self.opened.doors:
            asking = self._view.watcher.membership.get(caller)
            if asking is None or asking.report.role != "router":
                raise Unsupported("models are loaded and unloaded by routers only, or with http.repository = true")
            if kind == "bus" and not self.opened.bus:
                raise Unsupported("a router loads and unloads models by the site key, or with nats.repository = true")
        return self.own()

    def own(self) -> ModelRepository:
        """The models of this node. Raises ``Unsupported``."""
        if self._own is None:
            raise Unsupported(f"node {self._view.node} has no model repository")
        return self._own
