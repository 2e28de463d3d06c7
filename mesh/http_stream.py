"""Answers of a stream over HTTP: server-sent events for people and scripts, frames for nodes and the SDK.

Not here: the frames themselves (``oip.parts``), chunks and connections (``http_connection``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

import msgspec

from mesh.dataplane import unexpected
from mesh.errors import MeshError
from mesh.hop import Reply
from mesh.http_answer import JOINED
from mesh.oip import parts
from mesh.oip.documents import encode_error
from mesh.oip.request import InferRequest
from mesh.oip.wire import Buffer

T = TypeVar("T")

EVENTS = "text/event-stream"
SILENCE_S = 15.0
"""After so long without an event, the first one too, a comment is sent, for proxies cut what is silent."""
ALIVE = b": waiting\n\n"


def as_json(request: InferRequest) -> None:
    """Events are text: every output is answered as JSON."""
    outputs = tuple(msgspec.structs.replace(output, binary=False) for output in request.outputs)
    request.outputs, request.binary_default, request.wire = outputs, False, None


async def frames(replies: AsyncGenerator[Reply, None]) -> AsyncGenerator[Buffer, None]:
    """The rest of a stream whose status is out already; an error becomes its last frame."""
    async with contextlib.aclosing(replies):
        try:
            async for reply in replies:
                pieces = parts.frame(reply.body)
                for piece in pieces if reply.body.nbytes > JOINED else (b"".join(pieces),):
                    yield piece
            yield parts.END
        except MeshError as error:
            yield parts.error_frame(error)
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            yield parts.error_frame(unexpected("a stream"))


async def events(replies: AsyncGenerator[Reply | None, None]) -> AsyncGenerator[Buffer, None]:
    """As :func:`frames`, of what is :func:`kept_alive`, as ``data:`` lines; an error is an event ``error``."""
    async with contextlib.aclosing(replies):
        try:
            async for reply in replies:
                yield ALIVE if reply is None else b"data: " + reply.body.joined() + b"\n\n"
        except MeshError as error:
            yield _failed(error)
        except Exception:  # noqa: BLE001 - as above
            yield _failed(unexpected("a stream"))


def _failed(error: MeshError) -> bytes:
    return b"event: error\ndata: " + encode_error(error.text) + b"\n\n"


async def kept_alive(replies: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply | None, None]:
    """The same, and None for each while in which nothing came."""
    async with contextlib.aclosing(replies):
        while True:
            coming = asyncio.ensure_future(anext(replies, None))
            try:
                while not (await asyncio.wait([coming], timeout=SILENCE_S))[0]:
                    yield None
            except BaseException:  # the caller has left
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
                raise
            reply = coming.result()
            if reply is None:
                return
            yield reply


async def begun(replies: AsyncGenerator[T, None]) -> tuple[T | None, AsyncGenerator[T, None]]:
    """Wait for the first answer, so that an error before it is an ordinary one; it, and all answers."""
    found: list[T] = []
    async for reply in replies:
        found.append(reply)
        break

    async def every() -> AsyncGenerator[T, None]:
        async with contextlib.aclosing(replies):
            while found:
                yield found.pop()
            async for reply in replies:
                yield reply

    return (found[0] if found else None), every()
