"""Threads that do blocking work for an event loop, begun in order, and wake the loop once per batch of results.

A thread pool of the loop would cost two wakes and two locks per job. Not here: what the work is (``inline_runtime``).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple


class _Job(NamedTuple):
    future: asyncio.Future[Any]
    work: Callable[[], Any]
    settled: Callable[[], None] | None


class JobThreads:
    """Belongs to the running loop. Threads are daemons: a job that never ends must not keep the process alive."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._outcomes: deque[tuple[_Job, Any, Exception | None]] = deque()
        self._woken = False
        self._pending: set[asyncio.Future[Any]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        self._left = count
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], Any], settled: Callable[[], None] | None = None) -> asyncio.Future[Any]:
        """Do ``work`` on a thread, unless the future is done before its turn comes.

        ``settled`` is called on the loop once the job is off its thread, before its future is resolved.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending.add(future)
        self._jobs.put(_Job(future, work, settled))
        return future

    def fail_pending(self, make: Callable[[], Exception]) -> None:
        for future in self._pending:
            if not future.done():
                future.set_exception(make())

    async def close(self) -> None:
        """Return once the jobs in progress are done and the threads are gone."""
        for _ in self._threads:
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self.join()

    def join(self) -> None:
        """Block until the threads are gone, which :meth:`close` has told to go."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            error: Exception | None = None
            if not job.future.done():
                try:
                    result = job.work()
                except Exception as raised:  # noqa: BLE001 - it belongs to whoever awaits the future
                    error = raised
            self._outcomes.append((job, result, error))
            if not self._woken:
                self._woken = True
                self._loop.call_soon_threadsafe(self._settle)
        self._loop.call_soon_threadsafe(self._end)

    def _settle(self) -> None:
        self._woken = False  # before the first pop, so that what is appended meanwhile is popped here or wakes again
        while self._outcomes:
            job, result, error = self._outcomes.popleft()
            self._pending.discard(job.future)
            if job.settled is not None:
                job.settled()
            if job.future.done():
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)

    def _end(self) -> None:
        self._settle()
        self._left -= 1
        if self._left == 0:
            self._ended.set_result(None)
