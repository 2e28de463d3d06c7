"""Another door over the bus: request-reply on the node's own subject, for nodes that cannot be reached directly.

Body and headers are those of the HTTP hop; errors travel as ADR-32 headers (``Nats-Service-Error``,
``Nats-Service-Error-Code``) beside ``Mesh-Error``. Not here: answering (``bus_door``), the bus itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh import hop, subjects
from mesh.bus import Bus, BusMessage
from mesh.deadline import Deadline
from mesh.errors import MeshError, ProtocolError, from_wire
from mesh.hop import Context, OwnLoad, Reply, Target, no_load
from mesh.oip.documents import decode_model_metadata
from mesh.oip.request import InferRequest
from mesh.values import ModelIdentity, ModelMetadata

ERROR_TEXT = "Nats-Service-Error"
ERROR_STATUS = "Nats-Service-Error-Code"
RETRY_AFTER = "Retry-After"
METADATA = "metadata"


class BusHop:
    """``mesh.hop.Hop`` over the tensor connection of this process. With every hop goes the ``load`` of this node."""

    def __init__(self, bus: Bus, node: str, load: OwnLoad = no_load) -> None:
        self._bus = bus
        self._node = node
        self._load = load

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        headers = hop.request_headers(request, identity, context, self._node, up_ms, self._load(identity))
        headers[hop.MODEL], headers[hop.VERSION] = identity.name, identity.version
        answer = await self._ask(target, request.body().joined(), headers, context.deadline)
        return hop.read_reply(answer.payload, _lower(answer.headers), target.route)

    async def metadata(self, target: Target, identity: ModelIdentity, deadline: Deadline) -> ModelMetadata:
        headers = {hop.OP: METADATA, hop.MODEL: identity.name, hop.VERSION: identity.version, hop.HOPS: "1"}
        answer = await self._ask(target, b"", headers, deadline)
        return decode_model_metadata(answer.payload)

    async def _ask(self, target: Target, payload: bytes, headers: dict[str, str], deadline: Deadline) -> BusMessage:
        deadline.check()
        subject = subjects.infer(target.site, target.node)
        answer = await self._bus.request(subject, payload, headers, timeout_s=deadline.left_s())
        error = read_error(_lower(answer.headers))
        if error is not None:
            raise error
        return answer


def error_headers(error: MeshError) -> dict[str, str]:
    """ADR-32 headers of an error reply."""
    text = " ".join(error.text.split())  # a header is one line
    headers = {ERROR_TEXT: text, ERROR_STATUS: str(error.status), hop.ERROR: error.code}
    if error.retry_after_s is not None:
        headers[RETRY_AFTER] = f"{error.retry_after_s:.3f}"
    if error.load is not None:
        headers[hop.LOAD] = error.load.header()
    return headers


def read_error(headers: Mapping[str, str]) -> MeshError | None:
    """The error a reply carries, None if it is an answer. Header names are lower case here."""
    status = headers.get(ERROR_STATUS.lower())
    if status is None:
        return None
    try:
        retry_after = headers.get(RETRY_AFTER.lower())
        seconds = float(retry_after) if retry_after is not None else None
        text = headers.get(ERROR_TEXT.lower(), "no text")
        return hop.answered(from_wire(headers.get(hop.ERROR, ""), text, int(status), seconds), headers)
    except ValueError:
        return ProtocolError("a neighbour answered with an error code that is not a number")


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
