"""``grpc.health.v1`` and server reflection. Small enough to be our own: the packages that serve them register their
messages for the whole process (ADR 14).

Not here: inference (``grpc_door``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc

from mesh.errors import MeshError, NotFound
from mesh.grpc_errors import code_of
from mesh.grpc_protocol import HEALTH, INFERENCE, REFLECTION, SERVED, Method, file_named, file_of, methods
from mesh.lifecycle import Tasks, within

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
WATCH_S = 1.0
"""Between looks at what a watcher wants to know of."""
NOT_FOUND = 5
"""gRPC's number."""
KNOWN = ("", INFERENCE)


class Health:
    """``ready`` says whether the door serves; ``leaving`` is set when it closes."""

    def __init__(self, ready: Callable[[], bool], leaving: asyncio.Event) -> None:
        self._ready = ready
        self._leaving = leaving
        self._check, self._watch = methods(HEALTH)["Check"], methods(HEALTH)["Watch"]

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        return {
            self._check.path: grpc.unary_unary_rpc_method_handler(self.check),
            self._watch.path: grpc.unary_stream_rpc_method_handler(self.watch),
        }

    def _status(self, asked: Any) -> int:
        if asked.service not in KNOWN:
            return SERVICE_UNKNOWN
        return SERVING if self._ready() else NOT_SERVING

    async def check(self, data: bytes, context: Any) -> bytes:
        try:
            status = self._status(self._check.parse(data))
            if status == SERVICE_UNKNOWN:
                raise NotFound("no such name is served here")
        except MeshError as error:
            return await context.abort(code_of(error), error.text)  # type: ignore[no-any-return]
        return bytes(self._check.response(status=status).SerializeToString())

    async def watch(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        """The status, and again whenever it changes, until the door closes."""
        try:
            asked = self._watch.parse(data)
        except MeshError as error:
            await context.abort(code_of(error), error.text)
            return
        said = None
        while True:
            if (status := self._status(asked)) != said:
                yield self._watch.response(status=status).SerializeToString()
                said = status
            if self._leaving.is_set():
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await within(WATCH_S, self._leaving.wait())


def reflection(leaving: asyncio.Event) -> dict[str, grpc.RpcMethodHandler]:
    """Handlers of both versions, which differ in their name only. Their streams end when ``leaving`` is set."""
    return {
        method.path: grpc.stream_stream_rpc_method_handler(_reflect(method, leaving))
        for name in REFLECTION
        for method in methods(name).values()
    }


def _reflect(method: Method, leaving: asyncio.Event) -> Callable[[Any, Any], AsyncIterator[bytes]]:
    async def handle(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(_until(leaving, messages)) as taken:
            async for data in taken:
                try:
                    asked = method.parse(data)
                except MeshError as error:
                    await context.abort(code_of(error), error.text)
                answer = method.response(valid_host=asked.host, original_request=asked)
                _look_up(asked, answer)
                yield answer.SerializeToString()

    return handle


async def _until(leaving: asyncio.Event, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What a caller sends, until it sends no more or ``leaving`` is set."""

    async def following() -> bytes | None:
        return await anext(messages, None)

    async with Tasks("reflection") as tasks:
        left = tasks.start(leaving.wait(), "leaving")
        messages = aiter(messages)
        while True:
            message = tasks.start(following(), "message")
            await asyncio.wait([message, left], return_when=asyncio.FIRST_COMPLETED)
            if left.done() or (data := message.result()) is None:
                return
            yield data


def _look_up(asked: Any, answer: Any) -> None:
    kind = asked.WhichOneof("message_request")
    try:
        if kind == "list_services":
            for name in SERVED:
                answer.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            answer.file_descriptor_response.file_descriptor_proto.append(file_named(asked.file_by_filename))
        elif kind == "file_containing_symbol":
            answer.file_descriptor_response.file_descriptor_proto.append(file_of(asked.file_containing_symbol))
        else:
            _unknown(answer, "there are no extensions here")
    except KeyError:
        _unknown(answer, "nothing is known by that name")


def _unknown(answer: Any, text: str) -> None:
    answer.error_response.error_code = NOT_FOUND
    answer.error_response.error_message = text
