"""A loop whose clock jumps to the next timer instead of waiting, and a device that takes as long as it is told to.

For tests and benchmarks of what is decided over time: they run as fast as the code does, and come out the same each
time. Only what takes its time from the loop or from ``time.monotonic`` in the patched modules fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from unittest import mock

from hardware.backend import RawTensor
from hardware.errors import HardwareError

T = TypeVar("T")
MODULES = ("edge.executor", "edge.forecast", "edge.warmup", "mesh.deadline")
"""Modules that read ``time.monotonic`` and take part."""


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: the time to wait is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("something is awaited that nothing will ever bring about")
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class _Clock:
    """Stands in for the module ``time``."""

    def __init__(self, loop: _VirtualLoop) -> None:
        self.monotonic = loop.time
        self.sleep = time.sleep


def run(work: Coroutine[Any, Any, T], modules: Sequence[str] = ()) -> T:
    """Run to the end in virtual time, which further ``modules`` may read too; waiting for nothing is an error."""
    loop = _VirtualLoop()
    try:
        with _patched(_Clock(loop), (*MODULES, *modules)):
            try:
                return loop.run_until_complete(work)
            finally:
                loop.run_until_complete(_end_others())
    finally:
        loop.close()


async def _end_others() -> None:
    """What a failed test leaves behind must not be found by the collector in the midst of another."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test run so."""

    @functools.wraps(test)
    def timeless(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return timeless


def hold_up_the_loop(seconds: float) -> None:
    """Let so much time pass with nothing done meanwhile."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _VirtualLoop)
    loop.jumping.now += seconds


@contextlib.contextmanager
def _patched(clock: _Clock, modules: Sequence[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch(f"{module}.time", clock))
        yield


class VirtualRuntime:
    """Runs one thing at a time; ``cost`` is its milliseconds by rows, ``noise`` the spread of a log-normal factor."""

    def __init__(self, cost: Callable[[int], float], noise: float = 0.0, seed: int = 0) -> None:
        self.cost = cost
        self.alive = True
        self.runs: list[int] = []
        """Rows of each run."""
        self.abandoned = 0
        self._noise = noise
        self._luck = random.Random(seed)
        self._free = 0.0

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[list[RawTensor]]:
        loop = asyncio.get_running_loop()
        rows = inputs[0].shape[0]
        self.runs.append(rows)
        took_s = self.cost(rows) * self._luck.lognormvariate(0.0, self._noise) / 1e3
        self._free = max(self._free, loop.time()) + took_s
        future: asyncio.Future[list[RawTensor]] = loop.create_future()
        loop.call_at(self._free, self._end, future, inputs)
        return future

    def answer(self, inputs: Sequence[RawTensor]) -> list[RawTensor]:
        """What a run gives back; may raise a ``HardwareError``."""
        rows = inputs[0].shape[0]
        return [RawTensor("Y", "UINT8", (rows,), bytes(rows))]

    def _end(self, future: asyncio.Future[list[RawTensor]], inputs: Sequence[RawTensor]) -> None:
        if future.done():
            return
        try:
            future.set_result(self.answer(inputs))
        except HardwareError as error:
            future.set_exception(error)

    def abandon(self, run: asyncio.Future[list[RawTensor]]) -> None:
        self.abandoned += 1
