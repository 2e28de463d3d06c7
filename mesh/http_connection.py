"""One HTTP/1.1 connection: bytes in, one request at a time to the application, its answer out in one write.

A protocol of our own, because the inference path is what this project is measured by: a body of known length is
received straight into its own memory and never copied (docs/adr/0005). A caller that hangs up cancels its request. Not
here: heads (``http_head``), listening and draining (``http_server``), what a request means (``http_door``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, cast

import msgspec
import numpy as np

from mesh.errors import InvalidRequest, MeshError, PayloadTooLarge
from mesh.http_chunks import ChunkedBody
from mesh.http_head import Head, parse_head
from mesh.oip.wire import Buffer

MAX_HEAD = 64 * 1024
JOINED = 16 * 1024
"""Up to this size copying an answer into one buffer is cheaper than handing over its parts."""
ALIGNMENT = 64
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REASONS = {
    200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 413: b"Content Too Large",
    422: b"Unprocessable Content", 429: b"Too Many Requests", 500: b"Internal Server Error",
    501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


class Request(msgspec.Struct):
    head: Head
    body: Buffer


class Answer(msgspec.Struct):
    """``head`` is the header lines (:func:`lines`) without Content-Length, which follows from ``parts``."""

    status: int
    head: bytes
    parts: tuple[Buffer, ...]


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
    """Requests are served in the order they arrive; while one runs, at most ``MAX_HEAD`` bytes of others are read."""

    def __init__(self, app: App, server: Server) -> None:
        self._app = app
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._scratch = bytearray(MAX_HEAD)
        self._view = memoryview(self._scratch)
        self._have = 0
        self._head: Head | None = None
        self._body: memoryview | None = None
        self._filled = 0
        self._chunks: ChunkedBody | None = None
        self.task: asyncio.Task[None] | None = None
        """The request that runs."""
        self._closing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.touched = self._loop.time()
        """When bytes last came or an answer was written, on the loop's clock."""

    @property
    def busy(self) -> bool:
        return self.task is not None

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def reading(self) -> bool:
        """Whether a request has begun to arrive and is not whole."""
        return not self.busy and (self._have > 0 or self._head is not None)

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
        self._closing = True
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None and not self.busy:
            return self._body[self._filled :]
        if self._closing:
            return self._view  # to be thrown away
        return self._view[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            self._have = 0  # the rest of what was refused; reading it lets the caller see why
            return
        self.touched = self._loop.time()
        if self._body is not None and not self.busy:
            self._filled += nbytes
            if self._filled == self._body.nbytes:
                self._run(self._body)
            return
        self._have += nbytes
        if self.busy:
            if self._have == MAX_HEAD:
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
            self._write(self._server.refuse(error), keep_alive=False, body=True)

    def _read_head(self) -> None:
        end = self._scratch.find(b"\r\n\r\n", 0, self._have)
        if end < 0:
            if not self._view[:1].tobytes().isalpha() or self._scratch.find(b"\n\n", 0, self._have) >= 0:
                raise InvalidRequest("this is not HTTP/1.1")  # a caller that speaks TLS, say, would wait for ever
            if self._have == MAX_HEAD:
                raise InvalidRequest(f"the head of the request is over {MAX_HEAD} bytes")
            return
        head = self._head = parse_head(self._take(end + 4))
        if head.chunked:
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

    def _feed_chunks(self, chunks: ChunkedBody) -> None:
        used = chunks.feed(self._view[: self._have])
        self._take(used)
        if chunks.complete:
            self._run(chunks.body())
        elif self._have == MAX_HEAD:
            raise InvalidRequest("a line of the chunked body is too long")

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
        self.task = self._loop.create_task(self._serve(Request(self._head, body)))

    async def _serve(self, request: Request) -> None:
        try:
            answer = await self._app(request)
        finally:
            self.task = None
            self._head = self._body = self._chunks = None
            self._filled = 0
            if self._server.draining:
                self._server.moved()
        head = request.head
        self._write(answer, keep_alive=head.keep_alive and not self._server.draining, body=head.method != "HEAD")
        if not self._writable.is_set():
            await self._writable.wait()
        if not self._closing and not self._transport.is_closing():
            self._transport.resume_reading()
            self._advance()

    def _write(self, answer: Answer, *, keep_alive: bool, body: bool) -> None:
        size = sum(len(part) if isinstance(part, bytes) else memoryview(part).nbytes for part in answer.parts)
        status, end = answer.status, b"" if keep_alive else b"connection: close\r\n"
        reason = REASONS.get(status, b"-")
        head = b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n%b\r\n" % (status, reason, answer.head, size, end)
        if not body:
            self._transport.write(head)
        elif size > JOINED:
            self._transport.writelines([head, *answer.parts])
        else:
            self._transport.write(b"".join([head, *answer.parts]))
        self.touched = self._loop.time()
        if not keep_alive:
            self.end()


def _memory(nbytes: int, tensors_at: int) -> memoryview:
    """Room for a body whose tensors start aligned, as runtimes want them.

    Pages that are not written cost nothing, so a length that is only claimed does not either.
    """
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -(room.ctypes.data + tensors_at) % ALIGNMENT
    return room[start : start + nbytes].data


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines as they are sent."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def asgi_app(app: Any) -> App:
    """An ASGI application that answers whole, such as Starlette's pages, as an :data:`App`."""

    async def call(request: Request) -> Answer:
        head = request.head
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.path.encode(),
            "query_string": head.query,
            "root_path": "",
            "headers": list(head.headers.items()),
            "client": None,
            "server": None,
        }
        answer = Answer(500, b"", ())

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(request.body), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.head = lines((k, v) for k, v in message["headers"] if k != b"content-length")
            else:
                answer.parts += (message.get("body", b""),)

        await app(scope, receive, send)
        return answer

    return call
