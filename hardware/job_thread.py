"""One thread that does blocking work for an event loop, in order, and wakes the loop once per batch of results.

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


class JobThread:
    """Belongs to the running loop. The thread is a daemon: a job that never ends must not keep the process alive."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._outcomes: deque[tuple[_Job, Any, Exception | None]] = deque()
        self._woken = False
        self._pending: set[asyncio.Future[Any]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], settled: Callable[[], None] | None = None) -> asyncio.Future[Any]:
        """Do ``work`` on the thread, unless the future is done before its turn comes.

        ``settled`` is called on the loop once the job is off the thread, before its future is resolved.
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
        """Return once the job in progress is done and the thread is gone."""
        self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

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
        if not self._ended.done():
            self._ended.set_result(None)
