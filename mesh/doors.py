"""The SDK's ways: every door it knows, whatever models stand behind it, for any door routes on.

Not here: the ways among nodes (``ways``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from math import inf

from mesh import hop
from mesh.balancer import COST
from mesh.bus import Bus
from mesh.bus_core import BUS_MARGIN
from mesh.deadline import Deadline
from mesh.hop import Context, Hop, Question, Reply, Target
from mesh.hop_http import HttpClient, model_path, read_error
from mesh.link import Link
from mesh.membership import NodeView
from mesh.messages import ModelLoad
from mesh.neighbours import Door, Neighbours
from mesh.oip.request import InferRequest, encode_request
from mesh.oip.wire import WireBody
from mesh.outlook import SUSPECT_MS, Outlook
from mesh.values import ModelIdentity, ModelRef, Route
from mesh.watcher import Watcher
from mesh.ways import Way

NO_DOOR = "no door of the mesh answers; give its URL, or start an agent"
BUS = "the routers on the bus"
"""In place of a node's name, which holds no spaces."""


class DoorHop:
    """``mesh.hop.Hop`` as an application: no hop headers, the deadline as OIP's own ``timeout``."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        body = asked(request, context, up_ms)
        headers = {hop.WANT: hop.LOAD}
        if body.header_length is not None:
            headers[hop.HEADER_LENGTH] = str(body.header_length)
        path = model_path(ModelRef(identity.name, identity.version)) + "/infer"
        status, answered, payload = await self._http.call(
            "POST", target.address, path, headers=headers, body=body, deadline=context.deadline
        )
        if status != 200:
            raise read_error(status, answered, payload)
        return hop.read_reply(payload, answered, hop.route_of(answered))

    async def stream(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> AsyncGenerator[Reply, None]:
        body = asked(request, context, up_ms)
        headers = {} if body.header_length is None else {hop.HEADER_LENGTH: str(body.header_length)}
        answers = self._http.stream_of(target.address, identity, headers, body, context.deadline)
        async with contextlib.aclosing(answers):
            async for answered, part in answers:
                yield hop.stream_reply(part, answered, hop.route_of(answered))

    async def ask(self, target: Target, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        return await self._http.ask(target, what, ref, deadline, body)


def asked(request: InferRequest, context: Context, up_ms: float) -> WireBody:
    """The body of an application's request: what is left of the deadline is its ``timeout``."""
    request.parameters["timeout"] = int(hop.at_arrival_ms(context.deadline, up_ms) * 1e3)
    body = request.wire = encode_request(request)
    return body


class DoorWays:
    """One way for each door that works. A door given by URL, or on this very host, counts as local."""

    def __init__(
        self, watcher: Watcher, neighbours: Neighbours, door_hop: DoorHop, given: tuple[str, ...], host: str
    ) -> None:
        self.outlook = Outlook()
        self.outlook.slot("", COST["local"], None)  # the slot of a node of our own, which an application is not
        self._watcher = watcher
        self._neighbours = neighbours
        self._hop = door_hop
        self._given = given
        self._host = host
        self._ways: dict[int, Way] = {}
        self._bus: tuple[Bus, Hop] | None = None
        self._bus_link = Link()

    def join_bus(self, bus: Bus, routers: Hop) -> None:
        """The routers may be asked over ``bus`` too, where no door is better."""
        self._bus = bus, routers

    def survey(self, identity: ModelIdentity, context: Context, nbytes: int) -> Sequence[int]:
        """Look at all doors anew: they are few."""
        outlook, doors = self.outlook, {door.node: door for door in self._neighbours.doors()}
        for node in outlook.slots.keys() - doors.keys() - {"", BUS}:
            outlook.forget(node)
        self._ways.clear()
        self._look_at_bus(identity, nbytes)
        for node, door in doors.items():
            view = self._watcher.membership.get(node)
            if view is not None:
                self._look_at(door, view, identity)
        return [outlook.slots[node] for node in context.visited if node in outlook.slots]

    def way(self, slot: int, identity: ModelIdentity) -> Way | None:
        return self._ways.get(slot)

    def here(self, identity: ModelIdentity, context: Context) -> float | None:
        """An application runs nothing itself."""
        return None

    def place(self, slot: int) -> None:
        return None

    def why_none(self, identity: ModelIdentity, context: Context, nbytes: int) -> str:
        return NO_DOOR

    def _look_at(self, door: Door, view: NodeView, identity: ModelIdentity) -> None:
        outlook, report, link, now = self.outlook, view.report, door.link, time.monotonic()
        route = self._route(door, view)
        at = outlook.slot(door.node, COST[route], link)
        if view.state not in ("ready", "starting", "suspect"):
            outlook.penalty[at] = inf
            return
        load = next((m for m in report.models if _matches(m, identity)), None)
        outlook.told(at, identity, load.service_ms if load else 0.0, load.row_ms if load else 0.0)
        outlook.penalty[at] = SUSPECT_MS if view.state == "suspect" else 0.0
        outlook.hear(at, view.figures_at - link.rtt_ms / 2e3, report.wait_ms, report.queued)
        outlook.wire(at, now)
        outlook.learned(at, now)
        self._ways[at] = Way(at, Target(door.node, report.site, route, door.address), link, self._hop, door)

    def _look_at_bus(self, identity: ModelIdentity, nbytes: int) -> None:
        if self._bus is None:
            return
        bus, routers = self._bus
        outlook = self.outlook
        at = outlook.slot(BUS, COST["cloud"], self._bus_link)
        outlook.told(at, identity, 0.0, 0.0)
        outlook.penalty[at] = SUSPECT_MS if bus.connected and nbytes <= bus.max_payload - BUS_MARGIN else inf
        outlook.wire(at, time.monotonic())
        outlook.learned(at, time.monotonic())
        self._ways[at] = Way(at, Target(BUS, "", "cloud"), self._bus_link, routers)

    def _route(self, door: Door, view: NodeView) -> Route:
        if door.address == self._given[0] if self._given else view.report.host == self._host:
            return "local"
        return "cloud" if view.report.tier == "cloud" else "peer"


def _matches(load: ModelLoad, identity: ModelIdentity) -> bool:
    return load.name == identity.name and identity.version in ("", load.version) and load.state == "READY"
