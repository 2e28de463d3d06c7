"""Streams: requests of decoupled models, each of which has an instance of its model to itself until it ended.

They take no turn of the device, for most of their time they wait: for what comes next, or for their consumer. So each
model has a line of its own. Not here: requests that are answered once (``executor``), which wire they go over
(``models``).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import insort
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from edge.hardware_errors import translate
from edge.latency import Shapes
from edge.served import Served
from hardware.backend import RawTensor
from hardware.errors import HardwareError
from hardware.parts import Parts
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, ModelNotReady, Overloaded
from mesh.messages import CLASSES

LEARN = 0.1
"""Weight of a new stream in how long streams of a model last; they differ by far more than runs do."""


@dataclass(slots=True, eq=False)
class _Waiting:
    served: Served
    deadline: Deadline
    rank: tuple[int, float, int]
    """Class of priority, deadline, order of arrival."""
    turn: asyncio.Future[None]

    @property
    def granted(self) -> bool:
        turn = self.turn
        return turn.done() and not turn.cancelled() and turn.exception() is None


@dataclass(slots=True, eq=False)
class Going:
    """A stream that has its instance, until the runtime holds nothing for it any more."""

    served: Served
    runtime: Runtime
    parts: Parts
    shapes: Shapes
    deadline: Deadline
    arrived: float
    started: float
    timer: asyncio.TimerHandle | None = None
    """Fires at the deadline."""
    answers: int = 0
    expired: bool = False
    left: bool = False
    """Whether it was ended early."""
    hang: asyncio.TimerHandle | None = None
    """Fires when it goes on long after that and its deadline."""
    probe: bool = False
    """Whether it only asks for an answer, and so says nothing of how long streams last."""


class Streams:
    """Belongs to one event loop. ``on_hang`` is told of a run that goes on ``hang_s`` after its deadline."""

    def __init__(self, *, queue_limit: int, hang_s: float, on_hang: Callable[[Runtime, Served], None]) -> None:
        self._queue_limit = queue_limit
        self._hang_s = hang_s
        self._on_hang = on_hang
        self._waiting: list[_Waiting] = []
        """Of all models, in the order they go in."""
        self._order = itertools.count()
        self._closed = False
        self.going: set[Going] = set()

    async def stream(
        self, served: Served, inputs: Sequence[RawTensor], outputs: Sequence[str], deadline: Deadline, priority: int,
        *, probe: bool = False,
    ) -> AsyncGenerator[list[RawTensor], None]:  # fmt: skip
        """The answers as they come; closing it ends the run. ``deadline`` is that of the last one.

        Raises as ``Executor.infer`` does, before or between answers.
        """
        if not served.ready:
            raise _not_loaded(served)
        deadline.check()
        now = served.last_used = time.monotonic()
        served.in_flight += 1
        try:
            await self._turn(served, deadline, priority)
            going = self._start(served, inputs, outputs, deadline, now)
            going.probe = probe
            try:
                async for part in going.parts:
                    self._answered(going)
                    yield part
            except HardwareError as error:
                raise translate(error) from None
            finally:
                self._leave(going)
        finally:
            served.in_flight -= 1

    def wait_ms(self, served: Served) -> float:
        """How long a new stream would wait for an instance, behind all that do."""
        if served.running < served.instances:
            return 0.0
        return self._ahead_ms(served, sum([waiting.served is served for waiting in self._waiting]))

    def lost(self, runtime: Runtime) -> None:
        """The runtime is gone: what waits for it need not wait any longer."""
        for waiting in self._waiting:
            if waiting.served.runtime in (runtime, None) and not waiting.turn.done():
                waiting.turn.set_exception(_not_loaded(waiting.served))

    def close(self) -> None:
        """Set no timer any more and forget those that are set; what goes on ends with its runtime."""
        self._closed = True
        for going in self.going:
            _cancel(going.timer, going.hang)

    async def _turn(self, served: Served, deadline: Deadline, priority: int) -> None:
        """Return with an instance; :meth:`_free` gives it back."""
        if served.running < served.instances:
            served.running += 1
            return
        level = min(priority or served.priority or CLASSES, CLASSES)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(served, deadline, (level, deadline.at, next(self._order)), loop.create_future())
        self._admit(waiting)
        insort(self._waiting, waiting, key=lambda other: other.rank)
        now = time.monotonic()
        until = deadline.recall_at if now < deadline.recall_at < deadline.at else deadline.at
        timer = loop.call_at(until, self._too_late, waiting)
        try:
            await waiting.turn
        except BaseException:
            if waiting.granted:  # cancelled in the same moment
                self._free(served)
            raise
        finally:
            timer.cancel()
            self._waiting.remove(waiting)

    def _admit(self, waiting: _Waiting) -> None:
        served, deadline = waiting.served, waiting.deadline
        if (count := len(self._waiting)) >= self._queue_limit:
            served.tally.queue_full += 1
            raise _refusal(f"{count} streams are waiting on this node", self.wait_ms(served))
        ahead = sum([w.served is served and w.rank < waiting.rank for w in self._waiting])
        wait_ms = self._ahead_ms(served, ahead)
        first_ms = wait_ms + served.latency.expected_ms(served.shapes, 1)
        over_ms = first_ms - deadline.left_ms() if ahead else 0.0  # the next in line gets its chance
        if deadline.recall_ms > 0.0:
            over_ms = max(over_ms, first_ms - deadline.recall_ms)
        if over_ms > 0.0:
            served.tally.late += 1
            raise _refusal(f"all {served.instances} instances of model {served.name} stream, {ahead} wait", wait_ms)

    def _ahead_ms(self, served: Served, ahead: int) -> float:
        """Until the next after so many gets an instance, if streams last as long as they do usually, and those that
        outlasted that as long again."""
        now = time.monotonic()
        youngest_s = min([now - going.started for going in self.going if going.served is served], default=0.0)
        return (ahead + 1) * max(served.stream_ms, youngest_s * 1e3) / served.instances

    def _too_late(self, waiting: _Waiting) -> None:
        if waiting.turn.done():
            return
        tally = waiting.served.tally
        if waiting.deadline.expired:
            tally.expired(queued=True)
            waiting.turn.set_exception(DeadlineExceeded("the deadline passed while it waited for an instance"))
        else:
            tally.late += 1
            wait_ms = self.wait_ms(waiting.served)
            waiting.turn.set_exception(_refusal("it would be late here, and may not be elsewhere", wait_ms))

    def _start(
        self, served: Served, inputs: Sequence[RawTensor], outputs: Sequence[str], deadline: Deadline, arrived: float
    ) -> Going:
        runtime = served.runtime
        if runtime is None or not runtime.alive:
            self._free(served)
            raise _not_loaded(served)
        parts = runtime.stream(served.key, inputs, outputs)
        shapes = tuple([tensor.shape for tensor in inputs])
        going = Going(served, runtime, parts, shapes, deadline, arrived, time.monotonic())
        going.timer = asyncio.get_running_loop().call_at(deadline.at, self._expire, going)
        self.going.add(going)
        parts.ended.add_done_callback(lambda _: self._ended(going))
        return going

    def _answered(self, going: Going) -> None:
        going.answers += 1
        if going.answers == 1:
            self._learn_first(going)

    def _learn_first(self, going: Going) -> None:
        served = going.served
        served.shapes, served.completed = going.shapes, served.completed + 1
        served.latency.learn(going.shapes, 1, (time.monotonic() - going.started) * 1e3)

    def _expire(self, going: Going) -> None:
        going.expired = True
        going.served.tally.expired(queued=False)
        going.parts.give_up(DeadlineExceeded(f"the deadline passed after {going.answers} answers of the stream"))
        self._leave(going)

    def _leave(self, going: Going) -> None:
        """Nobody takes its answers any more: the run is ended early unless it has ended."""
        _cancel(going.timer)
        if going.left or going.parts.ended.done():
            return
        going.left = True
        going.runtime.abandon(going.parts.ended)
        if not self._closed:
            wait_s = max(going.deadline.left_s(), 0.0) + self._hang_s
            going.hang = asyncio.get_running_loop().call_later(wait_s, self._on_hang, going.runtime, going.served)

    def _ended(self, going: Going) -> None:
        served, now = going.served, time.monotonic()
        _cancel(going.timer, going.hang)
        self.going.discard(going)
        served.last_done = now
        seconds, ended = now - going.started, going.parts.ended
        read_to_its_end = not ended.cancelled() and ended.exception() is None
        if read_to_its_end and not going.answers:
            self._learn_first(going)
        if read_to_its_end or (going.left and going.answers):
            if not going.probe:
                served.stream_ms += (LEARN if served.stream_ms else 1.0) * (seconds * 1e3 - served.stream_ms)
            if not going.expired:
                served.tally.ran(1, seconds, going.started, [going])
        elif not going.left:
            served.tally.runs_failed += 1
        self._free(served)

    def _free(self, served: Served) -> None:
        """Give an instance back, to the next in line."""
        for waiting in self._waiting:
            if waiting.served is served and not waiting.turn.done():
                waiting.turn.set_result(None)
                return
        served.running -= 1


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


def _refusal(text: str, after_ms: float) -> Overloaded:
    wait_s = max(after_ms / 1e3, 0.001)
    return Overloaded(f"{text}; try again in {wait_s:.3g} s", retry_after_s=wait_s)


def _not_loaded(served: Served) -> ModelNotReady:
    return ModelNotReady(f"model {served.name} is not loaded at the moment")
