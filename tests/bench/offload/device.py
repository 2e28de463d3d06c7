"""A node's device: the queue, the product's own planner and learned latencies, one run at a time, models to load.

What it decides, it decides by what it believes and has learned; how long a run takes is drawn from the true profile,
heat and noise. Not here: the event heap (world.py says when a run or a load is over), how requests get here.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

from edge.batching import Cost, Entry, fill_up, plan
from edge.latency import Slowdown
from mesh.link import Wire
from mesh.messages import CLASSES, EDGES_MS, Queued
from tests.bench.offload.environment import SHAPES, Steps, learned
from tests.bench.offload.memory import Memory
from tests.bench.offload.policy import Node, Report, Request
from tests.bench.offload.scenario import Fault, Profile, Scenario

RHO_S = 0.5
"""Time constant of the rate of arriving work."""
PAUSE_S = 1.0
"""After an idle time this long a run says nothing of the device's speed."""
SLOW_FAIL = 5.0
OVERDUE = 1.2
"""A run that takes this many times what it should is not trusted to end soon."""


class Attempt:
    """One dispatch of a request to a node."""

    __slots__ = (
        "again", "arrived_s", "done", "expected_ms", "node", "predicted_ms", "recall_ms", "refusable", "report",
        "request", "router", "sent_s", "served_ms", "sigma_ms", "token", "work",
    )  # fmt: skip

    def __init__(self, request: Request, node: int, router: int, sent_s: float, again: bool) -> None:
        self.request = request
        self.node = node
        self.router = router
        self.sent_s = sent_s
        self.again = again
        """It is the second one of the request, and the last."""
        self.arrived_s = sent_s
        self.served_ms = 0.0
        """What the node says it held the request."""
        self.token = 0
        """Of its bytes on the wire."""
        self.recall_ms = 0.0
        """What another node would need; 0 where none could be in time."""
        self.refusable = False
        """A node that would take longer than that refuses it at once."""
        self.expected_ms = 0.0
        """At the node, as its router expects."""
        self.done = False
        self.predicted_ms: float | None = None
        self.sigma_ms = 0.0
        self.report: Report | None = None
        """What rides on the reply."""
        self.work = 0.0
        """Milliseconds of the device that it took."""


Waiting = tuple[float, int, Attempt]


class Run(NamedTuple):
    """What goes on in a device: until when, and what it was expected to take at usual speed."""

    attempts: list[Attempt]
    model: int
    began_s: float
    ends_s: float
    usual_ms: float
    warm: bool
    fails: bool


class Device:
    """One node. `dispatch` starts what can run; the world calls `ended` when it is over."""

    def __init__(
        self, node: Node, true: tuple[Profile, ...], heat: Steps, scenario: Scenario, luck: random.Random
    ) -> None:
        self.node = node
        self.true = true
        self.heat = heat
        self.run: Run | None = None
        self.lanes: dict[tuple[int, int], list[Waiting]] = {}
        """By class and model, in order of deadline."""
        self.slowdown = Slowdown()
        self.latency = [learned(profile) for profile in node.profiles]
        self.fault: Fault | None = None
        self.executed_ms = 0.0
        self.in_flight = 0
        self.epoch = 0
        """Grows when it loses what it was doing: ends of runs of before mean nothing any more."""
        self.memory = Memory(scenario.models, scenario.memory if node.tier == "edge" else 0.0, node.index)
        self._scenario = scenario
        self._luck = luck
        self._rho, self._rho_s = 0.0, 0.0
        self._last_done = 0.0
        self.uplink: Wire | None = None
        """Of the router beside it."""

    def expected_ms(self, model: int, rows: int = 1) -> float:
        return self.latency[model].expected_ms(SHAPES, rows) * self.slowdown.factor

    def service_ms(self, model: int, now: float) -> float:
        """One row alone, with what is left of a load that must come first."""
        return self.expected_ms(model) + self.memory.load_ms(model, now)

    def rest_ms(self, now: float) -> float:
        run = self.run
        return max(run.usual_ms * self.slowdown.factor - (now - run.began_s) * 1e3, 0.0) if run is not None else 0.0

    def unit_ms(self, model: int) -> tuple[float, float]:
        """A row's share of the run that costs least per row, and that run."""
        latency = self.latency[model]
        best = latency.best_rows(SHAPES, self.node.profiles[model][2])
        ms = latency.expected_ms(SHAPES, best) * self.slowdown.factor
        return ms / best, ms

    def finish_ms(self, request: Request, now: float) -> float:
        """As the product's admission predicts it: the rest of the run, what goes before it, and itself."""
        rest_ms, level = self.rest_ms(now), request.priority or CLASSES
        begin, ahead_ms = now + rest_ms / 1e3, 0.0
        for (of, model), lane in self.lanes.items():
            if of <= level:
                unit, run = self.unit_ms(model)
                last = len(lane) if of < level else bisect_right(lane, request.deadline_s, key=_deadline)
                ahead_ms += unit * max(last - bisect_left(lane, begin + run / 1e3, key=_deadline), 0)
        return rest_ms + ahead_ms + self.expected_ms(request.model)

    def admits(self, attempt: Attempt, now: float) -> bool:
        """Queue a request, or refuse it; one that would be late is refused if others wait already."""
        request = attempt.request
        left_ms, attempt.arrived_s = (request.deadline_s - now) * 1e3, now
        if left_ms <= 0.0:
            return False
        if self.run is not None and self.lanes and self.finish_ms(request, now) > left_ms:
            return False
        if self.memory.load_ms(request.model, now) > left_ms:
            return False
        if not attempt.again and self._elsewhere(attempt, now):
            return False
        key = (request.priority or CLASSES, request.model)
        insort(self.lanes.setdefault(key, []), (request.deadline_s, request.id, attempt))
        self.in_flight += 1
        self._rho = self.rho(now) + self.unit_ms(request.model)[0] / 1e3 / RHO_S
        self._rho_s = now
        return True

    def _elsewhere(self, attempt: Attempt, now: float) -> bool:
        """Whether another node would answer sooner, as its router believes."""
        return attempt.refusable and 0.0 < attempt.recall_ms < self.finish_ms(attempt.request, now)

    def gives_back(self, attempt: Attempt, now: float) -> bool:
        """Take it out of the queue if it waits there and will be late, as far as can be told."""
        request = attempt.request
        key = (request.priority or CLASSES, request.model)
        entry = (request.deadline_s, request.id, attempt)
        lane = self.lanes.get(key)
        if lane is None or entry not in lane:
            return False
        run = self.run
        lane.remove(entry)
        overdue = run is not None and (now - run.began_s) * 1e3 > OVERDUE * run.usual_ms * self.slowdown.factor
        if not overdue and self.finish_ms(request, now) <= (request.deadline_s - now) * 1e3:
            insort(lane, entry)
            return False
        if not lane:
            del self.lanes[key]
        self.in_flight -= 1
        return True

    def wants(self, model: int, now: float) -> float | None:
        """Note that a model is asked for; seconds of its load, if one begins now."""
        busy = {of for _, of in self.lanes} | ({self.run.model} if self.run is not None else set())
        return self.memory.wants(model, busy, now)

    def rho(self, now: float) -> float:
        return self._rho * exp((self._rho_s - now) / RHO_S)

    def dispatch(self, now: float) -> tuple[Run | None, list[Attempt], list[Attempt]]:
        """Start the next run if there is none: that run, what was dropped for it, and what expired in the queue."""
        expired: list[Attempt] = []
        if self.run is not None:
            return None, [], expired
        key = self._next_lane(now, expired)
        if key is None:
            return None, [], expired
        lane, model = self.lanes[key], key[1]
        best = self.latency[model].best_rows(SHAPES, min(self.node.profiles[model][2], len(lane)))
        cost = self._cost(model)
        entries = [Entry((deadline - now) * 1e3, 1) for deadline, _, _ in lane]
        drop, count = plan(entries, best, cost)
        chosen = [waiting[2] for waiting in lane[drop : drop + count]]
        dropped = [waiting[2] for waiting in lane[:drop]]
        last = drop + count == len(lane)
        self._take(key, drop + count)
        if last and count < self.node.profiles[model][2]:
            chosen += self._company(key, count, entries[drop].left_ms, cost, now)
        self.in_flight -= len(dropped)
        self.run = self._start(chosen, model, now)
        return self.run, dropped, expired

    def _take(self, key: tuple[int, int], count: int) -> None:
        lane = self.lanes[key]
        del lane[:count]
        if not lane:
            del self.lanes[key]

    def _company(self, key: tuple[int, int], rows: int, left_ms: float, cost: Cost, now: float) -> list[Attempt]:
        """Requests of lower classes that ride along."""
        chosen: list[Attempt] = []
        most = self.node.profiles[key[1]][2]
        for other in sorted(other for other in self.lanes if other[1] == key[1] and other[0] > key[0]):
            lane = self.lanes[other]
            entries = [Entry((deadline - now) * 1e3, 1) for deadline, _, _ in lane]
            count = fill_up(rows, left_ms, entries, most, cost)
            chosen += [waiting[2] for waiting in lane[:count]]
            self._take(other, count)
            rows += count
            left_ms = min([left_ms, *(entry.left_ms for entry in entries[:count])])
        return chosen

    def _next_lane(self, now: float, expired: list[Attempt]) -> tuple[int, int] | None:
        """Of the lanes whose model is in memory: the highest class first, then the least slack."""
        for key in list(self.lanes):
            late = bisect_right(self.lanes[key], now, key=_deadline)
            if late:
                expired += [waiting[2] for waiting in self.lanes[key][:late]]
                self._take(key, late)
                self.in_flight -= late
        ready = [key for key in self.lanes if key[1] in self.memory.resident]
        if len(ready) < 2:
            return ready[0] if ready else None
        return min(ready, key=lambda key: (key[0], self.lanes[key][0][0] - self.expected_ms(key[1]) / 1e3))

    def _cost(self, model: int) -> Cost:
        latency = self.latency[model]
        known: dict[int, float] = {}
        factor = self.slowdown.factor * (1.0 + self.slowdown.margin)

        def cost(rows: int) -> float:
            ms = known.get(rows)
            if ms is None:
                ms = known[rows] = latency.expected_ms(SHAPES, rows) * factor
            return ms

        return cost

    def _start(self, attempts: list[Attempt], model: int, now: float) -> Run:
        rows, misfit = len(attempts), self._scenario.misfit
        a, c, _ = self.true[model]
        ms = (a + c * rows) * self.heat.at(now) * exp(self._luck.gauss(0.0, self._scenario.noise))
        if misfit.straggler_share and self._luck.random() < misfit.straggler_share:
            ms *= misfit.straggler
        fault = self.fault
        fails = fault is not None and fault.kind == "slow-fail" and self._luck.random() < fault.share
        if fails:
            ms *= SLOW_FAIL
        self.executed_ms += ms
        for attempt in attempts:
            attempt.work = ms / rows
        usual_ms = self.latency[model].expected_ms(SHAPES, rows)
        return Run(attempts, model, now, now + ms / 1e3, usual_ms, now - self._last_done < PAUSE_S, fails)

    @property
    def down(self) -> bool:
        """Nobody answers there."""
        return self.fault is not None and self.fault.kind == "crash"

    def fails_at_once(self) -> bool:
        fault = self.fault
        return fault is not None and fault.kind == "fast-fail" and self._luck.random() < fault.share

    def ended(self, now: float) -> Run:
        """The run is over: learn from it."""
        run = self.run
        assert run is not None
        self.run, self._last_done = None, now
        self.in_flight -= len(run.attempts)
        if not run.fails:
            ms = (now - run.began_s) * 1e3
            if run.warm:
                self.slowdown.learn(ms, run.usual_ms)
            self.latency[run.model].learn(SHAPES, len(run.attempts), ms)
        return run

    def crash(self) -> list[Attempt]:
        """Lose everything at once."""
        lost = [waiting[2] for lane in self.lanes.values() for waiting in lane]
        lost += self.run.attempts if self.run is not None else []
        self.lanes, self.run, self.in_flight = {}, None, 0
        self.epoch += 1
        return lost

    def report(self, now: float) -> Report:
        """What it says of itself at this moment."""
        queue: tuple[tuple[int, float, int], ...]
        if not self.lanes:
            queue = ()
        elif self._scenario.reports.exact:
            queue = tuple([(m, (w[0] - now) * 1e3, 1) for (_, m), lane in self.lanes.items() for w in lane])
        else:
            queue = self._histogram(now)
        services = tuple([self.service_ms(model, now) for model in range(len(self.latency))])
        units = tuple([self.unit_ms(model)[0] for model in range(len(self.latency))])
        return Report(
            self.node.index, now, now, self.rest_ms(now), self.slowdown.factor, self.rho(now), self.in_flight, queue,
            services, self._queued(now, units), units, 0 if self.uplink is None else int(self.uplink.remaining(now)),
        )  # fmt: skip

    def _queued(self, now: float, units: Sequence[float]) -> Queued:
        """As `edge.lane.Queue` tells it."""
        classes: dict[int, list[float]] = {}
        for (level, model), lane in self.lanes.items():
            bins = classes.setdefault(level, [0.0] * (len(EDGES_MS) + 1))
            for deadline_s, _, _ in lane:
                bins[bisect_left(EDGES_MS, (deadline_s - now) * 1e3)] += units[model]
        return tuple([(level, tuple(bins)) for level, bins in sorted(classes.items())])

    def _histogram(self, now: float) -> tuple[tuple[int, float, int], ...]:
        bins: dict[tuple[int, float], int] = {}
        for (_, model), lane in self.lanes.items():
            for deadline_s, _, _ in lane:
                edge = EDGES_MS[min(bisect_left(EDGES_MS, (deadline_s - now) * 1e3), len(EDGES_MS) - 1)]
                bins[model, edge] = bins.get((model, edge), 0) + 1
        return tuple([(model, edge, rows) for (model, edge), rows in bins.items()])


def _deadline(waiting: Waiting) -> float:
    return waiting[0]
