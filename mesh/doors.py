"""The SDK's ways: every door it knows, whatever models stand behind it, for any door routes on.

Not here: the ways among nodes (``ways``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf

from mesh import hop
from mesh.balancer import COST
from mesh.deadline import Deadline
from mesh.hop import Context, Reply, Target
from mesh.hop_http import HttpClient, model_path, read_error
from mesh.membership import NodeView
from mesh.messages import ModelLoad
from mesh.neighbours import Door, Neighbours
from mesh.oip.documents import decode_model_metadata
from mesh.oip.request import InferRequest, encode_request
from mesh.outlook import SUSPECT_MS, Outlook
from mesh.values import ModelIdentity, ModelMetadata, ModelRef, Route
from mesh.watcher import Watcher
from mesh.ways import Way

ROUTES = ("local", "peer", "cloud")
NO_DOOR = "no door of the mesh answers; give its URL, or start an agent"


class DoorHop:
    """``mesh.hop.Hop`` as an application: no hop headers, the deadline as OIP's own ``timeout``."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        left_us = int(hop.at_arrival_ms(context.deadline, up_ms) * 1e3)
        request.parameters["timeout"] = left_us
        body = request.wire = encode_request(request)
        headers = {hop.WANT: hop.LOAD}
        if body.header_length is not None:
            headers[hop.HEADER_LENGTH] = str(body.header_length)
        path = model_path(ModelRef(identity.name, identity.version)) + "/infer"
        status, answered, payload = await self._http.call(
            "POST", target.address, path, headers=headers, body=body, deadline=context.deadline
        )
        if status != 200:
            raise read_error(status, answered, payload)
        said = answered.get(hop.ROUTE, "local")
        route: Route = said if said in ROUTES else "local"  # type: ignore[assignment]
        return hop.read_reply(payload, answered, route)

    async def metadata(self, target: Target, identity: ModelIdentity, deadline: Deadline) -> ModelMetadata:
        path = model_path(ModelRef(identity.name, identity.version))
        return decode_model_metadata(await self._http.get_json(target.address, path, deadline))


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

    def survey(self, identity: ModelIdentity, context: Context, nbytes: int) -> Sequence[int]:
        """Look at all doors anew: they are few."""
        outlook, doors = self.outlook, {door.node: door for door in self._neighbours.doors()}
        for node in outlook.slots.keys() - doors.keys() - {""}:
            outlook.forget(node)
        self._ways.clear()
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

    def _route(self, door: Door, view: NodeView) -> Route:
        if door.address == self._given[0] if self._given else view.report.host == self._host:
            return "local"
        return "cloud" if view.report.tier == "cloud" else "peer"


def _matches(load: ModelLoad, identity: ModelIdentity) -> bool:
    return load.name == identity.name and identity.version in ("", load.version) and load.state == "READY"
