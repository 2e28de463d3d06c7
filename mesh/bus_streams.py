"""Streams over the bus, at the end that answers: parts wait here until the caller fetches them.

The caller fetches by request (``subjects.stream``): it is answered as soon as there is a part, with all that are there.
So the caller sets the pace, nothing is sent that it has no room for, and errors, silence and a lost bus are those of
any request. Who neither fetches nor says that it is busy for ``IDLE_S`` has left, whether there is anything to fetch or
not. Not here: the caller's end
(``hop_bus``), the subjects (``bus_door``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from mesh import hop
from mesh.errors import InvalidRequest, MeshError, NodeLost, Overloaded, PayloadTooLarge
from mesh.hop import Reply
from mesh.lifecycle import Tasks, within
from mesh.oip import parts

log = logging.getLogger(__name__)

STREAM = "stream"
"""The operation (``hop.OP``) that asks for a stream."""
NAME = "mesh-stream"
"""Of the stream: the caller's, if it gives one that nobody can guess, else the node's."""
FETCH = "mesh-fetch"
"""The subject under which the parts are fetched."""
PART = "mesh-part"
"""Number of the first frame in an answer, from 0: an answer that got lost is noticed."""
KEEP, END = "keep", "end"
"""Operations on the subject of the fetches: the caller needs time for what it has, the caller leaves."""

WINDOW = 16
WINDOW_BYTES = 4 << 20
"""Frames that wait, and their bytes; beyond either the producer waits."""
IDLE_S = 15.0
KEEP_S = 5.0
"""How often a caller says that it is busy."""
FIRST_S, FETCH_S = 0.25, 5.0
"""A request for a stream and a fetch are answered after this even if nothing came: the caller learns the stream's name,
and that it lives."""
MOST = 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{16,64}")


class _Stream:
    """Frames that wait to be fetched."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        """Headers of the first answer: where it runs."""
        self.task: asyncio.Task[None] | None = None
        self.taken = 0
        self.over = False
        """Nothing more is added or can be fetched."""
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._fetching = 0
        self._moved = asyncio.Event()
        self._frames: deque[bytes] = deque()
        self._nbytes = 0

    async def put(self, frame: bytes) -> None:
        """Wait for room."""
        await self._until(lambda: len(self._frames) < WINDOW and self._nbytes < WINDOW_BYTES)
        self._frames.append(frame)
        self._nbytes += len(frame)
        self._moved.set()

    async def fetched(self) -> None:
        await self._until(lambda: not self._frames)

    async def filled(self, timeout_s: float) -> None:
        """Wait for a frame, for the caller; returns without one after ``timeout_s``, or once it is over."""
        self._fetching += 1
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(timeout_s, self._until(lambda: bool(self._frames) or self.over))
        finally:
            self._fetching -= 1
            self.heard()

    def heard(self) -> None:
        """The caller gave a sign."""
        self._heard = self._loop.time()

    def silent_s(self) -> float:
        """For how long the caller gave none; while it fetches it is there."""
        return 0.0 if self._fetching else self._loop.time() - self._heard

    def close(self) -> None:
        self.over = True
        self._moved.set()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._moved.clear()
            await self._moved.wait()

    def take(self, max_bytes: int) -> bytes:
        """All that are there, as far as they fit into ``max_bytes``; the first in any case."""
        taken = bytearray()
        while self._frames and (not taken or len(taken) + len(self._frames[0]) <= max_bytes):
            taken += self._frames.popleft()
            self.taken += 1
        self._nbytes -= len(taken)
        self._moved.set()
        return bytes(taken)


class BusStreams:
    """Of one node. Enter :meth:`running`; leaving ends them all."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._tasks = Tasks("bus streams")

    def __len__(self) -> int:
        return len(self._streams)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._tasks:
            try:
                yield
            finally:
                self.end_all()

    def open(self, replies: AsyncGenerator[Reply, None], max_bytes: int, name: str = "") -> str:
        """Keep a stream; the name under which its frames of at most ``max_bytes`` are fetched.

        Raises ``Overloaded``, or ``InvalidRequest`` for a name that is none.
        """
        if len(self._streams) >= MOST:
            raise Overloaded(f"this node has {MOST} streams over the bus already")
        name = name or secrets.token_hex(16)
        if _NAME.fullmatch(name) is None or name in self._streams:
            raise InvalidRequest("the name of a stream has 16 to 64 letters, digits, '_' or '-' and is not used twice")
        stream = self._streams[name] = _Stream()
        stream.task = self._tasks.start(self._fill(name, stream, replies, max_bytes), "stream")
        return name

    async def fetch(self, name: str, max_bytes: int, wait_s: float = FETCH_S) -> tuple[bytes, dict[str, str]]:
        """Frames, at least one if one comes within ``wait_s``, and headers for them. Raises ``NodeLost``."""
        stream = self._streams.get(name)
        if stream is None:
            raise _not_here()
        await stream.filled(wait_s)
        if stream.over:
            raise _not_here()
        number = stream.taken
        said = {} if number else stream.said
        return stream.take(max_bytes), said | {PART: str(number)}

    def keep(self, name: str) -> None:
        """The caller is there, and has no room for more yet."""
        stream = self._streams.get(name)
        if stream is not None:
            stream.heard()

    def end(self, name: str) -> bool:
        """The caller has left; whether there was such a stream."""
        stream = self._streams.pop(name, None)
        if stream is None or stream.task is None:
            return False
        stream.close()
        stream.task.cancel()
        return True

    def end_all(self) -> None:
        """The bus is gone, and what was on its way; or the node is leaving."""
        for name in tuple(self._streams):
            self.end(name)

    async def fetched(self, timeout_s: float) -> None:
        """Wait until nobody has anything left to fetch, at most for ``timeout_s``."""
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=max(timeout_s, 0.0))

    async def _fill(self, name: str, stream: _Stream, replies: AsyncGenerator[Reply, None], max_bytes: int) -> None:
        watching = self._tasks.start(self._watch(name, stream), "watch")
        try:
            await stream.put(await _pump(stream, replies, max_bytes))
            await stream.fetched()
        finally:
            watching.cancel()
            stream.close()
            if self._streams.get(name) is stream:
                del self._streams[name]

    async def _watch(self, name: str, stream: _Stream) -> None:
        """End it when its caller has left without a word."""
        left_s = IDLE_S
        while left_s > 0.0:
            await asyncio.sleep(left_s)
            left_s = IDLE_S - stream.silent_s()
        log.debug("nobody fetches from a stream any more, it is ended")
        self.end(name)


def _not_here() -> NodeLost:
    return NodeLost("the stream is not here any more: it has ended, or nobody fetched from it for too long")


async def _pump(stream: _Stream, replies: AsyncGenerator[Reply, None], max_bytes: int) -> bytes:
    """Every answer into the stream; the frame that ends it."""
    try:
        async with contextlib.aclosing(replies):
            async for reply in replies:
                if not stream.said:
                    stream.said = hop.reply_headers(reply, want_load=reply.load is not None)
                    stream.said.pop(hop.HEADER_LENGTH, None)
                await stream.put(_frame(reply, max_bytes))
    except MeshError as error:
        return parts.error_frame(error)
    return parts.END


def _frame(reply: Reply, max_bytes: int) -> bytes:
    frame = b"".join(parts.frame(reply.body))
    if len(frame) > max_bytes:
        raise PayloadTooLarge(f"an answer of {len(frame)} bytes is over what the bus takes: ask by HTTP")
    return frame
