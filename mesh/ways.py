"""The ways a request can go now: this node, another node's door directly, or its subject on the bus.

``NodeWays`` serves the agent and the cloud router; the SDK has its own (``doors``). It keeps the outlook of all nodes
up to date as news comes in, so that a decision need not look at each of them. Not here: which way is best
(``balancer``), going it (``dispatch``), what is known of wires (``wires``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from typing import Protocol

import msgspec

from mesh.balancer import COST
from mesh.bus import Bus
from mesh.bus_core import BUS_MARGIN
from mesh.errors import DigestMismatch, Draining
from mesh.hop import Context, Hop, Target
from mesh.link import Link
from mesh.membership import NodeView
from mesh.messages import Report
from mesh.neighbours import Door, Neighbours
from mesh.outlook import SUSPECT_MS, Outlook
from mesh.pins import Place
from mesh.values import ModelIdentity, Route
from mesh.view import View
from mesh.wires import Wires

MAX_OBSTACLES = 3
"""Most nodes that an error text names."""
MAX_MODELS = 1024
"""Of the outlook; beyond that it begins anew."""
HERE = 0
"""The slot of this node itself."""


class Way(msgspec.Struct):
    """One way to one node. ``hop`` and ``link`` are None for this node itself, ``door`` for any but a direct way."""

    slot: int
    target: Target
    link: Link | None = None
    hop: Hop | None = None
    door: Door | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The node, and how it is reached."""
        return self.target.node, "local" if self.hop is None else "http" if self.target.address else "bus"


class Ways(Protocol):
    outlook: Outlook

    def survey(self, identity: ModelIdentity, context: Context, nbytes: int) -> Sequence[int]:
        """Bring the outlook up to date for a request of ``nbytes``; the slots that it cannot go to."""

    def here(self, identity: ModelIdentity, context: Context) -> float | None:
        """Milliseconds that one inference takes here if nothing else is to do; None if there is, or it cannot."""

    def way(self, slot: int, identity: ModelIdentity) -> Way | None:
        """How to get there; None if that has just changed: survey again."""

    def place(self, slot: int) -> Place | None:
        """Where the node is; None of a door, which passes on and keeps to pins itself."""

    def why_none(self, identity: ModelIdentity, context: Context, nbytes: int) -> str:
        """Why there is no way, for whoever reads the error."""


class NodeWays:
    """Ways of a node: itself, nodes whose doors it proved, nodes on its bus."""

    def __init__(self, view: View, neighbours: Neighbours, http: Hop, here: Place, max_hops: int) -> None:
        self.outlook = Outlook()
        self.outlook.slot(view.node, COST["local"], None)
        self.wires = Wires(here)
        self._view = view
        self._neighbours = neighbours
        self._http = http
        self._place = here
        self._max_hops = max_hops
        self._bus: Bus | None = None
        self._bus_hop: Hop | None = None
        self._connected = False
        self._ways: dict[str, Way] = {}
        self._here = Way(HERE, Target(view.node, "", "local"))
        self._news: set[str] = set()
        view.watcher.on_news(self._news.add)

    def join_bus(self, bus: Bus, hop: Hop) -> None:
        """From now on nodes can be reached over ``bus`` too, while it is connected."""
        self._bus, self._bus_hop = bus, hop

    @property
    def bus_connected(self) -> bool | None:
        """None while no bus is known."""
        return None if self._bus is None else self._bus.connected

    def place(self, slot: int) -> Place:
        view = self._view.watcher.membership.get(self.outlook.names[slot])
        if slot == HERE or view is None:
            return self._place
        return place_of(view.report)

    def survey(self, identity: ModelIdentity, context: Context, nbytes: int) -> Sequence[int]:
        outlook = self.outlook
        self._refresh()
        self._look_here(identity, context)
        if context.hops >= self._max_hops or (context.hops > 0 and outlook.penalty[HERE] == 0.0):
            return range(1, outlook.count)  # the node before chose this one: if it cannot be in time, that one chooses
        without = [outlook.slots[node] for node in context.visited if node in outlook.slots]
        if self._bus is not None and nbytes + BUS_MARGIN > self._bus.max_payload:
            without += [way.slot for way in self._ways.values() if way.hop is not None and not way.target.address]
        return without

    def way(self, slot: int, identity: ModelIdentity) -> Way | None:
        if slot == HERE:
            return self._here
        return self._known(self.outlook.names[slot])

    def to(self, node: str) -> Way | None:
        """How to get to another node, whatever it holds; None if nothing leads there."""
        self._refresh()
        if self._known(node) is None:
            self._refresh()
        return self._known(node)

    def _known(self, node: str) -> Way | None:
        known = self._ways.get(node)
        view = self._view.watcher.membership.get(node)
        if known is None or view is None or self._path(view) != known.key:
            self._news.update(self._ways)  # what was not told of one way, like silence on the bus, may be so of others
            return None
        return known

    def here(self, identity: ModelIdentity, context: Context) -> float | None:
        outlook = self.outlook
        if not self._look_here(identity, context) or outlook.penalty[HERE] > 0.0:
            return None
        # Of a run that takes longer than it should nothing is left, as far as is known: it shows in what we sent.
        idle = not (outlook.free[HERE] or outlook.busy[HERE] or outlook.in_flight(HERE))
        return float(outlook.of(identity)[0][HERE]) if idle else None

    def _look_here(self, identity: ModelIdentity, context: Context) -> bool:
        """This node's own figures, which are known exactly; whether it can run the model."""
        local, outlook = self._view.local, self.outlook
        if identity not in outlook.services:
            self._new_model(identity)
        load = local.load(identity) if local is not None else None
        outlook.penalty[HERE] = inf
        if local is None or load is None:
            return False
        if load.digest != identity.digest:
            if context.hops == 0:
                return False  # ours is broken, else it would be what the name means here: another node's is as asked
            raise DigestMismatch(f"node {self._view.node} holds other bytes as {identity.name}/{identity.version}")
        if load.state != "READY":
            return False
        if local.draining and context.hops > 0:
            raise Draining(f"node {self._view.node} is draining")
        work = local.work()
        outlook.penalty[HERE] = SUSPECT_MS if local.draining else 0.0
        outlook.told(HERE, identity, load.service_ms, load.row_ms)
        outlook.hear(HERE, time.monotonic(), work.wait_ms, work.queued)
        outlook.reported_in_flight[HERE] = outlook.in_flight(HERE)
        return True

    def _refresh(self) -> None:
        """Look at the nodes of which there is news; at all of them when the bus came or went."""
        connected = self._bus is not None and self._bus.connected
        if connected != self._connected:
            self._connected = connected
            self._news.update(view.node for view in self._view.watcher.membership.nodes())
        if self._news:
            for node in self._news:
                self._look_at(node)
            self._news.clear()

    def _look_at(self, node: str) -> None:
        outlook, view = self.outlook, self._view.watcher.membership.get(node)
        if node == self._view.node or not node:
            return
        way = self._find(view) if view is not None else None
        if way is None or view is None:
            if self._ways.pop(node, None) is not None:
                outlook.penalty[outlook.slots[node]] = inf
            if view is None:
                outlook.forget(node)
                self.wires.forget(node)
            return
        at, link = way.slot, way.link
        assert link is not None  # noqa: S101 - every way to another node has one
        self._ways[node] = way
        report, now = view.report, time.monotonic()
        self.wires.told(report, view.figures_at)
        outlook.penalty[at] = SUSPECT_MS if view.state == "suspect" else 0.0
        outlook.hear(at, view.figures_at - link.rtt_ms / 2e3, report.wait_ms, report.queued)
        outlook.reported_in_flight[at] = sum([load.in_flight for load in report.models])
        outlook.wire(at, now)
        outlook.learned(at, now)
        held = {load.identity: load for load in report.models if load.state == "READY"}
        for model in outlook.services:
            load = held.get(model)  # type: ignore[call-overload]
            if load is None:
                outlook.told(at, model, inf, 0.0)
            else:
                outlook.told(at, model, load.service_ms, load.row_ms)

    def _new_model(self, identity: ModelIdentity) -> None:
        """A model that was not asked for before: look who holds it."""
        outlook = self.outlook
        if len(outlook.services) >= MAX_MODELS:
            outlook.services.clear()
        outlook.of(identity)
        for view in self._view.watcher.membership.holders(identity.name):
            load, way = view.model(identity), self._ways.get(view.node)
            if load is not None and load.state == "READY" and way is not None:
                outlook.told(way.slot, identity, load.service_ms, load.row_ms)

    def _path(self, view: NodeView) -> tuple[str, str] | None:
        if view.state not in ("starting", "ready", "suspect"):
            return None
        if self._neighbours.direct(view.node) is not None:
            return view.node, "http"
        bus = self._bus is not None and self._bus.connected and self._view.watcher.on_bus(view.node)
        return (view.node, "bus") if bus else None

    def _find(self, view: NodeView) -> Way | None:
        path, report = self._path(view), view.report
        if path is None:
            return None
        route: Route = "cloud" if report.tier == "cloud" else "peer"
        door = self._neighbours.direct(view.node) if path[1] == "http" else None
        link = self.wires.link(report, door)
        slot = self.outlook.slot(view.node, COST[route], link)
        if door is not None:
            return Way(slot, Target(view.node, report.site, route, door.address, door.token), link, self._http, door)
        return Way(slot, Target(view.node, report.site, route), link, self._bus_hop)

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


def place_of(report: Report) -> Place:
    return Place(report.node, report.site, report.region, report.tier)
