"""An event loop on a thread of its own, for code that has none: work goes in, and whoever sent it waits.

Not here: what is run there (``sync_client``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from mesh.client_calls import CLOSED, ELSEWHERE, NOT_OPEN

T = TypeVar("T")


class LoopThread:
    """Between :meth:`start` and :meth:`stop` any thread may send work, but its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._door = threading.RLock()  # a generator that is collected inside sends work too
        self._thread: threading.Thread | None = None
        self._process = 0
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event

    def start(self) -> None:
        with self._door:
            if self.open:
                raise RuntimeError("the client is open already")
            running = threading.Event()
            self._process = os.getpid()
            self._thread = threading.Thread(target=self._run, args=(running,), name=self._name, daemon=True)
            self._thread.start()
            running.wait()

    @property
    def open(self) -> bool:
        """In this process: a fork takes no threads along."""
        return self._thread is not None and self._process == os.getpid()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` comes to. Whatever ends the waiting, as Ctrl-C does, ends the work."""
        future: concurrent.futures.Future[T] | None = None
        try:
            future = self._send(work)
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError(CLOSED) from None
        except BaseException:
            if future is not None:
                future.cancel()
            raise

    def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something ended, where that did not happen with the loop. Waits for it, except on the loop's thread."""
        if not self.open:
            work.close()
        elif threading.current_thread() is self._thread:  # what was left was collected here
            asyncio.run_coroutine_threadsafe(work, self._loop)
        else:
            self.call(work)

    def stop(self) -> None:
        """What is left is cancelled, and waited for."""
        if not self.open:
            return
        with self._door:
            thread, self._thread = self._thread, None
            self._loop.call_soon_threadsafe(self._stopped.set)
        if thread is not None:
            thread.join()

    def leave(self) -> None:
        """Nothing is waited for any more: the interpreter ends, and takes its threads along."""
        with self._door:
            self._thread = None

    def _send(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """One after the other with :meth:`stop`, so that nothing is sent to where nobody takes it."""
        if self._thread is not None and not self.open:  # the lock may have been held when the fork came
            work.close()
            raise RuntimeError(ELSEWHERE)
        with self._door:
            if not self.open:
                work.close()
                raise RuntimeError(NOT_OPEN)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, running: threading.Event) -> None:
        asyncio.run(self._until_stopped(running))

    async def _until_stopped(self, running: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        running.set()
        await self._stopped.wait()
