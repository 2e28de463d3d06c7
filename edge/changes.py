"""Waiting for a state that several parts of the agent change. Nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changed:
    """Called at every change; ``then`` is called after those that wait were woken. Belongs to one event loop."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self._then = then
        self._waiting: set[asyncio.Future[None]] = set()

    def __call__(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self._then()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds after a change, at once if it does already."""
        while not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
