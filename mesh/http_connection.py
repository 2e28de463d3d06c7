"""One HTTP/1.1 connection: bytes in, one request at a time to the application, its answer out in one write.

A protocol of our own, because the inference path is what this project is measured by: a body of known length is
received straight into its own memory and never copied (docs/adr/0005). A caller that hangs up cancels its request. Not
here: heads (``http_head``), sending (``http_answer``), listening and draining (``http_server``), what a request means
(``http_door``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

import msgspec
import numpy as np

from mesh.errors import InvalidRequest, MeshError, Overloaded, PayloadTooLarge
from mesh.http_answer import Answer, pour, write
from mesh.http_chunks import ChunkedBody
from mesh.http_head import Head, parse_head
from mesh.oip.wire import Buffer

MAX_HEAD = 64 * 1024
ROOM = 4 * 1024
"""What a connection reads into before it needs more: an idle one holds little else."""
ALIGNMENT = 64
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Request(msgspec.Struct):
    head: Head
    body: Buffer


App = Callable[[Request], Awaitable[Answer]]


class Server(Protocol):
    """What a connection needs to know of its server."""

    draining: bool
    max_body_bytes: int
    connections: set[HttpConnection]

    def moved(self) -> None:
        """Called when a connection becomes idle or closes."""

    def refuse(self, error: MeshError) -> Answer:
        """The answer to a request that cannot even be read."""


class HttpConnection(asyncio.BufferedProtocol):
    """Requests are served in the order they arrive.

    Until the answer to one has gone out, no more of others is read than there is room for: a caller that does not read
    its answers cannot have more of them made.
    """

    def __init__(self, app: App, server: Server) -> None:
        self._app = app
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._scratch = bytearray(ROOM)
        self._view = memoryview(self._scratch)
        self._have = 0
        self._head: Head | None = None
        self._body: memoryview | None = None
        self._filled = 0
        self._chunks: ChunkedBody | None = None
        self.task: asyncio.Task[None] | None = None
        """The request that runs, until its answer has gone out."""
        self.closing = False
        """The last answer was written; what still comes is thrown away."""
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._touched = self._loop.time()
        self._unsent = 0

    @property
    def busy(self) -> bool:
        return self.task is not None

    @property
    def reading(self) -> bool:
        """Whether a request has begun to arrive and is not whole."""
        return not self.busy and (self._have > 0 or self._head is not None)

    @property
    def receiving(self) -> bool:
        """Whether the head of a request has arrived and its body has not."""
        return self._head is not None

    @property
    def unsent(self) -> bool:
        """Whether bytes of an answer wait for the caller to read."""
        return self._transport.get_write_buffer_size() > 0

    @property
    def owing(self) -> bool:
        """Whether an answer is due to a request whose head has arrived, or is still on its way out."""
        return self.busy or self.receiving or self.unsent

    def still_s(self) -> float:
        """Seconds in which nothing went on: no answer read, no part of a body received, no new head begun."""
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._touched = unsent, now
        return now - self._touched

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.moved()
        self._writable.set()
        if self.task is not None:
            self.task.cancel()

    def eof_received(self) -> bool:
        return False  # nobody half-closes and waits: the caller has left

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def end(self) -> None:
        """Send what was written and no more; closed when the caller closes, or by the server's sweep."""
        self.closing = True
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Close once what was written has gone out."""
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._filled :]
        if self.closing:
            return self._view  # to be thrown away
        return self._view[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.closing:
            self._have = 0  # the rest of what was refused; reading it lets the caller see why
            return
        if self._have == 0 or self._head is not None:
            self._touched = self._loop.time()
        if self._body is not None:
            self._filled += nbytes
            if self._filled == self._body.nbytes:
                self._run(self._body)
            return
        self._have += nbytes
        if self.busy:
            if self._have == len(self._scratch):
                self._transport.pause_reading()
            return
        self._advance()

    def _advance(self) -> None:
        """Read on in what is buffered, until more must come or a request runs."""
        try:
            if self._chunks is not None:
                self._feed_chunks(self._chunks)
            elif self._have:
                self._read_head()
        except MeshError as error:
            self._head = self._chunks = None
            self._write(self._server.refuse(error), keep_alive=False, body=True)

    def _read_head(self) -> None:
        end = self._scratch.find(b"\r\n\r\n", 0, self._have)
        if end < 0:
            self._await_head()
            return
        head = self._head = parse_head(self._take(end + 4))
        if head.chunked:
            self._resize(MAX_HEAD)
            self._chunks = ChunkedBody(self._server.max_body_bytes)
        elif head.content_length > self._server.max_body_bytes:
            limit = self._server.max_body_bytes
            raise PayloadTooLarge(f"the body has {head.content_length} bytes, this door takes at most {limit}")
        elif self._have >= head.content_length:
            self._run(self._take(head.content_length))
            return
        if head.expects_continue:
            self._transport.write(CONTINUE)
        if self._chunks is not None:
            self._feed_chunks(self._chunks)
            return
        self._body = _memory(head.content_length, head.tensors_at)
        got = self._take(self._have)
        self._filled = len(got)
        self._body[: len(got)] = got

    def _await_head(self) -> None:
        begun = bytes(self._view[: self._have]).lstrip(b"\r\n")  # a line some end a body with (RFC 9112, 2.2)
        if (begun and not begun[:1].isalpha()) or b"\n\n" in begun:
            raise InvalidRequest("this is not HTTP/1.1")  # a caller that speaks TLS, say, would wait for ever
        if self._have == MAX_HEAD:
            raise InvalidRequest(f"the head of the request is over {MAX_HEAD} bytes")
        if self._have == len(self._scratch):
            self._resize(min(4 * self._have, MAX_HEAD))

    def _resize(self, size: int) -> None:
        scratch = bytearray(size)
        scratch[: self._have] = self._view[: self._have]
        self._scratch, self._view = scratch, memoryview(scratch)

    def _feed_chunks(self, chunks: ChunkedBody) -> None:
        used = chunks.feed(self._view[: self._have])
        self._take(used)
        if chunks.complete:
            self._run(chunks.body)

    def _take(self, count: int) -> bytes:
        """The first ``count`` buffered bytes; what is behind them moves to the front."""
        taken = bytes(self._view[:count])
        rest = self._have - count
        if rest and count:
            self._scratch[:rest] = self._scratch[count : self._have]
        self._have = rest
        return taken

    def _run(self, body: Buffer) -> None:
        assert self._head is not None  # noqa: S101 - a body follows a head
        request = Request(self._head, body)
        self._head = self._body = self._chunks = None
        self.task = self._loop.create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        head = request.head
        try:
            answer = await self._app(request)
            del request  # the body is not needed while a slow caller reads the answer
            keep_alive = head.keep_alive and not self._server.draining
            if answer.stream is None:
                self._write(answer, keep_alive=keep_alive, body=head.method != "HEAD")
            else:
                await self._pour(answer, keep_alive=keep_alive and head.http_1_1, chunked=head.http_1_1)
            if not self._writable.is_set():
                await self._writable.wait()
        except Exception:
            self.abort()  # an App answers whatever happens; without an answer the caller must not wait for one
            raise
        finally:
            self.task = None
            if self._server.draining:
                self._server.moved()
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if not self._have and len(self._scratch) > ROOM:
            self._resize(ROOM)
        if not self.closing:
            self._advance()

    async def _pour(self, answer: Answer, *, keep_alive: bool, chunked: bool) -> None:
        await pour(self._transport, self._writable, answer, keep_alive=keep_alive, chunked=chunked)
        self._touched = self._loop.time()
        if not keep_alive:
            self.end()

    def _write(self, answer: Answer, *, keep_alive: bool, body: bool) -> None:
        write(self._transport, answer, keep_alive=keep_alive, body=body)
        self._touched = self._loop.time()
        if not keep_alive:
            self.end()


def _memory(nbytes: int, tensors_at: int) -> memoryview:
    """Room for a body whose tensors start aligned, as runtimes want them.

    Pages that are not written cost nothing, so a length that is only claimed does not either. Raises ``Overloaded``.
    """
    try:
        room = np.empty(nbytes + ALIGNMENT, np.uint8)
    except MemoryError:
        raise Overloaded(f"there is no memory for a body of {nbytes} bytes") from None
    start = -(room.ctypes.data + tensors_at) % ALIGNMENT
    return room[start : start + nbytes].data
