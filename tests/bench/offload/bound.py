"""An upper bound on how many requests any policy can answer in time, however much it knows.

A linear program (scipy, where it is installed) or, without it, a flow bound of our own that is never lower. Both relax
the truth in the same ways, each of which can only help:

* time is cut into slots, and a request may use every slot that its window from birth to deadline touches;
* a row costs its share of a full run, a/B + c, as if every run were full, and may be served in fractions, on several
  nodes at once and interrupted at will;
* a hop inside a site takes no time, replies and loading of models cost nothing, every box of a site serves all of it;
* crossing the WAN takes its round trip and the bytes through the site's uplink, before or while it is served.

A real schedule is feasible here: spread each run evenly over its rows and its time. That lies inside the windows of
all its requests if they are answered in time, costs at least a/B + c a row, and fills no slot beyond its length. Run
noise is averaged: the optimum is concave in capacity, so by Jensen the mean optimum is at most that at the mean
capacity; one noisy seed may exceed the bound by chance. Not here: policies, the omniscient greedy (which is no bound).
"""

from __future__ import annotations

import heapq
import importlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.bench.offload.environment import Environment
from tests.bench.offload.policy import Request
from tests.bench.offload.profiles import Profile, best_row_ms, run_ms

SLOT_S = 0.05
FASTEST = 1.2
"""A run alone may by noise be this much faster than its profile."""
QUICKEST = 0.7
"""A round trip may by jitter take this share of the usual one."""


@dataclass(frozen=True)
class Instance:
    """All that a bound looks at. ``sites`` is by node; nodes of ``cloud_site`` are across the WAN for everybody."""

    requests: Sequence[Request]
    sites: Sequence[int]
    cloud_site: int
    profiles: Sequence[Sequence[Profile]]
    """True ones, by node and model."""
    speed: Callable[[int, float, float], float]
    """At most so many seconds at usual speed does a node have between two moments."""
    carried: Callable[[int, float, float], float]
    """Bytes that a site's uplink carries between two moments."""
    rtt_s: float = 0.0

    @classmethod
    def of(cls, environment: Environment) -> Instance:
        def carried(site: int, begin_s: float, end_s: float) -> float:
            trace = environment.up[site]
            return trace.carried(end_s) - trace.carried(begin_s)

        def speed(node: int, begin_s: float, end_s: float) -> float:
            return _most_speed(environment, node, begin_s, end_s) * (end_s - begin_s)

        return cls(
            environment.requests,
            [node.site for node in environment.nodes],
            environment.cloud_site,
            environment.profiles,
            speed,
            carried,
            environment.scenario.wan.rtt_ms / 1e3,
        )


def _most_speed(environment: Environment, node: int, begin_s: float, end_s: float) -> float:
    """Heat lasts longer than a slot, so that the lesser factor of both ends is the least within it."""
    scenario, heat = environment.scenario, environment.heat[node]
    misfit = scenario.misfit
    share = 1.0 - misfit.straggler_share * (1.0 - 1.0 / misfit.straggler)
    working = 1.0
    for fault in scenario.faults:
        begins_s = fault.at * scenario.seconds
        if fault.node == node and begins_s <= begin_s and end_s <= begins_s + fault.lasts_s:
            fails = fault.kind in ("fast-fail", "slow-fail") and fault.share >= 1.0
            working = 0.0 if fault.kind == "crash" or fails else working
    return working * share * math.exp(scenario.noise**2 / 2.0) / min(heat.at(begin_s), heat.at(end_s))


class Group(NamedTuple):
    """Requests of one site and model whose windows touch the same slots, first and last."""

    site: int
    model: int
    first: int
    last: int
    nbytes: int


def groups(instance: Instance, slot_s: float) -> dict[Group, int]:
    """The requests counted by what the bounds tell apart."""
    counted: dict[Group, int] = defaultdict(int)
    for request in instance.requests:
        first, last = int(request.born_s / slot_s), int(request.deadline_s / slot_s)
        counted[Group(instance.sites[request.origin], request.model, first, last, request.nbytes)] += 1
    return dict(counted)


def bound(instance: Instance, slot_s: float = SLOT_S) -> float:
    """Most requests that can be in time: the linear program's, or the flow bound where scipy is not installed."""
    try:
        optimize = importlib.import_module("scipy.optimize")
    except ModuleNotFoundError:
        return flow_bound(instance, slot_s)
    return linear_bound(instance, slot_s, optimize)


class _Program:
    """A linear program in the making: columns of (row, value), rows of an upper limit."""

    def __init__(self) -> None:
        self.limits: list[float] = []
        self.gain: list[float] = []
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []

    def row(self, limit: float) -> int:
        self.limits.append(limit)
        return len(self.limits) - 1

    def column(self, gain: float, entries: Sequence[tuple[int, float]]) -> None:
        for row, value in entries:
            self._rows.append(row)
            self._columns.append(len(self.gain))
            self._values.append(value)
        self.gain.append(gain)

    def most(self, optimize: Any) -> float:
        """The optimum; raises ``ArithmeticError`` when the solver finds none."""
        if not self.gain:
            return 0.0
        sparse = importlib.import_module("scipy.sparse")
        shape = (len(self.limits), len(self.gain))
        matrix = sparse.csr_matrix((self._values, (self._rows, self._columns)), shape=shape)
        solved = optimize.linprog([-g for g in self.gain], A_ub=matrix, b_ub=self.limits, method="highs")
        if solved.status != 0:
            raise ArithmeticError(f"no optimum: {solved.message}")
        return float(-solved.fun)


def linear_bound(instance: Instance, slot_s: float, optimize: Any) -> float:
    """Time-slotted batch capacity of each node, uplink bytes of each site, windows. Columns are the rows of a group
    that a node serves in a slot, and the bytes of a group that go up in a slot.
    """
    program = _Program()
    slots: dict[tuple[int, int], int] = {}
    uplinks: dict[tuple[int, int], int] = {}
    for group, count in groups(instance, slot_s).items():
        served = program.row(float(count))
        uploaded = program.row(0.0)
        for node, site in enumerate(instance.sites):
            far = site != group.site
            if far and site != instance.cloud_site:
                continue
            window = _window(instance, group, node, slot_s)
            for slot in window:
                at = slots.get((node, slot))
                if at is None:
                    most_s = instance.speed(node, slot * slot_s, (slot + 1) * slot_s)
                    at = slots[node, slot] = program.row(most_s * 1e3)
                entries = [(served, 1.0), (at, best_row_ms(instance.profiles[node][group.model]))]
                program.column(1.0, [*entries, (uploaded, float(group.nbytes))] if far else entries)
        for slot in range(group.first, group.last + 1):
            at = uplinks.get((group.site, slot))
            if at is None:
                most = instance.carried(group.site, slot * slot_s, (slot + 1) * slot_s)
                at = uplinks[group.site, slot] = program.row(most / 1e3)
            program.column(0.0, [(uploaded, -1e3), (at, 1.0)])
    return program.most(optimize)


def _window(instance: Instance, group: Group, node: int, slot_s: float) -> range:
    """Slots in which a node may serve a group, none if even one run alone would be late."""
    away_s = QUICKEST * instance.rtt_s if instance.sites[node] != group.site else 0.0
    # From the earliest birth in the first slot to the latest deadline in the last.
    begin_s, end_s = group.first * slot_s + away_s / 2.0, (group.last + 1) * slot_s - away_s / 2.0
    if end_s - begin_s < run_ms(instance.profiles[node][group.model]) / 1e3 / FASTEST:
        return range(0)
    return range(int(begin_s / slot_s), math.ceil(end_s / slot_s))


def flow_bound(instance: Instance, slot_s: float = SLOT_S) -> float:
    """The same without a solver and without uplinks: all nodes as one server, in units.

    Let a row of model m be v_m units. A node makes at most max_m(v_m / cost of m there) units a millisecond, so any
    schedule is a flow of units from groups to slots of the summed capacity. The units that groups can get are a
    polymatroid (they are flows in a transversal system), and requests in time are units over v: a linear gain, for
    which the greedy order of falling 1/v is optimal (Edmonds). What the first k models can get together is a maximum
    flow in a convex bipartite graph, which earliest deadline first finds (Glover 1967). Any v gives a bound: the least
    of those tried counts.
    """
    counted = groups(instance, slot_s)
    best = float(sum(counted.values()))
    models = range(len(instance.profiles[0])) if instance.profiles else range(0)
    for reference in instance.profiles:
        best = min(best, _flow(instance, counted, [best_row_ms(reference[m]) for m in models], slot_s))
    return best


def _flow(instance: Instance, counted: dict[Group, int], units: Sequence[float], slot_s: float) -> float:
    pace = [
        max(unit / best_row_ms(profile) for unit, profile in zip(units, of, strict=True)) for of in instance.profiles
    ]
    first = min((group.first for group in counted), default=0)
    last = max((group.last for group in counted), default=-1)
    capacity = [
        sum(instance.speed(n, s * slot_s, (s + 1) * slot_s) * 1e3 * pace[n] for n in range(len(pace)))
        for s in range(first, last + 1)
    ]
    gained, before = 0.0, 0.0
    allowed: set[int] = set()
    for model in sorted(range(len(units)), key=lambda m: units[m]):
        allowed.add(model)
        jobs = [(g.first - first, g.last - first, n * units[g.model]) for g, n in counted.items() if g.model in allowed]
        total = earliest_first(jobs, capacity)
        gained += (total - before) / units[model]
        before = total
    return gained


def earliest_first(jobs: Sequence[tuple[int, int, float]], capacity: Sequence[float]) -> float:
    """Most units of jobs (first slot, last slot, units) that fit: a maximum flow, since windows are intervals."""
    waiting: list[tuple[int, float]] = []
    arrivals = sorted(jobs)
    total, at = 0.0, 0
    for slot, room in enumerate(capacity):
        while at < len(arrivals) and arrivals[at][0] <= slot:
            heapq.heappush(waiting, (arrivals[at][1], arrivals[at][2]))
            at += 1
        while waiting and room > 0.0:
            last, units = heapq.heappop(waiting)
            if last < slot:
                continue
            used = min(units, room)
            room -= used
            total += used
            if units > used:
                heapq.heappush(waiting, (last, units - used))
    return total
