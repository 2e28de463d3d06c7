"""How a process of the mesh runs: components entered in order, loops that must not end, signals, grace.

A component is an async context manager: entering returns when it is ready to be used, leaving when it has let go of
everything. Not here: what the components are (the composition roots ``edge.agent`` and ``cloud.app``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import anyio

log = logging.getLogger(__name__)

T = TypeVar("T")

ECHO_S = 0.5
MMAP_BYTES = 32 << 20  # the most that glibc takes
TRIM_BYTES = 128 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Tasks:
    """Owns background tasks of one component; leaving cancels them and waits until they are gone.

    A loop that ends with an exception is logged and reported to ``on_failure``: nothing here dies unseen.
    """

    def __init__(self, owner: str, on_failure: Callable[[BaseException], None] | None = None) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Tasks:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}.{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def cancel(self) -> None:
        while tasks := [t for t in self._tasks if t is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("%s ended with an error", task.get_name(), exc_info=error)
        if self._on_failure is not None:
            self._on_failure(error)


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """``asyncio.wait_for`` without its flaw before Python 3.12: that one can swallow a cancellation that arrives just
    as the work is done, and a loop built on it then never ends (python/cpython#86296).

    Raises ``asyncio.TimeoutError``; None waits for ever.
    """
    with anyio.move_on_after(seconds):
        return await work
    raise asyncio.TimeoutError


class Counted:
    """Counts what goes on, so that a drain can wait for its end."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Inside, one more goes on."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self._none.set()

    async def idle(self, timeout_s: float) -> int:
        """Wait until nothing goes on; how much still does after ``timeout_s`` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, self._until_none())
        return self.count

    async def _until_none(self) -> None:
        while self.count:
            self._none.clear()
            await self._none.wait()


class Endable(Counted):
    """Counts what callers wait for, and can end it: each of them gets an error of ``ended``.

    By cancelling the task from outside, as ``asyncio.timeout`` does: once, so that what it cleans up may wait, and
    without a task for each wait, which would cost too much. A task waits for one thing at a time.
    """

    def __init__(self, ended: Callable[[], Exception]) -> None:
        super().__init__()
        self._ended = ended
        self._tasks: dict[asyncio.Task[Any], bool] = {}
        """And whether it was told."""

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Inside, the current task waits."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self._tasks[task] = False
        told, others = False, 0
        try:
            with super().one():
                try:
                    yield
                finally:
                    told = self._tasks.pop(task)
                    others = _uncancelled(task) if told else 0
        except asyncio.CancelledError:
            if not told or others:
                raise
            raise self._ended() from None

    def tell(self) -> None:
        """End what all of them wait for."""
        for task, told in self._tasks.items():
            self._tasks[task] = told or task.cancel()

    async def end(self) -> None:
        """As :meth:`tell`; returns once nobody waits any more."""
        self.tell()
        await self._until_none()


def _uncancelled(task: asyncio.Task[Any]) -> int:
    """Take our cancellation back; how many others there are (Python 3.10 cannot tell)."""
    uncancel = getattr(task, "uncancel", None)
    return uncancel() if uncancel is not None else 0


def keep_large_buffers() -> None:
    """Have glibc reuse the memory of request bodies instead of giving it back to the kernel after each.

    Without this every body over 128 KiB is mapped, faulted in page by page and unmapped again: measured at 602 KB and 8
    connections, it made the agent 2.7 times slower. At most ``TRIM_BYTES`` of free memory are kept. An operator's own
    MALLOC_* variables win; other C libraries have no such dials and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)


@contextlib.asynccontextmanager
async def stop_on_signals() -> AsyncIterator[asyncio.Event]:
    """Yields an event that SIGTERM and SIGINT set; a second signal ends the process at once.

    Wrappers pass on what the whole process group got already, so the same order twice in a moment counts once.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    first = loop.time()

    def on_signal(number: int) -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
        elif loop.time() - first > ECHO_S:
            log.warning("second signal, leaving without grace")
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
