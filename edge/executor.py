"""The queue of one device: admits, orders by deadline, hands to runtimes, and learns how long inferences take.

An item carries its own future and deadline, so that nothing beside it can be left behind. Earliest deadline first
inside a priority. As many items run as the device has ``concurrency``, plus short ones that keep a worker's pipe
filled. Not here: what is loaded where (``instances``), batching across requests.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge.hardware_errors import translate
from hardware.backend import RawTensor
from hardware.errors import HardwareError
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, MeshError, ModelNotReady, Overloaded

PIPELINE_MS = 2.0
"""Work that may be handed over beyond ``concurrency``, so that a worker finds the next item when it ends one."""
MAX_PIPELINED = 8
LEARN = 0.2
"""Weight of a new sample in the service time."""


LAST = 1 << 30
"""Where requests without a priority stand: behind all that have one."""

Run = asyncio.Future[list[RawTensor]]


@dataclass(slots=True)
class Served:
    """One model on its runtime as the executor sees it: where to run, and what was learned."""

    key: str
    runtime: Runtime | None = None
    service_ms: float = 0.0
    in_flight: int = 0
    last_done: float = 0.0

    def learn(self, ms: float) -> None:
        self.service_ms = ms if self.service_ms == 0 else self.service_ms + LEARN * (ms - self.service_ms)


@dataclass(slots=True, eq=False)
class Item:
    """One admitted inference."""

    served: Served
    runtime: Runtime
    inputs: Sequence[RawTensor]
    outputs: Sequence[str]
    deadline: Deadline
    priority: int
    order: int
    expected_ms: float
    future: Run
    started: float = 0.0
    run: Run | None = field(default=None, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    """Fires at the deadline, then ``hang_s`` later if the run still goes on."""

    def __lt__(self, other: Item) -> bool:
        return (self.priority, self.deadline.at, self.order) < (other.priority, other.deadline.at, other.order)


class Executor:
    """Belongs to one event loop. ``on_hang`` is told of a runtime that still runs ``hang_s`` after a deadline."""

    def __init__(
        self, *, concurrency: int, queue_limit: int, hang_s: float, on_hang: Callable[[Runtime, str], None]
    ) -> None:
        self._concurrency = concurrency
        self._queue_limit = queue_limit
        self._hang_s = hang_s
        self._on_hang = on_hang
        self._queue: list[Item] = []
        self._queued_ms = 0.0
        self._running: set[Item] = set()
        self._running_ms = 0.0
        self._order = itertools.count()

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._queue)

    def wait_ms(self) -> float:
        """Predicted wait of a new item: the work admitted before it over the concurrency."""
        if not self._running:
            return 0.0
        now = time.monotonic()
        rest = sum(max(i.expected_ms - (now - i.started) * 1e3, 0.0) for i in self._running)
        return (rest + self._queued_ms) / self._concurrency

    async def infer(
        self, served: Served, inputs: Sequence[RawTensor], outputs: Sequence[str], deadline: Deadline, priority: int
    ) -> list[RawTensor]:
        """Run in its turn. Raises ``Overloaded``, ``DeadlineExceeded``, or what the runtime says, translated."""
        served.in_flight += 1
        try:
            runtime = served.runtime
            if runtime is None or not runtime.alive:
                raise ModelNotReady(f"model {served.key} is not loaded at the moment")
            deadline.check()
            expected_ms = served.service_ms
            run = None
            if not self._queue and self._may_run(expected_ms):
                started = time.monotonic()
                run = runtime.run(served.key, inputs, outputs)
                if run.done():
                    return self._done_at_once(served, run, started)
            return await self._waited_for(
                Item(
                    served, runtime, inputs, outputs, deadline, priority or LAST, next(self._order), expected_ms,
                    asyncio.get_running_loop().create_future(),
                ),
                run,
            )  # fmt: skip
        finally:
            served.in_flight -= 1

    def _done_at_once(self, served: Served, run: Run, started: float) -> list[RawTensor]:
        error = run.exception()
        if error is None:
            self._learn(served, started)
            return run.result()
        raise translate(error) if isinstance(error, HardwareError) else error

    async def _waited_for(self, item: Item, run: Run | None) -> list[RawTensor]:
        if run is not None:
            self._running_as(item, run)
        else:
            self._enqueue(item)
        loop = asyncio.get_running_loop()
        item.timer = loop.call_at(loop.time() + item.deadline.left_s(), self._expire, item)
        try:
            return await item.future
        finally:
            if item not in self._running:  # else the timer goes on: a run nobody waits for can hang too
                item.timer.cancel()
                self._drop_if_queued(item)

    def lost(self, runtime: Runtime) -> None:
        """The runtime is gone: what waits for it need not wait any longer."""
        for item in [i for i in self._queue if i.runtime is runtime and not i.future.done()]:
            item.future.set_exception(ModelNotReady(f"model {item.served.key} is not loaded at the moment"))

    def oldest(self, runtime: Runtime) -> Served | None:
        """Whose run has been in ``runtime`` the longest: a worker runs one at a time, the others wait in its pipe."""
        running = [i for i in self._running if i.runtime is runtime and not _succeeded(i.run)]
        return min(running, key=lambda i: i.started).served if running else None

    def _enqueue(self, item: Item) -> None:
        if len(self._queue) >= self._queue_limit or not self._in_time(item):
            wait_s = self.wait_ms() / 1e3
            raise Overloaded(
                f"{len(self._queue)} requests are waiting on this node; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        heapq.heappush(self._queue, item)
        self._queued_ms += item.expected_ms

    def _in_time(self, item: Item) -> bool:
        """Whether a new item would end before its deadline behind those that go first."""
        spare_ms = item.deadline.left_ms() - item.expected_ms
        waits_ms = self.wait_ms()
        if not self._queue or waits_ms <= spare_ms:
            return True  # what runs now was no better judged: the next in line gets its chance
        behind_ms = sum(i.expected_ms for i in self._queue if item < i)
        return waits_ms - behind_ms / self._concurrency <= spare_ms

    def _may_run(self, expected_ms: float) -> bool:
        running = len(self._running)
        if running < self._concurrency:
            return True
        return expected_ms > 0 and self._running_ms + expected_ms <= PIPELINE_MS and running < MAX_PIPELINED

    def _running_as(self, item: Item, run: Run) -> None:
        item.started = time.monotonic()
        item.run = run
        self._running.add(item)
        self._running_ms += item.expected_ms
        run.add_done_callback(lambda _: self._ended(item))

    def _ended(self, item: Item) -> None:
        self._running.discard(item)
        self._running_ms = self._running_ms - item.expected_ms if self._running else 0.0
        if item.timer is not None:
            item.timer.cancel()
        assert item.run is not None  # noqa: S101 - set where it is started
        if _succeeded(item.run):
            self._learn(item.served, item.started)
        _pass_on(item.run, item)
        self._next()

    def _next(self) -> None:
        while self._queue and self._may_run(self._queue[0].expected_ms):
            item = heapq.heappop(self._queue)
            self._queued_ms = self._queued_ms - item.expected_ms if self._queue else 0.0
            if item.future.done():
                continue
            if item.deadline.expired:  # its timer is due in this very turn of the loop
                self._expire(item)
            elif self._queue and item.deadline.left_ms() < item.served.service_ms:
                # Earliest first, an overloaded device would else run only what is about to be late. The last in line
                # runs in any case: the service time may be learned wrong, and only a run corrects it.
                item.future.set_exception(DeadlineExceeded("its turn came too late to end before its deadline"))
            elif item.runtime.alive:
                self._running_as(item, item.runtime.run(item.served.key, item.inputs, item.outputs))
            else:
                item.future.set_exception(ModelNotReady(f"model {item.served.key} is not loaded at the moment"))

    def _learn(self, served: Served, started: float) -> None:
        """A run that waited in the worker's pipe began when the one before it ended."""
        now = time.monotonic()
        began = max(started, served.last_done)
        served.last_done = now
        served.learn((now - began) * 1e3)

    def _expire(self, item: Item) -> None:
        running = item in self._running
        if not item.future.done():
            where = "while it ran" if running else "while it waited in the queue"
            item.future.set_exception(DeadlineExceeded(f"the deadline passed {where}"))
        if running:
            item.timer = asyncio.get_running_loop().call_later(self._hang_s, self._hangs, item)

    def _hangs(self, item: Item) -> None:
        """A run still going on long after its deadline: only the death of its runtime frees the device."""
        self._on_hang(item.runtime, item.served.key)

    def _drop_if_queued(self, item: Item) -> None:
        if item.run is None and item in self._queue:
            self._queue.remove(item)
            heapq.heapify(self._queue)
            self._queued_ms = max(self._queued_ms - item.expected_ms, 0.0) if self._queue else 0.0

    def close(self) -> None:
        """Forget the timers; pending runs end with their runtimes."""
        for item in self._running:
            if item.timer is not None:
                item.timer.cancel()


def _succeeded(run: Run | None) -> bool:
    return run is not None and run.done() and not run.cancelled() and run.exception() is None


def _pass_on(run: Run, item: Item) -> None:
    """Give the run's outcome to whoever waits; nobody does after an expiry or when the caller left."""
    if item.future.done():
        if not run.cancelled():
            run.exception()  # seen: nobody waits for it
        return
    if run.cancelled():
        item.future.cancel()
        return
    error = run.exception()
    if error is None:
        item.future.set_result(run.result())
    elif isinstance(error, HardwareError):
        item.future.set_exception(translate(error))
    else:
        item.future.set_exception(error if isinstance(error, MeshError) else RuntimeError(repr(error)))
