"""Predictions about a device: what a run takes now, when a request would be answered; and what runs teach about both.

Not here: acting on a prediction (``executor``), what a model costs at usual speed (``latency``).
"""

from __future__ import annotations

import time

from edge.batching import Cost
from edge.lane import Lane, Queue
from edge.latency import Slowdown
from edge.outcome import succeeded
from edge.served import Item, Run, Served

PAUSE_S = 1.0
"""After an idle time this long the first run says nothing of the device's speed: clocks and caches are cold."""


class Forecast:
    """Sees the device's queue and runs; changes neither."""

    def __init__(self, queue: Queue, runs: set[Run], concurrency: int) -> None:
        self.slowdown = Slowdown()
        self.queue = queue
        self._runs = runs
        self._concurrency = concurrency
        self._last_done = 0.0

    def service_ms(self, served: Served) -> float:
        """One inference that runs alone, now; 0 until one ran."""
        return served.latency.expected_ms(served.shapes, 1) * self.slowdown.factor

    def expected_ms(self, item: Item) -> float:
        return item.served.latency.expected_ms(item.shapes, item.rows) * self.slowdown.factor

    def running_ms(self) -> float:
        """Whole time of the runs in progress."""
        return sum([run.usual_ms for run in self._runs]) * self.slowdown.factor

    def rest_ms(self) -> float:
        """What is left of them."""
        now, factor = time.monotonic(), self.slowdown.factor
        return sum([max(run.usual_ms * factor - (now - run.started) * 1e3, 0.0) for run in self._runs])

    def wait_ms(self) -> float:
        """Wait of a new request before it starts to run: the work admitted before it over the concurrency."""
        if not self._runs:
            return 0.0
        return (self.rest_ms() + self.queue.work_ms(self.slowdown)) / self._concurrency

    def finish_ms(self, item: Item) -> float:
        """Until a new request is answered behind those that go first."""
        rest_ms = self.rest_ms() / self._concurrency
        ahead_ms = self.queue.ahead_ms(item, time.monotonic() + rest_ms / 1e3, self.slowdown)
        return rest_ms + ahead_ms / self._concurrency + self.expected_ms(item)

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
