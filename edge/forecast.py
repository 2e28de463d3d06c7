"""Predictions about a device: what a run takes now, when a request would be answered; and what runs teach about both.

Not here: acting on a prediction (``executor``), what a model costs at usual speed (``latency``).
"""

from __future__ import annotations

import time
from math import inf

from edge.batching import Cost
from edge.lane import Lane, Queue, unit_ms
from edge.latency import Slowdown
from edge.outcome import succeeded
from edge.served import Item, Run, Served
from mesh.messages import IDLE, Queued, Work

PAUSE_S = 1.0
"""After an idle time this long the first run says nothing of the device's speed: clocks and caches are cold."""
PIPELINE_MS = 2.0
"""Work that may be handed over beyond the concurrency, so that a worker finds the next run when it ends one."""
OVERDUE = 1.2
"""A run that takes this many times what it should may take any time."""
EARLY, MOST_EARLY_S = 0.1, 0.02
"""By which share of the time until then, and seconds at most, it is looked before the last moment at which a request
can be given back: a busy loop comes late to its timers."""
KEPT_S = 0.005
"""Longest that the queue's work is not looked at again while nothing comes or goes: deadlines come nearer meanwhile."""


class Forecast:
    """Sees the device's queue and runs; changes neither."""

    def __init__(self, queue: Queue, runs: set[Run], concurrency: int) -> None:
        self.slowdown = Slowdown()
        self.queue = queue
        self._runs = runs
        self._concurrency = concurrency
        self._last_done = 0.0
        self._queued: Queued = ()
        self._queued_ms = 0.0
        self._queued_at = -inf
        self._queued_change = 0

    def service_ms(self, served: Served) -> float:
        """One inference that runs alone, now; 0 until one ran."""
        return served.latency.expected_ms(served.shapes, 1) * self.slowdown.factor

    def costs(self, served: Served) -> tuple[float, float]:
        """:meth:`service_ms`, and what one more inference adds to a busy queue, now; 0 until one ran."""
        service_ms, limit = self.service_ms(served), served.batching.max_rows
        return service_ms, service_ms if limit == 1 else unit_ms(served, served.shapes, limit, self.slowdown)[0]

    def expected_ms(self, item: Item) -> float:
        return item.served.latency.expected_ms(item.shapes, item.rows) * self.slowdown.factor

    def running_ms(self) -> float:
        """Whole time of the runs in progress; infinite behind one that has taken far longer than it should."""
        now, factor = time.monotonic(), self.slowdown.factor
        usual_ms = [run.usual_ms * factor for run in self._runs]
        for run, ms in zip(self._runs, usual_ms, strict=True):
            if (now - run.started) * 1e3 > PIPELINE_MS + OVERDUE * ms:
                return inf
        return sum(usual_ms)

    def rest_ms(self) -> float:
        """What is left of them."""
        now, factor = time.monotonic(), self.slowdown.factor
        return sum([max(run.usual_ms * factor - (now - run.started) * 1e3, 0.0) for run in self._runs])

    def work(self) -> Work:
        """All there is to do now, over the concurrency; the wait is that of a request behind it all."""
        if not self._runs:
            return IDLE
        now = time.monotonic()
        if self._queued_change != self.queue.changes or now - self._queued_at > KEPT_S:
            self._look(now)
        return Work(self.rest_ms() / self._concurrency + self._queued_ms, self._queued)

    def wait_ms(self) -> float:
        return self.work().wait_ms if self._runs else 0.0

    def _look(self, now: float) -> None:
        self._queued = self.queue.work(now, self.slowdown, 1.0 / self._concurrency) if self.queue.waiting else ()
        self._queued_ms = sum([sum(bins) for _, bins in self._queued])
        self._queued_at, self._queued_change = now, self.queue.changes

    def finish_ms(self, item: Item) -> float:
        """Until a new request is answered behind those that go first."""
        rest_ms = self.rest_ms() / self._concurrency
        ahead_ms = self.queue.ahead_ms(item, time.monotonic() + rest_ms / 1e3, self.slowdown)
        return rest_ms + ahead_ms / self._concurrency + self.expected_ms(item)

    def over_ms(self, item: Item, waiting: int) -> float:
        """By how much a new request would come too late: behind its deadline, unless it is the next in line and gets
        its chance; or behind what another node would need, as the router that sent it believes."""
        finish_ms, elsewhere_ms = self.finish_ms(item), item.deadline.recall_ms
        over_ms = finish_ms - item.deadline.left_ms() if waiting else 0.0
        return max(over_ms, finish_ms - elsewhere_ms) if elsewhere_ms > 0.0 else over_ms

    def due_at(self, item: Item, now: float) -> float:
        """When to look at an admitted request again: when what waits may be late, and could still be given back, else
        at its deadline."""
        deadline = item.deadline
        left_s = deadline.recall_at - now
        if item.lane is None or left_s <= 0.0 or deadline.recall_at >= deadline.at:
            return deadline.at
        return deadline.recall_at - min(EARLY * left_s, MOST_EARLY_S)

    def late_ms(self, item: Item) -> float:
        """By how much a request that waits is late, as far as can be told; what is behind a run that takes far longer
        than it should is not trusted to be in time."""
        late_ms, now = self.finish_ms(item) - item.deadline.left_ms(), time.monotonic()
        over_ms = [(now - run.started) * 1e3 - OVERDUE * run.usual_ms * self.slowdown.factor for run in self._runs]
        return max(late_ms, min(over_ms, default=0.0))

    def cost(self, lane: Lane) -> Cost:
        """Of a run of the lane's requests by its rows, held against deadlines: with a margin for the usual error."""
        latency, shapes = lane.served.latency, lane.shapes
        factor = self.slowdown.factor * (1.0 + self.slowdown.margin)
        known: dict[int, float] = {}

        def cost(rows: int) -> float:
            ms = known.get(rows)
            if ms is None:
                ms = known[rows] = latency.expected_ms(shapes, rows) * factor
            return ms

        return cost

    def held_until(self, lane: Lane) -> float:
        """Monotonic second until which a lane may wait for company: its delay, or the first slack that ends."""
        if lane.rows >= lane.limit:
            return 0.0
        ms, delay_ms = self.cost(lane)(lane.rows), lane.served.batching.delay_ms
        return min([min(i.arrived + delay_ms / 1e3, i.deadline.at - ms / 1e3) for i in lane])

    def is_warm(self, now: float) -> bool:
        return bool(self._runs) or now - self._last_done < PAUSE_S

    def learn(self, run: Run) -> None:
        """A run that waited in the worker's pipe began when the one before it ended."""
        served, now = run.served, time.monotonic()
        began = max(run.started, served.last_done) if served.instances == 1 else run.started
        served.last_done = self._last_done = now
        self._queued_at = -inf  # what it teaches changes what the others cost
        served.shapes = run.shapes
        if not succeeded(run.future):
            served.tally.runs_failed += not run.future.cancelled()
            return
        served.completed += len(run.items)
        ms = (now - began) * 1e3
        served.tally.ran(run.rows, now - began, began, run.items)
        if run.warm:
            self.slowdown.learn(ms, run.usual_ms)
        served.latency.learn(run.shapes, run.rows, ms)
