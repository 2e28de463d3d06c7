"""A connection over a transport in memory: framing whatever the pieces, order, back-pressure, leaving.

Not here: real sockets (``test_http_server``), the door behind it (``tests/integration/test_http_wire``).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import MeshError
from mesh.http_answer import POURED, Answer
from mesh.http_connection import MAX_HEAD, ROOM, HttpConnection, Request
from mesh.http_door import refusal
from tests.pipe import Pipe

LIMIT = 1 << 20
Asked = tuple[str, str, bytes]


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0)


class Server:
    """What a connection knows of its server."""

    def __init__(self) -> None:
        self.draining = False
        self.max_body_bytes = LIMIT
        self.connections: set[HttpConnection] = set()

    def moved(self) -> None: ...

    def refuse(self, error: MeshError) -> Answer:
        return refusal(error)


class Caller:
    """The other end, and the application behind this one: it echoes, and holds what it is told to hold."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self.cancelled = 0
        self.held = asyncio.Event()
        self.held.set()
        self.answer: Answer | None = None
        self.fails = False
        self.made, self.ended = 0, 0
        """Pieces of a streamed answer, and streams that were closed."""
        self.pipe = Pipe()
        self.server = Server()
        self.connection = self.pipe.protocol = HttpConnection(self._app, self.server)
        self._at_once = 0
        self.connection.connection_made(self.pipe)

    async def _app(self, request: Request) -> Answer:
        self.asked.append((request.head.method, request.head.path, bytes(request.body)))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(0)
            await self.held.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._at_once -= 1
        if self.fails:
            raise ZeroDivisionError
        return self.answer or Answer(200, b"", (bytes(request.body),))

    async def send(self, data: bytes, steps: Iterator[int] | None = None) -> int:
        """Bytes that were taken: all, unless the connection does not read on."""
        taken = 0
        while taken < len(data) and not self.pipe.closed:
            for _ in range(20):
                if self.pipe.paused:
                    await asyncio.sleep(0)
            if self.pipe.paused:
                break
            room = self.connection.get_buffer(-1)
            assert room.nbytes
            count = min(room.nbytes, len(data) - taken, next(steps) if steps else MAX_HEAD)
            room[:count] = data[taken : taken + count]
            self.connection.buffer_updated(count)
            taken += count
        return taken

    async def answered(self) -> None:
        await until(lambda: not self.connection.busy)


def request(path: bytes = b"/", body: bytes = b"", chunk: int = 0) -> bytes:
    """As a client would send it, in chunks of ``chunk`` bytes if that is not 0."""
    if not chunk:
        return b"POST %b HTTP/1.1\r\nHost: door\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body)
    parts = [body[at : at + chunk] for at in range(0, len(body), chunk)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"POST %b HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (path, coded)


def cycle(steps: list[int]) -> Iterator[int]:
    while True:
        yield from steps


BODIES = st.one_of(st.binary(max_size=40), st.integers(0, 3 * ROOM).map(lambda size: b"x" * size))
STEPS = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 2 * MAX_HEAD)), min_size=1, max_size=20)


@settings(deadline=None)
@given(st.lists(st.tuples(BODIES, st.sampled_from([0, 0, 1, 7, 5000])), max_size=6), STEPS)
def test_any_pieces_give_the_same_requests_in_order(sent: list[tuple[bytes, int]], steps: list[int]) -> None:
    async def play() -> None:
        caller = Caller()
        stream = b"".join(request(b"/%d" % at, body, chunk) for at, (body, chunk) in enumerate(sent))
        assert await caller.send(stream, cycle(steps)) == len(stream)
        await caller.answered()
        assert caller.asked == [("POST", f"/{at}", body) for at, (body, _) in enumerate(sent)]
        assert caller.most_at_once <= 1
        answers = b"".join(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(b), b) for b, _ in sent)
        assert caller.pipe.sent == answers

    asyncio.run(play())


@settings(deadline=None)
@given(
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n", request(body=b"abc"), request(body=b"a", chunk=1)[:-5]]),
    st.lists(
        st.one_of(st.binary(max_size=200), st.sampled_from([b"\r\n", b"\r\n\r\n", b"\n", b":", b"\0"])), max_size=9
    ),
    STEPS,
)
def test_garbage_is_answered_or_waited_on(start: bytes, garbage: list[bytes], steps: list[int]) -> None:
    async def play() -> None:
        caller = Caller()
        stream = start + b"".join(garbage)
        assert await caller.send(stream, cycle(steps)) == len(stream)
        await caller.answered()
        assert caller.pipe.sent.count(b"connection: close") <= 1
        assert not caller.pipe.closed

    asyncio.run(play())


async def test_an_idle_connection_holds_little() -> None:
    caller = Caller()
    await caller.send(request(body=b"x" * 3 * ROOM))
    await caller.send(request(body=b"x" * 3 * ROOM, chunk=100))
    await caller.send(b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD - 100) + b"\r\n\r\n")
    await caller.answered()
    assert len(caller.asked) == 3
    assert caller.connection.get_buffer(-1).nbytes == ROOM


async def test_a_caller_that_reads_no_answers_has_no_more_made() -> None:
    caller = Caller()
    caller.pipe.stuck = True
    caller.answer = Answer(200, b"", (b"x" * 100_000,))
    taken = 0
    for _ in range(400):  # one at a time, as the attack is
        taken += await caller.send(request())
        await asyncio.sleep(0)
    assert len(caller.asked) == 1
    assert taken <= ROOM + len(request())
    caller.pipe.read_all()
    await caller.answered()
    assert len(caller.asked) == taken // len(request())
    assert caller.most_at_once == 1


async def test_a_request_does_not_keep_its_body_while_its_answer_is_read() -> None:
    caller = Caller()
    kept: list[weakref.ref[Any]] = []
    inner = caller.connection._app

    async def app(request: Request) -> Answer:
        assert isinstance(request.body, memoryview)
        kept.append(weakref.ref(request.body.obj))  # the array that owns the memory
        await inner(request)
        return Answer(200, b"", (b"x" * 100_000,))

    caller.connection._app = app
    caller.pipe.stuck = True
    await caller.send(request(body=b"x" * 2 * ROOM))
    await until(lambda: bool(caller.pipe.sent))
    assert caller.connection.busy
    assert kept[0]() is None
    caller.pipe.abort()
    await caller.answered()


async def test_a_caller_that_leaves_takes_its_request_along() -> None:
    caller = Caller()
    caller.held.clear()
    await caller.send(request() * 2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.pipe.abort()
    await caller.answered()
    assert (len(caller.asked), caller.cancelled) == (1, 1)
    assert caller.connection not in caller.server.connections


async def test_a_caller_that_leaves_while_its_answer_goes_out_ends_the_wait() -> None:
    caller = Caller()
    caller.pipe.stuck = True
    caller.answer = Answer(200, b"", (b"x" * 100_000,))
    await caller.send(request() * 2)
    await until(lambda: bool(caller.pipe.sent))
    caller.pipe.abort()
    await caller.answered()
    assert len(caller.asked) == 1


async def test_an_application_that_fails_leaves_nobody_waiting() -> None:
    caller = Caller()
    caller.fails = True
    await caller.send(request())
    task = caller.connection.task
    assert task is not None
    with pytest.raises(ZeroDivisionError):
        await task
    assert caller.pipe.closed


async def test_the_line_that_some_clients_end_a_body_with_is_read_past() -> None:
    caller = Caller()
    for _ in range(2):
        await caller.send(request(body=b"abc") + b"\r\n")
        await caller.answered()
    assert [body for _, _, body in caller.asked] == [b"abc", b"abc"]


async def test_a_head_is_given_the_time_of_one_stall_however_it_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller()
    clock = asyncio.get_running_loop().time()
    monkeypatch.setattr(caller.connection._loop, "time", lambda: clock)
    await caller.send(b"GET / HT")
    clock += 20
    await caller.send(b"TP/1.1\r\nX: ")
    assert caller.connection.still_s() == pytest.approx(20)
    await caller.send(b"y\r\n\r\n")
    await caller.answered()
    assert caller.connection.still_s() == 0
    await caller.send(request(body=b"abcdef")[:-3])
    clock += 20
    await caller.send(b"d")
    assert caller.connection.still_s() == 0


async def pieces(caller: Caller, count: int, size: int) -> AsyncGenerator[bytes, None]:
    """As many as are asked for; the caller is told how many that are, and when they end."""
    caller.made = 0
    try:
        for number in range(count):
            caller.made += 1
            yield b"%04d" % number + b"x" * (size - 4)
    finally:
        caller.ended += 1


def streamed(caller: Caller, count: int, size: int = 10) -> Answer:
    return Answer(200, b"a: b\r\n", (), pieces(caller, count, size))


async def test_a_stream_goes_out_in_chunks_and_the_connection_goes_on() -> None:
    caller = Caller()
    for count in (0, 1, 3):
        caller.pipe.sent = b""
        caller.answer = streamed(caller, count)
        await caller.send(request())
        await caller.answered()
        chunks = b"".join(b"a\r\n%04dxxxxxx\r\n" % number for number in range(count))
        assert (
            caller.pipe.sent == b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        )
    assert (caller.ended, caller.pipe.ended) == (3, False)


async def test_a_stream_to_who_reads_no_chunks_ends_with_the_connection() -> None:
    for old in (request().replace(b"HTTP/1.1", b"HTTP/1.0"), request().replace(b"Host: door", b"Connection: close")):
        caller = Caller()
        caller.answer = streamed(caller, 2)
        await caller.send(old)
        await caller.answered()
        assert b"connection: close\r\n" in caller.pipe.sent
        assert caller.pipe.sent.endswith(b"0\r\n\r\n") == (b"HTTP/1.1" in old)
        assert caller.pipe.ended


async def test_an_empty_piece_does_not_end_a_stream() -> None:
    async def some() -> AsyncGenerator[bytes, None]:
        for piece in (b"", b"ab", b"", memoryview(b"cd")):
            yield piece  # type: ignore[misc]

    caller = Caller()
    caller.answer = Answer(200, b"", (), some())
    await caller.send(request())
    await caller.answered()
    assert caller.pipe.sent.endswith(b"\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")


async def test_no_more_of_a_stream_is_made_than_may_wait_for_the_caller_to_read() -> None:
    caller = Caller()
    caller.pipe.stuck = True
    caller.answer = streamed(caller, 100, POURED // 4)
    await caller.send(request())
    await until(lambda: caller.made > 0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert caller.made <= 5
    caller.pipe.read_all()
    await caller.answered()
    assert (caller.made, caller.ended) == (100, 1)


async def test_a_caller_that_leaves_ends_the_stream() -> None:
    caller = Caller()
    caller.pipe.stuck = True
    caller.answer = streamed(caller, 1000, POURED)
    await caller.send(request())
    await until(lambda: caller.made > 0 and not caller.connection._writable.is_set())
    caller.pipe.abort()
    await caller.answered()
    assert caller.ended == 1
    assert caller.made < 1000
