"""Listening for HTTP/1.1: the socket, its connections, their time limits, and the drain.

Not here: what a connection does (``http_connection``), what a request means (``http_door``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable

from mesh.addresses import join, parse
from mesh.errors import ConfigError, MeshError
from mesh.http_answer import Answer
from mesh.http_connection import App, HttpConnection
from mesh.http_door import refusal
from mesh.lifecycle import Tasks, within

BACKLOG = 2048
KEEP_ALIVE_S = 75.0
"""An idle connection is closed after this."""
STALL_S = 30.0
"""A head must be whole within this; then a body must go on arriving, and an answer being read, or the line is cut."""
LINGER_S = 2.0
"""Time a caller has to read its last answer and close."""
SWEEP_S = 1.0
PROBE_AFTER_S, PROBE_S, PROBES = 15, 5, 3
"""Seconds without a sign from the other end until the kernel asks whether it is there, seconds between two such
questions, and how many: a box that lost its power closes no connection, and a silent stream sends it nothing."""


class HttpServer:
    """Serves while entered; leaving stops listening, lets running requests finish for ``grace_s`` and cuts the rest."""

    def __init__(self, app: App, listen: str, *, max_body_bytes: int, grace_s: float) -> None:
        self.draining = False
        self.max_body_bytes = max_body_bytes
        self.connections: set[HttpConnection] = set()
        self._app = app
        self._grace_s = grace_s
        self._socket = _bind(listen)
        self._tasks = Tasks("http")
        self._listener: asyncio.Server | None = None
        self._moved = asyncio.Event()

    @property
    def address(self) -> str:
        """HOST:PORT as bound, the port real."""
        host, port = self._socket.getsockname()[:2]
        return join(host, port)

    def moved(self) -> None:
        """A connection became idle or closed."""
        self._moved.set()

    def refuse(self, error: MeshError) -> Answer:
        return refusal(error)

    async def __aenter__(self) -> HttpServer:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: HttpConnection(self._app, self), sock=self._socket, backlog=BACKLOG
        )
        self._tasks.start(self._sweep(), "sweep")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.draining = True
        await self._tasks.cancel()
        if self._listener is not None:
            self._listener.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._grace_s
        for connection in list(self.connections):
            if not connection.busy and not connection.receiving:
                connection.close()
        await self._settled(lambda: not any(c.owing for c in self.connections), until - loop.time())
        await self._cut()

    async def _cut(self) -> None:
        running = [c.task for c in self.connections if c.task is not None]
        for connection in list(self.connections):
            connection.abort()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._settled(lambda: not self.connections, LINGER_S)

    async def _settled(self, done: Callable[[], bool], timeout_s: float) -> None:
        async def until_done() -> None:
            while not done():
                self._moved.clear()
                await self._moved.wait()

        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, until_done())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for connection in list(self.connections):
                if connection.still_s() > _patience_s(connection):
                    connection.abort()


def _patience_s(connection: HttpConnection) -> float:
    if connection.unsent:
        return STALL_S
    if connection.busy:
        return math.inf  # the deadline of the request is what ends it
    if connection.closing:
        return LINGER_S
    return STALL_S if connection.reading else KEEP_ALIVE_S


def _bind(listen: str) -> socket.socket:
    host, port = parse(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections have it from here
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {listen}: {error.strerror}; choose another address with --http") from None
    bound.setblocking(False)
    return bound
