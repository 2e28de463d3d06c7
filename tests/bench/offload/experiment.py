"""Runs over seeds and rates: one row of figures for each scenario and policy, with 95 % intervals.

Seeds are paired: a seed is the same world for every policy. Not here: one run (world.py), its figures (metrics.py),
the search for goodput (goodput.py), printing (__main__.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from tests.bench.offload.environment import Environment
from tests.bench.offload.goodput import STEP, Counts, Goodput
from tests.bench.offload.metrics import measure
from tests.bench.offload.policy import Policy
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.world import Mesh
from tests.bench.report import Row

Factory = Callable[[], Policy]

BASE = "peak-ewma"
WORST_OF = ("p50_ms", "p99_ms", "p999_ms", "p99_answered_ms", "recovery_s")
"""Figures that may be infinite: of these the median over the seeds is told, of all others the mean."""
T_95 = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
    2.09,
)
"""Student's t, two-sided 95 %, by degrees of freedom from 1."""


@lru_cache(maxsize=128)
def environment(name: str, seed: int, scale: float, seconds: float | None = None) -> Environment:
    """The world of one seed, drawn once for all policies."""
    scenario = SCENARIOS[name]
    return Environment(scenario if seconds is None else replace(scenario, seconds=seconds), seed, scale)


def interval(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    t = T_95[len(values) - 2] if len(values) - 2 < len(T_95) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))


class Cell:
    """One policy in one scenario, over the seeds."""

    def __init__(self, scenario: str, policy: str, factory: Factory, seconds: float | None = None) -> None:
        self.scenario = scenario
        self.policy = policy
        self.figures: list[dict[str, float]] = []
        self.goodput: Goodput | None = None
        self._rate = 0.0
        self._factory = factory
        self._seconds = seconds

    def run(self, seeds: Sequence[int]) -> None:
        """At the scenario's own rate."""
        for seed in seeds:
            world = environment(self.scenario, seed, 1.0, self._seconds)
            self.figures.append(measure(Mesh(world, self._factory).run()))

    def search(self, seeds: Sequence[int], hint: int) -> int:
        """Find the goodput, beginning at a step of the grid; returns the step found."""
        self._rate = environment(self.scenario, seeds[0], 1.0, self._seconds).rate
        self.goodput = Goodput(lambda step: self._counts(seeds, step), hint)
        return self.goodput.step

    def _counts(self, seeds: Sequence[int], step: int) -> Counts:
        worlds = [environment(self.scenario, seed, STEP**step, self._seconds) for seed in seeds]
        return [(Mesh(world, self._factory).run().misses, len(world.requests)) for world in worlds]

    def row(self, base: Cell | None) -> Row:
        """Means over the seeds, and the paired difference to `base`."""
        attainment = [figures["attainment"] for figures in self.figures]
        row: dict[str, str | int | float | None] = {"scenario": self.scenario, "policy": self.policy}
        row |= self._goodput(base)
        row["attainment"] = statistics.fmean(attainment)
        row["attainment_ci"] = interval(attainment)
        differences = [a - b["attainment"] for a, b in zip(attainment, base.figures, strict=True)] if base else []
        row["attainment_diff"] = statistics.fmean(differences) if differences else None
        row["attainment_diff_ci"] = interval(differences)
        for key in self.figures[0]:
            if key != "attainment":
                values = [figures.get(key, math.inf) for figures in self.figures]
                value = statistics.median_high(values) if key in WORST_OF else statistics.fmean(values)
                row[key] = value if math.isfinite(value) else None
        return row

    def _goodput(self, base: Cell | None) -> dict[str, float | None]:
        """Requests a second with its interval; and over that of `base` with the interval of the ratio."""
        keys = ("goodput99", "goodput99_low", "goodput99_high", "ratio", "ratio_low", "ratio_high")
        row: dict[str, float | None] = dict.fromkeys(keys)
        if self.goodput is None:
            return row
        row["goodput99"] = self._rate * self.goodput.factor()
        if (limits := self.goodput.interval()) is not None:
            row["goodput99_low"], row["goodput99_high"] = (self._rate * limit for limit in limits)
        if base is not None and base.goodput is not None:
            ratio = self.goodput.ratio(base.goodput)
            if ratio is not None:
                row["ratio"] = ratio[0]
                row["ratio_low"], row["ratio_high"] = ratio[1] or (None, None)
        return row


def compare(
    scenarios: Sequence[str],
    policies: Mapping[str, Factory],
    seeds: Sequence[int],
    goodput_seeds: Sequence[int],
    seconds: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """One row for each scenario and policy; no goodput without seeds for it."""
    rows: list[Row] = []
    for scenario in scenarios:
        hint = 0
        cells = [Cell(scenario, name, factory, seconds) for name, factory in policies.items()]
        for cell in cells:
            tell(f"{scenario} {cell.policy}")
            cell.run(seeds)
            if goodput_seeds:
                hint = cell.search(goodput_seeds, hint)
        base = next((cell for cell in cells if cell.policy == BASE), None)
        rows += [cell.row(base) for cell in cells]
    return rows
