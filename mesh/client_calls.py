"""The calls of an SDK client, between its opening and its closing: none goes on in vain once it is closed.

Not here: what the calls do (``client``, ``client_sequence``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any, TypeVar

from mesh.lifecycle import Endable

T = TypeVar("T")

NOT_OPEN = "the client is not open: use it in a with statement"
CLOSED = "the client was closed before the answer came"
ELSEWHERE = "the client was opened in another event loop, or before a fork: open one there"


class Calls:
    """Raises ``RuntimeError`` for every use that no door could answer: that is the application's own fault."""

    def __init__(self) -> None:
        self._used = False
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None
        """Loop and process in which it is open."""
        self._waiting = Endable(lambda: RuntimeError(CLOSED))
        self._streams: set[AsyncGenerator[Any, None]] = set()

    def opening(self) -> None:
        if self._used:
            raise RuntimeError("a client is opened once: make another one")
        self._used = True

    def opened(self) -> None:
        self._home = asyncio.get_running_loop(), os.getpid()

    async def close(self) -> None:
        """Tell who waits, and end the streams that nobody waits for just now."""
        self._home = None
        await self._waiting.end()
        while self._streams:
            await self._streams.pop().aclose()

    def check(self) -> None:
        """Whether a call can be made here and now."""
        if self._home is None:
            raise RuntimeError(NOT_OPEN)
        if self._home != (asyncio.get_running_loop(), os.getpid()):
            raise RuntimeError(ELSEWHERE)

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Inside, an answer is awaited."""
        self.check()
        with self._waiting.one():
            yield

    async def each(self, answers: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same answers, for as long as the client is open. It closes ``answers``."""
        self._streams.add(answers)
        try:
            while True:
                with self.one():
                    try:
                        answer = await anext(answers)
                    except StopAsyncIteration:
                        return
                yield answer
        finally:
            if answers in self._streams:  # else the client is closing it
                self._streams.remove(answers)
                await answers.aclose()
