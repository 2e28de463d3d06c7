"""Attainment over the rate of arrivals, and the upper bound of attainment at the scenario's own rate.

Not here: the search for goodput (goodput.py), the bounds themselves (bound.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from tests.bench.offload.bound import Instance, bound
from tests.bench.offload.experiment import Run, environment, run
from tests.bench.offload.lineup import Factory
from tests.bench.offload.rows import interval
from tests.bench.offload.work import Work
from tests.bench.report import Row

SCENARIOS = ("S2", "S5", "S10")
POLICIES = ("ours", "peak-ewma", "prequal-net", "omniscient")
BOUND_SLOT_S = 0.1
"""Longer than usual: a looser bound, found four times as fast."""
SCALES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)


def curves(
    scenarios: Sequence[str],
    policies: Mapping[str, Factory],
    seeds: Sequence[int],
    seconds: float | None,
    work: Work,
) -> list[Row]:
    """One row for each scenario, policy and scale of the rate."""
    order = [
        (name, scale, seed, policy) for name in scenarios for scale in SCALES for seed in seeds for policy in policies
    ]
    pieces = [Run(name, policies[policy], seed, scale, seconds) for name, scale, seed, policy in order]
    done = dict(zip(order, work.each(run, pieces, "curves"), strict=True))
    rows: list[Row] = []
    for name in scenarios:
        for policy in policies:
            for scale in SCALES:
                figures = [done[name, scale, seed, policy] for seed in seeds]
                attained = [of["attainment"] for of in figures]
                rate = fmean(of["rate"] for of in figures)
                row: Row = {"scenario": name, "policy": policy, "scale": scale, "rate": rate}
                rows.append({**row, "attainment": fmean(attained), "attainment_ci": interval(attained)})
    return rows


class World(NamedTuple):
    scenario: str
    seed: int
    seconds: float | None


def most(piece: World) -> float:
    """Percentage of the arrivals that no policy can exceed."""
    world = environment(piece.scenario, piece.seed, 1.0, piece.seconds)
    return 100.0 * min(bound(Instance.of(world), BOUND_SLOT_S) / max(len(world.requests), 1), 1.0)


def bounds(scenarios: Sequence[str], seeds: Sequence[int], seconds: float | None, work: Work) -> list[Row]:
    """One row for each scenario."""
    pieces = [World(name, seed, seconds) for name in scenarios for seed in seeds]
    found = work.each(most, pieces, "bounds")
    by = {name: [value for piece, value in zip(pieces, found, strict=True) if piece[0] == name] for name in scenarios}
    return [
        {"scenario": name, "attainment_bound": fmean(values), "attainment_bound_ci": interval(values)}
        for name, values in by.items()
    ]
