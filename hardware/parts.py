"""The answers of a run that streams, taken one by one. Not here: who produces them (``runtime``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hardware.backend import RawTensor

Answer = list[RawTensor]


class Parts:
    """An iterator for one consumer; the producer goes on when the part before was taken.

    ``ended`` is done when the runtime holds nothing for the run any longer: with a result after the last part, else
    with the error, which the iterator raises too once the parts before it are taken. To end it early pass it to
    ``Runtime.abandon``; a consumer that just stops to iterate holds the producer for good.
    """

    def __init__(self, ended: asyncio.Future[Answer]) -> None:
        self.ended = ended
        self._part: Answer | None = None
        self._go_on: Callable[[], None] | None = None
        self._came: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        ended.add_done_callback(self._on_end)

    def put(self, part: Answer, go_on: Callable[[], None]) -> None:
        """For the runtime: the next part, and what to call when it is taken. Raises ``ValueError`` for one too many."""
        if self._part is not None:
            raise ValueError("a part came before the last one was taken")
        self._part, self._go_on = part, go_on
        self._wake()

    def give_up(self, error: Exception) -> None:
        """The consumer gets ``error`` in place of whatever else would come. The run is not ended by that."""
        self._error = error
        self._wake()

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Answer:
        while self._part is None or self._error is not None:
            if self._error is not None:
                raise self._error
            if self.ended.done():
                self.ended.result()
                raise StopAsyncIteration
            self._came = self.ended.get_loop().create_future()
            await self._came
        part, go_on, self._part, self._go_on = self._part, self._go_on, None, None
        if go_on is not None and not self.ended.done():
            go_on()
        return part

    def _on_end(self, ended: asyncio.Future[Answer]) -> None:
        if not ended.cancelled():
            ended.exception()  # it is told to whoever iterates, if anybody does
        self._wake()

    def _wake(self) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(None)
