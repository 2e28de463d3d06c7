"""The ways a request can go now: this node, another node's door directly, or its subject on the bus.

``NodeWays`` serves the agent and the cloud router; the SDK has its own (``client``). Not here: which way is best
(``balancer``), going it (``router``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

import msgspec

from mesh.bus import Bus
from mesh.errors import DigestMismatch, Draining
from mesh.estimator import Candidate, Dispatches, Link, Path
from mesh.hop import Context, Hop, Target
from mesh.membership import NodeView
from mesh.messages import ModelLoad
from mesh.neighbours import Door, Neighbours
from mesh.values import ModelIdentity, Route
from mesh.view import View

BUS_MARGIN = 8 * 1024
"""Room for the headers below the bus's ``max_payload``."""
MAX_OBSTACLES = 3
"""Most nodes that an error text names."""


class Way(msgspec.Struct):
    """One way to one node. ``hop`` is None for this node itself, ``door`` for any way but a direct one."""

    candidate: Candidate
    target: Target
    hop: Hop | None = None
    door: Door | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.candidate.node, self.candidate.path


class Ways(Protocol):
    def ways(self, identity: ModelIdentity, context: Context, nbytes: int) -> list[Way]:
        """Every way for a request of ``nbytes``; at most one for each (node, path)."""

    def why_none(self, identity: ModelIdentity, context: Context, nbytes: int) -> str:
        """Why :meth:`ways` finds none, for whoever reads the error."""


class NodeWays:
    """Ways of a node: itself, nodes whose doors it proved, nodes on its bus."""

    def __init__(self, view: View, neighbours: Neighbours, http: Hop, dispatches: Dispatches, max_hops: int) -> None:
        self._view = view
        self._neighbours = neighbours
        self._http = http
        self._dispatches = dispatches
        self._max_hops = max_hops
        self._bus: Bus | None = None
        self._bus_hop: Hop | None = None
        self._bus_links: dict[str, Link] = {}
        self._here = Target(view.node, "", "local")

    def join_bus(self, bus: Bus, hop: Hop) -> None:
        """From now on nodes can be reached over ``bus`` too, while it is connected."""
        self._bus, self._bus_hop = bus, hop

    @property
    def bus_connected(self) -> bool | None:
        """None while no bus is known."""
        return None if self._bus is None else self._bus.connected

    def ways(self, identity: ModelIdentity, context: Context, nbytes: int) -> list[Way]:
        local = self._view.local
        mine = self._own(identity, context)
        remote = list(self._remote(identity, context, nbytes)) if context.hops < self._max_hops else []
        if mine is None:
            return remote
        if local is not None and local.draining:
            if context.hops > 0:
                raise Draining(f"node {self._view.node} is draining")
            return remote or [mine]
        return [mine, *remote]

    def _own(self, identity: ModelIdentity, context: Context) -> Way | None:
        local = self._view.local
        load = local.load(identity) if local is not None else None
        if local is None or load is None:
            return None
        if load.digest != identity.digest:
            if context.hops == 0:
                return None  # ours is broken, else it would be what the name means here: another node's is as asked
            raise DigestMismatch(f"node {self._view.node} holds other bytes as {identity.name}/{identity.version}")
        if load.state != "READY":
            return None
        here = self._here
        return Way(Candidate(here.node, "local", "local", True, load, local.wait_ms(), time.monotonic()), here)

    def _remote(self, identity: ModelIdentity, context: Context, nbytes: int) -> Iterator[Way]:
        for view in self._view.watcher.membership.holders(identity.name):
            node = view.node
            route: Route = "cloud" if view.report.tier == "cloud" else "peer"
            if node == self._view.node or node in context.visited or view.state not in ("starting", "ready", "suspect"):
                continue
            load = next((m for m in view.report.models if m.identity == identity and m.state == "READY"), None)
            if load is None:
                continue
            door = self._neighbours.direct(node)
            if door is not None:
                target = Target(node, view.report.site, route, door.address, door.token)
                yield Way(self._candidate(view, load, route, "http", door.link), target, self._http, door)
            elif self._bus_reaches(view, nbytes):
                link = self._bus_links.get(node) or self._new_bus_link(node)
                target = Target(node, view.report.site, route)
                yield Way(self._candidate(view, load, route, "bus", link), target, self._bus_hop)

    def why_none(self, identity: ModelIdentity, context: Context, nbytes: int) -> str:
        if context.hops >= self._max_hops:
            return f"it was passed on {context.hops} times already"
        holders = self._view.watcher.membership.holders(identity.name, draining=True)
        found = [why for view in holders if (why := self._obstacle(view, identity, context, nbytes))]
        return "; ".join(found[:MAX_OBSTACLES]) or "no node holds it"

    def _obstacle(self, view: NodeView, identity: ModelIdentity, context: Context, nbytes: int) -> str:
        """What is in the way to one holder of the name; empty where it does not hold this very model."""
        node, load = view.node, view.model(identity)
        if load is None or node == self._view.node:
            return ""
        if node in context.visited:
            return f"node {node} had the request before"
        if load.state != "READY" or view.state == "draining":
            return f"on node {node} it is {'draining' if load.state == 'READY' else load.state}"
        if self._bus is not None and self._bus.connected and self._view.watcher.on_bus(node):
            most = self._bus.max_payload - BUS_MARGIN
            return f"node {node} can only be reached over the bus, which takes {most} bytes, the request has {nbytes}"
        return f"node {node} has no door that answers here, and no bus leads to it"

    def _bus_reaches(self, view: NodeView, nbytes: int) -> bool:
        bus = self._bus
        return (
            bus is not None
            and bus.connected
            and nbytes + BUS_MARGIN <= bus.max_payload
            and self._view.watcher.on_bus(view.node)
        )

    def _new_bus_link(self, node: str) -> Link:
        """Links of nodes that the view has forgotten go, for names of nodes that come and go are without number."""
        known = self._view.watcher.membership
        self._bus_links = {name: link for name, link in self._bus_links.items() if known.get(name) is not None}
        link = self._bus_links[node] = Link.bus()
        return link

    def _candidate(self, view: NodeView, load: ModelLoad, route: Route, path: Path, link: Link) -> Candidate:
        own_ms = self._dispatches.since(view.node, view.heard_at - link.rtt_ms / 1e3)
        return Candidate(
            view.node, route, path, view.state != "suspect", load, view.report.wait_ms, view.heard_at, own_ms, link
        )
