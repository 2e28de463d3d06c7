"""The device: admits requests, batches them, hands runs to runtimes, and learns how long they take.

A request carries its own future and deadline, so that nothing beside it can be left behind: it is answered, fails, or
expires by its own timer, whatever becomes of its neighbours. As many runs go on as the device has ``concurrency`` and
the model instances, plus short ones that keep a worker's pipe filled. Not here: what runs next (``batching``,
``lane``), what a run's end means to its requests (``outcome``), what is loaded where (``instances``), decoupled models
(``streams``, which are ``streaming``'s).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from edge import batch, outcome
from edge.batching import Planner, plan
from edge.company import Company, is_worth_waiting_for
from edge.forecast import PIPELINE_MS, Forecast
from edge.lane import Lane, Queue, admit
from edge.served import Item, Run, Served
from edge.streaming import Going, Streams
from hardware.backend import RawTensor
from hardware.errors import HardwareError
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, ModelNotReady, Overloaded

MAX_PIPELINED = 8


class Executor:
    """Belongs to one event loop. ``on_hang`` is told of a run that goes on ``hang_s`` after its last deadline.

    ``planner`` and ``refuse`` are for benchmarks that compare: another rule for the next run, and no early refusal.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        queue_limit: int,
        hang_s: float,
        on_hang: Callable[[Runtime, Served], None],
        planner: Planner = plan,
        refuse: bool = True,
    ) -> None:
        self._concurrency = concurrency
        self._queue_limit = queue_limit
        self._hang_s = hang_s
        self._on_hang = on_hang
        self._planner = planner
        self._refuse = refuse
        self._queue = Queue()
        self._runs: set[Run] = set()
        self.forecast = Forecast(self._queue, self._runs, concurrency)
        self._order = itertools.count()
        self._company = Company()
        self._turn: asyncio.Handle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._closed = False
        self.streams = Streams(queue_limit=queue_limit, hang_s=hang_s, on_hang=on_hang)

    @property
    def in_flight(self) -> int:
        return self._queue.waiting + sum([run.live for run in self._runs])

    async def infer(
        self, served: Served, inputs: Sequence[RawTensor], outputs: Sequence[str], deadline: Deadline, priority: int
    ) -> list[RawTensor]:
        """Run in its turn. Raises ``Overloaded``, ``DeadlineExceeded``, or what the runtime says, translated."""
        if not served.ready:
            raise _not_loaded(served)
        now = served.last_used = time.monotonic()
        if now >= deadline.at:
            raise DeadlineExceeded("the deadline passed before the request could be run")
        item = admit(served, inputs, outputs, deadline, priority, now, next(self._order))
        served.in_flight += 1
        try:
            if self._gathers(item) or self._queue.waiting or not self._may_run(item):
                self._enqueue(item)
            else:
                run = self._start([item], now)
                if run.future.done():
                    self.forecast.learn(run)
                    return outcome.at_once(run)
                self._runs_on(run)
            loop = asyncio.get_running_loop()
            item.future = loop.create_future()
            item.timer = loop.call_at(self.forecast.due_at(item, now), self._due, item)
            try:
                return await item.future
            finally:
                item.timer.cancel()  # the one of now: it may have been set again
                self._leave(item)
        finally:
            served.in_flight -= 1

    def lost(self, runtime: Runtime) -> None:
        """The runtime is gone: what waits for it need not wait any longer."""
        self.streams.lost(runtime)
        for lane in [lane for lane in self._queue.lanes.values() if lane.served.runtime in (runtime, None)]:
            for item in list(lane):
                self._give_up(item, _not_loaded(item.served))

    def oldest(self, runtime: Runtime) -> Served | None:
        """Whose run has been in ``runtime`` the longest: the others may only have waited in its pipe."""
        running: list[Run | Going] = [going for going in self.streams.going if going.runtime is runtime]
        running += [run for run in self._runs if run.runtime is runtime and not outcome.succeeded(run.future)]
        return min(running, key=lambda run: run.started).served if running else None

    async def swap(self, served: Served, key: str, runtime: Runtime) -> None:
        """Run ``served`` elsewhere from now on; returns when no run is left where it was."""
        old = served.runtime, served.key
        served.runtime, served.key = runtime, key
        left = [run.future for run in self._runs if run.served is served and (run.runtime, run.key) == old]
        if left:
            await asyncio.wait(left)

    def close(self) -> None:
        """Set no timer any more and forget those that are set; pending runs end with their runtimes."""
        self._closed = True
        self.streams.close()
        for handle in (self._turn, self._wake, *(run.hang for run in self._runs)):
            if handle is not None:
                handle.cancel()

    def _enqueue(self, item: Item) -> None:
        waiting = self._queue.waiting
        if waiting >= self._queue_limit:
            item.served.tally.queue_full += 1
            raise self._refusal(f"{waiting} requests are waiting on this node")
        if self._refuse and self._runs and (late_ms := self.forecast.over_ms(item, waiting)) > 0.0:
            item.served.tally.late += 1
            raise self._refusal(f"{waiting} requests are waiting on this node, this one would be late", late_ms)
        self._queue.add(item)
        if self._turn is None and self._may_run(item):
            self._turn = asyncio.get_running_loop().call_soon(self._end_turn)

    def _refusal(self, text: str, after_ms: float | None = None) -> Overloaded:
        wait_s = (self.forecast.wait_ms() if after_ms is None else after_ms) / 1e3
        return Overloaded(f"{text}; try again in {max(wait_s, 0.001):.3g} s", retry_after_s=wait_s)

    def _gathers(self, item: Item) -> bool:
        """Whether it is worth to wait for the end of this turn of the loop: others usually come along."""
        served = item.served
        if served.batching.max_rows == 1 or item.alone:
            return False
        if served.batching.delay_ms > 0.0:
            return True
        self._company.comes(item)
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._end_turn)
        return is_worth_waiting_for(item)

    def _end_turn(self) -> None:
        self._turn = None
        self._company.turn_ends()
        self._dispatch()

    def _due(self, item: Item) -> None:
        """At the deadline; and before it, when another node could still answer what waits here and will be late."""
        if item.timer is not None and item.timer.when() >= item.deadline.at:
            self._expire(item)
            return
        if item.lane is not None:
            self._queue.take(item)
            if (late_ms := self.forecast.late_ms(item)) > 0.0:
                item.served.tally.late += 1
                self._give_up(item, self._refusal("it would be late here, and may not be elsewhere", late_ms))
                return
            self._queue.add(item)
        item.timer = asyncio.get_running_loop().call_at(item.deadline.at, self._due, item)

    def _expire(self, item: Item) -> None:
        if not item.future.done():
            item.served.tally.expired(queued=item.run is None)
        where = "while it waited in the queue" if item.run is None else "while it ran"
        self._give_up(item, DeadlineExceeded(f"the deadline passed {where}"))

    def _give_up(self, item: Item, error: Exception) -> None:
        if item.lane is not None:
            self._queue.take(item)
        if not item.future.done():
            item.future.set_exception(error)

    def _leave(self, item: Item) -> None:
        """It is answered, failed, expired, or its caller left: nothing here is held for it any longer."""
        if item.lane is not None:
            self._queue.take(item)
        if (run := item.run) is None or run not in self._runs:
            return
        run.live -= 1
        if run.live == 0 and not run.future.done():
            run.runtime.abandon(run.future)
            last_s = max([i.deadline.left_s() for i in run.items] + [0.0])
            if not self._closed:
                wait_s = last_s + self._hang_s  # only the death of its runtime frees the device then
                run.hang = asyncio.get_running_loop().call_later(wait_s, self._on_hang, run.runtime, run.served)

    def _may_run(self, item: Item) -> bool:
        served = item.served
        if len(self._runs) < self._concurrency and served.running < served.instances:
            return True
        if served.batching.max_rows > 1 and not item.alone:
            return False  # what comes meanwhile makes the next batch larger
        expected_ms = self.forecast.expected_ms(item)
        return 0.0 < expected_ms <= PIPELINE_MS - self.forecast.running_ms() and len(self._runs) < MAX_PIPELINED

    def _dispatch(self) -> None:
        while (lane := self._next_lane(now := time.monotonic())) is not None:
            self._run_some(lane, now)

    def _next_lane(self, now: float) -> Lane | None:
        """Of the lanes that may run now: the highest class first, then the least slack."""
        ranked, held = [], []
        for lane in self._queue.lanes.values():
            if not self._may_run(lane.top()[0]):
                continue
            lane.climb(now)
            head = lane.top()[0]
            if lane.served.batching.delay_ms > 0.0 and (until := self.forecast.held_until(lane)) > now:
                held.append(until)
            else:
                slack_s = head.deadline.at - self.forecast.expected_ms(head) / 1e3
                ranked.append((lane.level, slack_s, head.order, lane))
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if held and not ranked and not self._closed:
            self._wake = asyncio.get_running_loop().call_at(min(held), self._dispatch)
        return min(ranked)[-1] if ranked else None

    def _run_some(self, lane: Lane, now: float) -> None:
        """Start the next run of a lane, and drop what the plan gives up."""
        served = lane.served
        if not served.ready:
            for item in list(lane):
                self._give_up(item, _not_loaded(served))
            return
        for item in [item for item in lane if item.deadline.at <= now or item.future.done()]:
            self._expire(item)  # the loop has not come to its timer, or to its caller who left
        if not lane.rows:
            return
        dropped, chosen = lane.next_run(self._planner, self.forecast.cost(lane), now)
        lane.runs(chosen, now)
        for item in dropped + chosen:
            self._queue.take(item)
        self._runs_on(self._start(chosen, now))
        served.tally.dropped += len(dropped)
        wait_ms = self.forecast.wait_ms() if dropped else 0.0  # with the run that they were dropped for
        for item in dropped:
            self._give_up(item, self._refusal("its turn came too late to end before its deadline", wait_ms))

    def _start(self, items: list[Item], now: float) -> Run:
        first = items[0]
        served, runtime = first.served, first.served.runtime
        assert runtime is not None  # noqa: S101 - asked before
        rows = sum([item.rows for item in items])
        try:
            inputs = first.inputs if len(items) == 1 else batch.merge([item.inputs for item in items])
            future = runtime.run(served.key, inputs, first.outputs)
        except HardwareError as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        usual_ms = served.latency.expected_ms(first.shapes, rows)
        warm = self.forecast.is_warm(now)
        return Run(served, runtime, served.key, first.shapes, rows, items, future, now, usual_ms, len(items), warm)

    def _runs_on(self, run: Run) -> None:
        for item in run.items:
            item.run = run
        run.served.running += 1
        self._runs.add(run)
        run.future.add_done_callback(lambda _: self._ended(run))

    def _ended(self, run: Run) -> None:
        self._runs.discard(run)
        run.served.running -= 1
        if run.hang is not None:
            run.hang.cancel()
        self.forecast.learn(run)
        try:
            for item in outcome.pass_on(run):
                item.run, item.alone = None, True
                self._queue.add(item)
        finally:
            run.items = []  # they know it too: in a ring, their tensors would stay until the collector comes by
            self._dispatch()


def _not_loaded(served: Served) -> ModelNotReady:
    return ModelNotReady(f"model {served.name} is not loaded at the moment")
