"""Another door over the bus: request-reply on the node's own subject, for nodes that cannot be reached directly.

Body and headers are those of the HTTP hop; errors travel as ADR-32 headers (``Nats-Service-Error``,
``Nats-Service-Error-Code``) beside ``Mesh-Error``. Not here: answering (``bus_door``), the bus itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping

from mesh import bus_changes, hop, subjects
from mesh.bus import Bus, BusMessage
from mesh.bus_streams import END, FETCH, FETCH_S, KEEP, KEEP_S, NAME, PART, STREAM
from mesh.deadline import Deadline
from mesh.errors import BusUnavailable, DeadlineExceeded, MeshError, NodeLost, NodeUnreachable, ProtocolError, from_wire
from mesh.hop import Context, OwnLoad, Question, Reply, Target, no_load
from mesh.oip.parts import Frames
from mesh.oip.request import InferRequest
from mesh.oip.wire import WireBody
from mesh.trust import Trust
from mesh.values import ModelIdentity, ModelRef

ERROR_TEXT = "Nats-Service-Error"
ERROR_STATUS = "Nats-Service-Error-Code"
RETRY_AFTER = "Retry-After"
REQUEST = "mesh-request"
"""Name of a request, which nobody else can guess: by it the caller may call it off (``subjects.cancel``, ``left``)."""
SILENT_S = 5.0
"""So long after it should have answered a fetch, a node is gone."""


class BusHop:
    """``mesh.hop.Hop`` over the tensor connection of this process. With every hop goes the ``load`` of this node."""

    def __init__(self, bus: Bus, node: str, load: OwnLoad = no_load, trust: Trust | None = None) -> None:
        self._bus = bus
        self._node = node
        self._load = load
        self._trust = trust

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        headers = hop.request_headers(request, identity, context, self._node, up_ms, self._load(identity))
        headers[hop.MODEL], headers[hop.VERSION] = identity.name, identity.version
        subject, cancel = subjects.infer(target.site, target.node), subjects.cancel(target.site, target.node)
        answer = await ask_or_leave(self._bus, subject, request.body().joined(), headers, context.deadline, cancel)
        return hop.read_reply(answer.payload, lower(answer.headers), target.route)

    async def stream(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> AsyncGenerator[Reply, None]:
        headers = hop.request_headers(request, identity, context, self._node, up_ms, self._load(identity))
        headers[hop.MODEL], headers[hop.VERSION] = identity.name, identity.version
        subject, fetch = subjects.infer(target.site, target.node), subjects.stream(target.node)
        answers = stream(self._bus, subject, request.body().joined(), headers, context.deadline, fetch)
        async with contextlib.aclosing(answers):
            async for answered, body in answers:
                yield hop.stream_reply(body, answered, target.route)

    async def ask(self, target: Target, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        """What changes the node goes to its control subject, proven by the site key where there is one."""
        headers = {hop.OP: what, hop.MODEL: ref.name, hop.VERSION: ref.version, hop.HOPS: "1"}
        if what not in hop.CHANGES:
            subject = subjects.infer(target.site, target.node)
            return (await ask(self._bus, subject, body, headers, deadline)).payload
        subject = subjects.control(target.site, target.node)
        if self._trust is not None and self._trust.fingerprint:
            given = await ask(self._bus, subject, b"", {hop.OP: bus_changes.ASK}, deadline)
            challenge = lower(given.headers).get(hop.CHALLENGE, "")
            headers |= bus_changes.proof(self._trust, target.node, challenge, what, ref.name, body)
        return (await ask(self._bus, subject, body, headers, deadline)).payload


async def stream(
    bus: Bus, subject: str, payload: bytes, headers: dict[str, str], deadline: Deadline, fetch: str
) -> AsyncGenerator[tuple[dict[str, str], WireBody], None]:
    """Ask for a stream and fetch it: each answer with the headers it began with, the load only beside the first.

    ``fetch`` is where it will be fetched, as far as that is known before; else where it is called off until then.
    Raises as :func:`ask`, and what it ends with.
    """
    fetching = _Fetching(bus, fetch, deadline)
    async with contextlib.aclosing(fetching):
        bodies = await fetching.begin(subject, payload, headers)
        while True:
            for body in bodies:
                yield fetching.said, body
                fetching.said.pop(hop.LOAD, None)
            if fetching.ended:
                return
            bodies = await fetching.more()


class _Fetching:
    """The caller's end of a stream (``bus_streams``): the next parts are asked for while these are looked at."""

    def __init__(self, bus: Bus, fetch: str, deadline: Deadline) -> None:
        self.said: dict[str, str] = {}
        """Headers of the first answer."""
        self._bus = bus
        self._fetch = fetch
        self._deadline = deadline
        self._name = {NAME: secrets.token_hex(16)}
        self._frames = Frames()
        self._number = 0
        self._coming: asyncio.Future[BusMessage] | None = None
        self._keeping: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether that was all. Raises the error that the stream ended with."""
        if self._frames.error is not None:
            raise hop.theirs(self._frames.error)
        return self._frames.ended

    async def begin(self, subject: str, payload: bytes, headers: dict[str, str]) -> list[WireBody]:
        try:
            answer = await ask(self._bus, subject, payload, headers | self._name | {hop.OP: STREAM}, self._deadline)
        except MeshError:
            self._fetch = ""  # there is nothing to end
            raise
        self._fetch = lower(answer.headers).get(FETCH, "")
        if not self._fetch:
            raise ProtocolError(f"what answers on {subject} knows no streams")
        self._keeping = asyncio.ensure_future(self._keep())
        return self._take(answer)

    async def more(self) -> list[WireBody]:
        assert self._coming is not None  # noqa: S101 - a stream that has not ended is being fetched
        return self._take(await self._coming)

    def _take(self, answer: BusMessage) -> list[WireBody]:
        answered = lower(answer.headers)
        if answered.get(PART) != str(self._number):
            raise NodeLost("parts of a stream were lost on the bus")
        if hop.NODE in answered:
            self.said = answered
        bodies = self._frames.feed(answer.payload)
        self._number += len(bodies)
        if not self._frames.ended:
            self._coming = asyncio.ensure_future(self._next())
        return bodies

    async def _next(self) -> BusMessage:
        deadline = self._deadline.at_most_ms((FETCH_S + SILENT_S) * 1e3)
        try:
            return await ask(self._bus, self._fetch, b"", self._name, deadline)
        except NodeUnreachable:
            raise NodeLost("the node that answers the stream is gone") from None
        except DeadlineExceeded:
            self._deadline.check()
            raise NodeLost("the node that answers the stream is silent") from None

    async def _keep(self) -> None:
        """A caller that is slow is not one that has left."""
        while not self._deadline.expired:
            await asyncio.sleep(KEEP_S)
            with contextlib.suppress(BusUnavailable):
                await self._bus.publish(self._fetch, b"", self._name | {hop.OP: KEEP})

    async def aclose(self) -> None:
        tasks = [task for task in (self._coming, self._keeping) if task is not None]
        for task in tasks:
            task.cancel()
        try:  # first, for whoever closes this may be cancelled meanwhile
            if self._fetch and not self._frames.ended:
                with contextlib.suppress(BusUnavailable):
                    await self._bus.publish(self._fetch, b"", self._name | {hop.OP: END})
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)


async def ask_or_leave(
    bus: Bus, subject: str, payload: bytes, headers: Mapping[str, str], deadline: Deadline, leave: str
) -> BusMessage:
    """As :func:`ask`; whoever is cancelled meanwhile says so on the subject ``leave``."""
    name = {REQUEST: secrets.token_hex(16)}
    try:
        return await ask(bus, subject, payload, {**headers, **name}, deadline)
    except asyncio.CancelledError:
        with contextlib.suppress(BusUnavailable):
            await bus.publish(leave, b"", name)
        raise


async def ask(bus: Bus, subject: str, payload: bytes, headers: Mapping[str, str], deadline: Deadline) -> BusMessage:
    """One request. Raises the error that it is answered with."""
    deadline.check()
    answer = await bus.request(subject, payload, headers, timeout_s=deadline.left_s())
    error = read_error(lower(answer.headers))
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


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a bus message by their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}
