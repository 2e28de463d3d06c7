"""An answer of HTTP/1.1 on its way out: whole, in one write, or piece by piece as the caller reads.

Not here: heads (``http_head``), when an answer is due (``http_connection``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable

import msgspec

from mesh.http_head import answer_head, stream_head
from mesh.oip.wire import Buffer, buffer_bytes

JOINED = 16 * 1024
"""Up to this size copying an answer into one buffer is cheaper than handing over its parts."""
POURED = 64 * 1024
"""Bytes of a streamed body that may wait for the caller to read."""
LAST_CHUNK = b"0\r\n\r\n"


class Answer(msgspec.Struct):
    """``head`` is header lines (:func:`mesh.http_head.lines`) without Content-Length, which follows from ``parts``."""

    status: int
    head: bytes
    parts: tuple[Buffer, ...]
    stream: AsyncGenerator[Buffer, None] | None = None
    """Of a body whose length is not known, in place of ``parts``; whoever is handed the answer closes it."""


def write(transport: asyncio.WriteTransport, answer: Answer, *, keep_alive: bool, body: bool) -> None:
    """All of it; without ``body`` the head alone, as HEAD is answered."""
    size = sum([buffer_bytes(part) for part in answer.parts])
    head = answer_head(answer.status, answer.head, size, keep_alive=keep_alive)
    if not keep_alive:
        transport.set_write_buffer_limits(0)  # the last answer has gone out when all of it has
    if not body:
        transport.write(head)
    elif size > JOINED:
        transport.writelines([head, *answer.parts])
    else:
        transport.write(b"".join([head, *answer.parts]))


async def pour(
    transport: asyncio.WriteTransport, writable: asyncio.Event, answer: Answer, *, keep_alive: bool, chunked: bool
) -> None:
    """Send a streamed body no faster than the caller reads; without chunks the end of the connection is its end.

    A piece is asked for once those before it have gone out but for ``POURED`` bytes, as ``writable`` tells, so a caller
    that does not read stops who makes them.
    """
    assert answer.stream is not None  # noqa: S101 - of such an answer there is something to pour
    async with contextlib.aclosing(answer.stream) as pieces:
        transport.set_write_buffer_limits(POURED)
        transport.write(stream_head(answer.status, answer.head, chunked=chunked, keep_alive=keep_alive))
        async for piece in pieces:
            if transport.is_closing():
                return  # the caller has left, which this task is about to be told
            if buffer_bytes(piece):  # an empty chunk would end the body
                transport.writelines(_chunk(piece) if chunked else [piece])
                await writable.wait()
        if chunked:
            transport.write(LAST_CHUNK)
        if keep_alive:
            transport.set_write_buffer_limits()
        else:
            transport.set_write_buffer_limits(0)


def _chunk(piece: Buffer) -> Iterable[Buffer]:
    return [b"%x\r\n" % buffer_bytes(piece), piece, b"\r\n"]
