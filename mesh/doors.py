"""The SDK's ways: every door it knows, whatever models stand behind it, for any door routes on.

Not here: the ways among nodes (``ways``).
"""

from __future__ import annotations

from mesh import hop
from mesh.deadline import Deadline
from mesh.estimator import Candidate, Dispatches
from mesh.hop import Context, Reply, Target
from mesh.hop_http import HttpClient, model_path, read_error
from mesh.membership import NodeView
from mesh.messages import ModelLoad
from mesh.neighbours import Door, Neighbours
from mesh.oip.documents import decode_model_metadata
from mesh.oip.request import InferRequest, encode_request
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
        self,
        watcher: Watcher,
        neighbours: Neighbours,
        door_hop: DoorHop,
        dispatches: Dispatches,
        given: tuple[str, ...],
        host: str,
    ) -> None:
        self._watcher = watcher
        self._neighbours = neighbours
        self._hop = door_hop
        self._dispatches = dispatches
        self._given = given
        self._host = host

    def ways(self, identity: ModelIdentity, context: Context, nbytes: int) -> list[Way]:
        found = []
        for door in self._neighbours.doors():
            view = self._watcher.membership.get(door.node)
            if view is not None and view.state in ("ready", "starting", "suspect") and door.node not in context.visited:
                found.append(self._way(door, view, identity))
        return found

    def why_none(self, identity: ModelIdentity, context: Context, nbytes: int) -> str:
        return NO_DOOR

    def _way(self, door: Door, view: NodeView, identity: ModelIdentity) -> Way:
        report = view.report
        load = next((m for m in report.models if _matches(m, identity)), None)
        if load is None:
            load = ModelLoad(identity.name, identity.version, "", "READY")
        route = self._route(door, view)
        own_ms = self._dispatches.since(door.node, view.heard_at - door.link.rtt_ms / 1e3)
        candidate = Candidate(
            door.node, route, "http", view.state != "suspect", load, report.wait_ms, view.heard_at, own_ms, door.link
        )
        return Way(candidate, Target(door.node, report.site, route, door.address), self._hop, door)

    def _route(self, door: Door, view: NodeView) -> Route:
        if door.address == self._given[0] if self._given else view.report.host == self._host:
            return "local"
        return "cloud" if view.report.tier == "cloud" else "peer"


def _matches(load: ModelLoad, identity: ModelIdentity) -> bool:
    return load.name == identity.name and identity.version in ("", load.version) and load.state == "READY"
