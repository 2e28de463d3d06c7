"""One request between two nodes: what it carries beside its body, and its answer. The same headers on HTTP and bus.

Names are lower case here; HTTP and the bus ignore the case of what they carry. ``Mesh-*`` headers of a request count
only from callers that proved to be of this mesh (DESIGN D4), which the doors check. Not here: transports (``hop_http``,
``hop_bus``), the choice of a node (``router``).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from mesh.deadline import Deadline
from mesh.errors import (
    BusUnavailable,
    InstanceLost,
    InvalidRequest,
    MeshError,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    ProtocolError,
)
from mesh.messages import Load
from mesh.oip.request import InferRequest
from mesh.oip.wire import WireBody
from mesh.values import ModelIdentity, ModelRef, Route

HEADER_LENGTH = "inference-header-content-length"
DEADLINE = "mesh-deadline-ms"
RECALL = "mesh-recall-ms"
"""What another node would need for the request: it is given back before less than that is left (``Deadline``)."""
DIGEST = "mesh-model-digest"
MODEL = "mesh-model"
VERSION = "mesh-version"
HOPS = "mesh-hops"
VISITED = "mesh-visited"
TOKEN = "mesh-token"  # noqa: S105 - the header's name
NODE = "mesh-node"
ROUTE = "mesh-route"
LOAD = "mesh-load"
TIME = "mesh-time-ms"
CASCADE = "mesh-cascade"
CONFIDENCE = "mesh-confidence"
SEQUENCE = "mesh-sequence"
ERROR = "mesh-error"
WANT = "mesh-want"
CHALLENGE = "mesh-challenge"
"""A probe's nonce; its answer proves itself under the two names below (``trust``)."""
PROOF_SITE = "mesh-proof-site"
PROOF_BUS = "mesh-proof-bus"
HANDED = "mesh-handed"
"""Said by a node's own door to itself: another one handed this on (:attr:`Context.handed`)."""
OP = "mesh-op"
"""Bus only: "infer" (default), "stream" or a :data:`Question`."""

MAX_VISITED = 8
ROUTES = ("local", "peer", "cloud")


class Context(msgspec.Struct):
    """How a request came to this node."""

    deadline: Deadline
    hops: int = 0
    """Forwards so far; 0 at the first door, the only one that retries (DESIGN D16)."""
    visited: tuple[str, ...] = ()
    """Nodes that held the request before; it never goes back to one."""
    digest: str = ""
    """Digest of the model that the first door resolved; empty at the first door."""
    load: Load | None = None
    """How busy the node that passed it on is, where that runs models itself."""
    keep: str = ""
    """The only node that may run it, which holds its sequence; empty for any."""
    avoid: tuple[str, ...] = ()
    """Nodes that could not go on with its sequence just now."""
    handed: bool = False
    """Another door handed it on, for this one holds its sequence; it goes to no third one."""

    @property
    def caller(self) -> str:
        """The node that passed it on; empty at the first door."""
        return self.visited[-1] if self.visited else ""


class Reply(msgspec.Struct):
    """An answer in its wire form, and where it came from."""

    body: WireBody
    node: str
    route: Route = "local"
    hops: int = 0
    load: Load | None = None
    time_ms: float = 0.0
    """Time from the request's arrival at the answering node to its answer, on that node's clock."""
    cascade: str = ""
    """Of a cascade: "small" or "large", whichever model answered; empty where none was applied."""
    confidence: float | None = None
    """How sure the small model was, 0 to 1."""
    via: str = ""
    """Where it was sent from here: the node, or the door of the SDK."""
    sequence: str = ""
    """How its sequence came to go on elsewhere; empty where it did not."""


@dataclass(frozen=True, slots=True)
class Target:
    """A node to send to, and the way there: ``address`` is the HTTP door, empty for the bus.

    ``route`` is what the way counts as, seen from here.
    """

    node: str
    site: str
    route: Route
    address: str = ""
    token: str = field(default="", repr=False)


Question = Literal["metadata", "config", "statistics", "index", "load", "unload"]
"""What a node can be asked beside inferences, by name: two documents of a model, its statistics, its repository."""
CHANGES = frozenset(("load", "unload"))
"""Those that change what the node serves."""

OwnLoad = Callable[[ModelIdentity], Load | None]
"""How busy this node is now, seen from a model; None where it runs no models."""


def no_load(_: ModelIdentity) -> None:
    """Of a process that runs no models (:data:`OwnLoad`)."""


class Hop(Protocol):
    """A transport to another node's door."""

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        """Forward. ``up_ms`` is the predicted time to arrival, taken off the deadline that travels.

        Raises ``NodeUnreachable`` when the request surely did not arrive, ``NodeLost`` when it may have, and otherwise
        the error that the node answered.
        """

    def stream(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> AsyncGenerator[Reply, None]:
        """As :meth:`infer`, with any number of answers; closing it ends the run over there."""

    async def ask(self, target: Target, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        """Anything but an inference: the JSON that OIP's page answers. Raises as :meth:`infer` does.

        ``ref`` of an empty name asks for the statistics of all models, and does not matter to the index. ``body`` is
        what a page that takes POST is sent.
        """


def at_arrival_ms(deadline: Deadline, up_ms: float) -> float:
    """Milliseconds that will be left after the predicted ``up_ms`` under way, 1 at least.

    The prediction takes no more than half: what it wrongly made expire would never teach it better.
    """
    left_ms = deadline.left_ms()
    return max(left_ms - min(up_ms, left_ms / 2), 1.0)


def request_headers(
    request: InferRequest, identity: ModelIdentity, context: Context, node: str, up_ms: float, load: Load | None = None
) -> dict[str, str]:
    """Headers with which ``node``, which is so busy, forwards; the hop is counted here."""
    headers = {
        DEADLINE: f"{at_arrival_ms(context.deadline, up_ms):.1f}",
        DIGEST: identity.digest,
        HOPS: str(context.hops + 1),
        VISITED: ",".join((*context.visited, node)),
        WANT: LOAD,
    }
    if (recall_ms := context.deadline.recall_ms) > 0.0:
        headers[RECALL] = f"{recall_ms:.1f}"
    length = request.body().header_length
    if length is not None:
        headers[HEADER_LENGTH] = str(length)
    if load is not None:
        headers[LOAD] = load.header()
    return headers


def read_context(headers: Mapping[str, str], deadline: Deadline) -> Context:
    """The hop headers of a proven caller; ``deadline`` counts where none travelled."""
    try:
        if (left := headers.get(DEADLINE)) is not None:
            deadline = Deadline.after_ms(_number(left))
        if (recall := headers.get(RECALL)) is not None:
            deadline = deadline.with_recall(max(_number(recall), 0.0))
        visited = tuple(v for v in headers.get(VISITED, "").split(",") if v)
        hops, digest = max(int(headers.get(HOPS, "0")), 0), headers.get(DIGEST, "")
        return Context(deadline, hops, visited[-MAX_VISITED:], digest, read_load(headers), handed=HANDED in headers)
    except ValueError:
        raise InvalidRequest("a Mesh-* header of the hop is not a number") from None


def read_load(headers: Mapping[str, str]) -> Load | None:
    """The load beside a request or an error, where one that can be read is there: what it comes with matters more."""
    text = headers.get(LOAD)
    try:
        return Load.from_header(text) if text else None
    except ProtocolError:
        return None


def _number(text: str) -> float:
    """Raises ``ValueError`` for NaN too: no comparison with it is ever true, a deadline of it never expires."""
    if math.isnan(number := float(text)):
        raise ValueError(text)
    return number


def reply_headers(reply: Reply, *, want_load: bool) -> dict[str, str]:
    headers = {NODE: reply.node, ROUTE: reply.route, HOPS: str(reply.hops)}
    if reply.body.header_length is not None:
        headers[HEADER_LENGTH] = str(reply.body.header_length)
    return headers | load_headers(reply) if want_load else headers


def stream_reply(body: WireBody, answered: Mapping[str, str], route: Route) -> Reply:
    """As :func:`read_reply`, of one answer of a stream and the headers that the stream began with."""
    reply = read_reply(b"", {name: value for name, value in answered.items() if name != HEADER_LENGTH}, route)
    reply.body = body
    return reply


def route_of(answered: Mapping[str, str]) -> Route:
    """Where a request ran, by the word of the door that an application asked; names are lower case here."""
    said = answered.get(ROUTE, "local")
    return said if said in ROUTES else "local"  # type: ignore[return-value]


def cascade_headers(reply: Reply) -> dict[str, str]:
    """What is said of some answers only: which model of a cascade it was, how a sequence went on elsewhere."""
    headers = {SEQUENCE: reply.sequence} if reply.sequence else {}
    if not reply.cascade:
        return headers
    headers[CASCADE] = reply.cascade
    if reply.confidence is not None:
        headers[CONFIDENCE] = f"{reply.confidence:.4f}"
    return headers


def load_headers(reply: Reply) -> dict[str, str]:
    """What a neighbour learns from beside the answer."""
    headers = {TIME: f"{reply.time_ms:.3f}"}
    if reply.load is not None:
        headers[LOAD] = reply.load.header()
    return headers


def read_reply(body: bytes, headers: Mapping[str, str], route: Route) -> Reply:
    """A neighbour's answer as this node passes it on; raises ``ProtocolError`` where it is not one.

    ``route`` is what the neighbour counts as here; where it passed the request on, its own word says where that ran.
    """
    if headers.get(ROUTE) in ("peer", "cloud"):
        route = "cloud" if headers[ROUTE] == "cloud" else "peer"
    try:
        length = headers.get(HEADER_LENGTH)
        header_length = int(length) if length is not None else None
        hops, time_ms = int(headers.get(HOPS, "0")), _number(headers.get(TIME, "0"))
        confidence = _number(headers[CONFIDENCE]) if CONFIDENCE in headers else None
    except ValueError:
        raise ProtocolError("a neighbour answered with a header that is not a number") from None
    if header_length is not None and not 0 < header_length <= len(body):
        raise ProtocolError("a neighbour answered with a header length beyond its body")
    load = Load.from_header(text) if (text := headers.get(LOAD)) else None
    wire, cascade = WireBody((body,), header_length), headers.get(CASCADE, "")
    return Reply(wire, headers.get(NODE, ""), route, hops, load, time_ms, cascade, confidence)


def answered(error: MeshError, headers: Mapping[str, str]) -> MeshError:
    """:func:`theirs`, with what the headers beside it say of how busy the node is."""
    error.load = read_load(headers)
    return theirs(error)


def theirs(error: MeshError) -> MeshError:
    """An error that a node answered with, as it counts here: the way to that node works, whatever it lost itself.

    What it could not reach is a refusal, what it lost under way is lost in there; neither says anything of our link.
    """
    load = error.load
    if isinstance(error, NodeUnreachable):
        error = NoReadyInstance(error.text, retry_after_s=error.retry_after_s)
    elif isinstance(error, (NodeLost, BusUnavailable)):
        error = InstanceLost(error.text, retry_after_s=error.retry_after_s)
    error.load = load
    return error
