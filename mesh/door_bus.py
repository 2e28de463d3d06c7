"""The routers' door over the bus, for an application that reaches no HTTP door: ``mesh.v1.infer.<model>``.

Not here: hops between nodes (``hop_bus``), HTTP doors (``doors``).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from mesh import hop, subjects
from mesh.bus import Bus
from mesh.deadline import Deadline
from mesh.doors import asked
from mesh.errors import NodeUnreachable
from mesh.hop import Context, Question, Reply, Target
from mesh.hop_bus import ask_or_leave, lower, stream
from mesh.oip.request import InferRequest
from mesh.values import ModelIdentity, ModelRef


class RouterHop:
    """``mesh.hop.Hop`` as an application on the bus: whichever router takes it, no hop headers."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        body = asked(request, context, up_ms)
        headers = {} if body.header_length is None else {hop.HEADER_LENGTH: str(body.header_length)}
        payload, answered = await self._ask(identity, body.joined(), headers, context.deadline)
        return hop.read_reply(payload, answered, hop.route_of(answered))

    async def stream(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> AsyncGenerator[Reply, None]:
        body = asked(request, context, up_ms)
        headers = {} if body.header_length is None else {hop.HEADER_LENGTH: str(body.header_length)}
        if identity.version:
            headers[hop.VERSION] = identity.version
        subject, left = subjects.model_infer(identity.name), subjects.left()
        answers = stream(self._bus, subject, body.joined(), headers, context.deadline, left)
        async with contextlib.aclosing(answers):
            async for answered, part in answers:
                yield hop.stream_reply(part, answered, hop.route_of(answered))

    async def ask(self, target: Target, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        payload, _ = await self._ask(ModelIdentity(ref.name, ref.version, ""), body, {hop.OP: what}, deadline)
        return payload

    async def _ask(
        self, identity: ModelIdentity, payload: bytes, headers: dict[str, str], deadline: Deadline
    ) -> tuple[bytes, dict[str, str]]:
        if identity.version:
            headers[hop.VERSION] = identity.version
        try:
            subject, left = subjects.model_infer(identity.name), subjects.left()
            answer = await ask_or_leave(self._bus, subject, payload, headers, deadline, left)
        except NodeUnreachable:
            raise NodeUnreachable("no router listens on the bus: start one with mesh-cloud run") from None
        return answer.payload, lower(answer.headers)
