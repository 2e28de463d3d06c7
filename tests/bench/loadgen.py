"""An HTTP/1.1 load generator on keep-alive connections, each of which sends its next request when a reply is whole: at
once (a closed loop), or at its turn where requests are due at a rate (an open one).

The request is one prebuilt byte string in one write; a reply is framed by Content-Length only. Every reply's status and
length are checked, the first and the last of each connection go through the caller's verifier, and anything wrong
ends that connection as an error. It runs in a process of its own (:func:`own_process`), so that on two cores the
server has one to itself.

Beside ``wrk -t1`` (4.1.0) on the bare uvicorn echo with 64-byte requests it adds about 11 us a request at 1 connection,
some 0.85 of wrk's rate there, and is level within noise at 8: up to 36,000 requests/s, each of which costs 16 us of CPU
here (4 of them Python) and 28 in the echo. Not here: what to ask and what is right (``models``), tables (``serving``).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import re
import time
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

from tests.bench.stats import percentile

Verify = Callable[[bytes, bytes], str]
"""Head and body of a reply to what is wrong with it, empty if nothing is. Must pickle."""

FIRST_BUFFER = 64 * 1024
MAX_RATE = 200_000
"""Requests/s that the array of latencies is laid out for."""
SHORTEST_S, IN_TIME_S = 0.001, 0.002
"""Timers count milliseconds: a request that leaves so soon after it was due is in time."""
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Window:
    """How long to measure, after how long a warm-up, in seconds."""

    seconds: float = 1.0
    warmup_s: float = 0.2


@dataclass(frozen=True)
class Job:
    """What to send, where, and for how long. ``request`` is head and body."""

    host: str
    port: int
    request: bytes
    verify: Verify
    connections: int = 1
    window: Window = Window()
    grace_s: float = 10.0
    """How long after the window outstanding replies may take before they count as errors."""
    rate: float = 0.0
    """Requests/s that are due whatever became of those before; a latency counts from then. 0 is a closed loop."""


@dataclass(frozen=True)
class Sample:
    """What came back: ``requests`` and latencies (0 if there were none) are those answered inside the window."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    answered: int
    """Replies in all, warm-up included."""
    errors: int
    error: str = ""
    """The first error."""

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class _Run:
    """State that the connections of one job share."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.latencies = array("d", bytes(8 * int(MAX_RATE * max(job.window.seconds, 0.1))))
        self.requests = self.answered = self.errors = 0
        self.error = ""
        self.recording = self.stopping = False
        self.open = job.connections
        self.done = asyncio.get_running_loop().create_future()
        self.began = self.ended = 0.0
        self._free: deque[_Connection] = deque()
        self._due: deque[float] = deque()
        """Moments of requests that wait for a free connection."""
        self._next = time.perf_counter()

    def ready(self, connection: _Connection) -> None:
        """The connection has nothing to wait for."""
        if not self.job.rate:
            connection.send(time.perf_counter())
        elif self._due:
            connection.send(self._due.popleft())
        else:
            self._free.append(connection)

    def tick(self) -> None:
        """Send what is due by now on the connections that are free."""
        now = time.perf_counter()
        while self._next <= now:
            self._due.append(now if now - self._next <= IN_TIME_S else self._next)
            self._next += 1.0 / self.job.rate
        while self._due and self._free:
            self._free.popleft().send(self._due.popleft())
        if not self.stopping:
            asyncio.get_running_loop().call_later(max(self._next - now, SHORTEST_S), self.tick)

    def begin(self) -> None:
        self.recording, self.began = True, time.perf_counter()

    def end(self) -> None:
        self.recording, self.stopping = False, True
        self.ended = time.perf_counter()
        for connection in self._free:
            connection.finish()
        self._due.clear()

    def fail(self, what: str) -> None:
        self.errors += 1
        self.error = self.error or what

    def closed(self) -> None:
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)

    def sample(self) -> Sample:
        ranked = sorted(self.latencies[: self.requests])
        p50, p99 = (percentile(ranked, q) * 1e3 if ranked else 0.0 for q in (0.50, 0.99))
        seconds = max((self.ended or time.perf_counter()) - (self.began or time.perf_counter()), 1e-9)
        return Sample(self.requests, seconds, p50, p99, self.answered, self.errors, self.error)


class _Connection(asyncio.BufferedProtocol):
    """One connection; replies land in a buffer that is reused."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._request = run.job.request
        self._buffer = bytearray(FIRST_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = self._need = self._body_at = 0
        self._body_bytes = -1
        self._sent = 0.0
        self._finished = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._run.ready(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._finished:
            self.finish(f"the server closed the connection {self._filled} bytes into a reply ({exc})")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :] if self._filled else self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if not self._need and not self._read_head():
            return
        if self._filled == self._need:
            self._reply()
        elif self._filled > self._need:
            self.finish(f"{self._filled - self._need} bytes beyond the Content-Length")

    def send(self, due: float) -> None:
        self._filled = self._need = 0
        self._sent = due
        self._transport.write(self._request)

    def _read_head(self) -> bool:
        """Frame the reply; False until its head is whole, or when the connection failed."""
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled == len(self._buffer):
                self.finish(f"no end of head within {self._filled} bytes")
            return False
        length = CONTENT_LENGTH.search(self._buffer, 0, end + 2)
        if length is None or not self._buffer.startswith(b"HTTP/1.1 200"):
            self.finish(f"not a 200 with a Content-Length: {bytes(self._buffer[: min(self._filled, 400)])!r}")
            return False
        self._body_at, body_bytes = end + 4, int(length[1])
        if self._body_bytes not in (-1, body_bytes):
            self.finish(f"a body of {body_bytes} bytes after one of {self._body_bytes}")
            return False
        self._need = self._body_at + body_bytes
        if self._need > len(self._buffer):
            self._grow()
        return True

    def _grow(self) -> None:
        larger = bytearray(self._need + 4096)
        larger[: self._filled] = self._view[: self._filled]
        self._buffer, self._view = larger, memoryview(larger)

    def _reply(self) -> None:
        now, run = time.perf_counter(), self._run
        run.answered += 1
        if run.recording:
            run.latencies[run.requests] = now - self._sent
            run.requests += 1
        if (self._body_bytes < 0 or run.stopping) and (wrong := self._verify()):
            self.finish(wrong)
        elif run.stopping:
            self.finish()
        else:
            self._run.ready(self)

    def _verify(self) -> str:
        self._body_bytes = self._need - self._body_at
        head, body = bytes(self._view[: self._body_at]), bytes(self._view[self._body_at : self._need])
        return self._run.job.verify(head, body)

    def finish(self, wrong: str = "") -> None:
        if self._finished:
            return
        self._finished = True
        if wrong:
            self._run.fail(wrong)
        self._transport.abort()
        self._run.closed()


async def _drive(job: Job) -> Sample:
    loop = asyncio.get_running_loop()
    run = _Run(job)
    connecting = (loop.create_connection(lambda: _Connection(run), job.host, job.port) for _ in range(job.connections))
    transports = [transport for transport, _ in await asyncio.gather(*connecting)]
    window_end_s = job.window.warmup_s + job.window.seconds
    loop.call_later(job.window.warmup_s, run.begin)
    loop.call_later(window_end_s, run.end)
    if job.rate:
        run.tick()
    try:
        await asyncio.wait_for(run.done, window_end_s + job.grace_s)
    except asyncio.TimeoutError:
        for _ in range(run.open):
            run.fail(f"a reply was not whole {job.grace_s} s after the window")
    finally:
        for transport in transports:
            transport.abort()
    return run.sample()


def run(job: Job) -> Sample:
    """Run one job to its end in this process. Raises ``OSError`` where the server cannot be reached."""
    return uvloop.run(_drive(job))


def own_process() -> ProcessPoolExecutor:
    """An executor of one fresh process, for ``submit(run, job)``; nothing collects garbage in it while it measures."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=gc.disable)


def any_reply(head: bytes, body: bytes) -> str:
    """Accept every 200."""
    return ""


def main() -> None:
    """Load one URL with a POST of zero bytes and print a JSON document: for comparing with another generator."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("url")
    parser.add_argument("--body-bytes", type=int, default=64)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    url = urlsplit(arguments.url)
    head = f"POST {url.path or '/'} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {arguments.body_bytes}\r\n\r\n"
    request = head.encode() + bytes(arguments.body_bytes)
    gc.disable()
    host, port = url.hostname or "127.0.0.1", url.port or 80
    sample = run(Job(host, port, request, any_reply, arguments.connections, Window(arguments.seconds)))
    print(json.dumps(asdict(sample) | {"per_second": sample.per_second}))


if __name__ == "__main__":
    main()
