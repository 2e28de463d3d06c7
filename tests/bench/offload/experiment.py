"""Runs over seeds and rates: for each scenario and policy the figures of every seed, and the goodput.

Seeds are paired: a seed is the same world for every policy. A run, and a search for goodput, is one piece of work; its
result does not depend on who does it. Not here: one run (world.py), its figures (metrics.py), the search itself
(goodput.py), rows and comparisons (rows.py, verdicts.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from tests.bench.offload import lineup
from tests.bench.offload.environment import Environment
from tests.bench.offload.goodput import STEP, Counts, Goodput, search
from tests.bench.offload.lineup import Factory
from tests.bench.offload.metrics import measure
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.work import Work
from tests.bench.offload.world import Mesh

Figures = dict[str, float]


@lru_cache(maxsize=24)
def environment(name: str, seed: int, scale: float, seconds: float | None = None) -> Environment:
    """The world of one seed, drawn once for all policies of a process."""
    scenario = SCENARIOS[name]
    return Environment(scenario if seconds is None else replace(scenario, seconds=seconds), seed, scale)


class Run(NamedTuple):
    """One policy in one world."""

    scenario: str
    policy: Factory
    seed: int
    scale: float = 1.0
    seconds: float | None = None


class Search(NamedTuple):
    """The goodput of one policy in one scenario; `known` are the counts at the scenario's own rate, if known."""

    scenario: str
    policy: Factory
    seeds: Sequence[int]
    known: Counts | None = None
    seconds: float | None = None


@dataclass
class Cell:
    """One policy in one scenario."""

    scenario: str
    policy: str
    figures: list[Figures]
    """By seed, at the scenario's own rate."""
    rate: float = 0.0
    """Mean arrivals a second at that rate."""
    goodput: Goodput | None = None


@dataclass(frozen=True)
class Comparison:
    """All cells of some scenarios and policies on the same seeds."""

    seeds: Sequence[int]
    goodput_seeds: Sequence[int]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    """By scenario and policy."""

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(scenario for scenario, _ in self.cells))

    def of(self, scenario: str) -> dict[str, Cell]:
        """By policy."""
        return {policy: cell for (name, policy), cell in self.cells.items() if name == scenario}


def run(piece: Run) -> Figures:
    """The figures of one run, with its counts of `misses` and `arrivals`."""
    world = environment(piece.scenario, piece.seed, piece.scale, piece.seconds)
    mesh = Mesh(world, piece.policy).run()
    return {**measure(mesh), "misses": mesh.misses, "arrivals": len(world.requests), "rate": world.rate}


def find(piece: Search) -> Goodput:
    """One search. Runs end early where all seeds together have more misses than the search can use."""

    def runs(step: int, limit: float) -> Counts | None:
        worlds = [environment(piece.scenario, seed, STEP**step, piece.seconds) for seed in piece.seeds]
        left = limit * sum([len(world.requests) for world in worlds])
        counts = []
        for world in worlds:
            mesh = Mesh(world, piece.policy, left).run()
            if mesh.stopped:
                return None
            left -= mesh.misses
            counts.append((mesh.misses, len(world.requests)))
        return counts

    return search(runs, len(piece.seeds), {0: piece.known} if piece.known else None)


HOPELESS = 3.0, 0.5
"""Points of attainment below the best baseline; at least this share of the misses of that."""


def compare(
    scenarios: Sequence[str],
    policies: Mapping[str, Factory],
    seeds: Sequence[int],
    goodput_seeds: Sequence[int],
    seconds: float | None = None,
    work: Work | None = None,
) -> Comparison:
    """Every policy in every scenario; no goodput without seeds for it, which are some of `seeds`.

    Nor of ablations, and of those that are hopeless at the scenario's own rate, which cannot be the best.
    """
    work = work or Work()
    cells = [(scenario, policy) for scenario in scenarios for policy in policies]
    runs = [
        Run(scenario, factory, seed, seconds=seconds)
        for scenario in scenarios
        for seed in seeds
        for factory in policies.values()
    ]
    order = [(scenario, seed, policy) for scenario in scenarios for seed in seeds for policy in policies]
    done = dict(zip(order, work.each(run, runs, "runs"), strict=True))
    found = Comparison(list(seeds), list(goodput_seeds))
    for scenario, policy in cells:
        figures = [done[scenario, seed, policy] for seed in seeds]
        rates = [of.pop("rate") for of in figures]
        found.cells[scenario, policy] = Cell(scenario, policy, figures, rates[0])
    if goodput_seeds:
        at = {seed: index for index, seed in enumerate(seeds)}
        searches, searched = [], _worth_searching(found, scenarios)
        for scenario, policy in searched:
            figures = found.cells[scenario, policy].figures
            some = [figures[at[seed]] for seed in goodput_seeds]
            known = [(int(of["misses"]), int(of["arrivals"])) for of in some]
            searches.append(Search(scenario, policies[policy], list(goodput_seeds), known, seconds))
        for cell, goodput in zip(searched, work.each(find, searches, "searches"), strict=True):
            found.cells[cell].goodput = goodput
    return found


def _worth_searching(found: Comparison, scenarios: Sequence[str]) -> list[tuple[str, str]]:
    worth = []
    for scenario in scenarios:
        mean = {
            policy: statistics.fmean([of["attainment"] for of in cell.figures])
            for (at, policy), cell in found.cells.items()
            if at == scenario and not lineup.is_part(policy)
        }
        best = max([value for policy, value in mean.items() if lineup.is_baseline(policy)], default=0.0)
        worth += [
            (scenario, policy)
            for policy, value in mean.items()
            if best - value <= max(HOPELESS[0], HOPELESS[1] * (100.0 - best))
        ]
    return worth
