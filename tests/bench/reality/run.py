"""One real run and its figures: the arrivals of a seed played at the doors of a fresh fleet.

Every arrival counts: one is good if the right answer came within its SLO, by the client's clock, from the moment it was
due. Not here: the same in the simulator (``simulated``), the table (``__main__``).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.offload.environment import Environment
from tests.bench.reality.busy import watched
from tests.bench.reality.fleet import Fleet, Unusable
from tests.bench.reality.load import Arrival, Outcome
from tests.bench.reality.scenarios import Case
from tests.bench.reality.testbed import Bed
from tests.bench.stats import percentile

ROUTES = ("local", "peer", "cloud")
MAX_LAG_MS = 10.0
"""Of the 99th percentile of the moments at which requests left, beyond which a run says nothing."""


@dataclass(frozen=True)
class Figures:
    """Of one run. A latency is infinite where that share of the arrivals had no answer in time."""

    attainment: float
    """Percent of all arrivals."""
    p50_ms: float
    p99_ms: float
    wan_mb: float
    routes: dict[str, float]
    """Percent of the arrivals by where they ran; the rest was not answered."""


@dataclass(frozen=True)
class Run:
    """A real run: its figures, and whether they mean anything."""

    figures: Figures
    busy: float
    own: float
    """Percent of the machine's time that was used, and that these processes used."""
    full: float
    """Percent of the looks that found the machine full."""
    lag_ms: float
    statuses: dict[int, int]
    wrong: int
    invalid: str
    """Why not; empty if they do."""


async def real(bed: Bed, case: Case, seed: int, policy: str, environ: Mapping[str, str]) -> Run:
    """Start a fleet with more settings in its environment, play, stop it. Raises ``Unusable``."""
    world = case.environment(seed)
    arrivals = [Arrival(r.id, r.born_s, r.origin, r.model) for r in world.requests]
    async with Fleet(bed, world, policy, environ=environ) as fleet, fleet.loaded(arrivals) as load:
        if case.slowdown is not None:
            slow, seconds = case.slowdown, case.scenario.seconds
            begin, end = (load.start + share * seconds for share in (slow.begin, slow.end))
            fleet.slowdown_path(slow.node).write_text(f"{begin} {end} {slow.factor}")
        await asyncio.sleep(load.start_in_s())
        before = await asyncio.to_thread(bed.wan_bytes)
        async with watched() as busy:
            outcomes = await load.outcomes()
        wan_mb = (await asyncio.to_thread(bed.wan_bytes) - before) / 1e6
    if [outcome.id for outcome in outcomes] != list(range(len(arrivals))):
        raise Unusable(f"{len(outcomes)} outcomes of {len(arrivals)} arrivals")
    lag_ms = percentile(sorted(outcome.lag_ms for outcome in outcomes), 0.99)
    statuses = [outcome.status for outcome in outcomes]
    return Run(
        figures(world, outcomes, wan_mb),
        100.0 * busy.mean,
        100.0 * busy.own,
        100.0 * busy.full,
        lag_ms,
        {status: statuses.count(status) for status in sorted(set(statuses))},
        sum(outcome.wrong for outcome in outcomes),
        "the machine was saturated" if busy.saturated else "the generator was late" if lag_ms > MAX_LAG_MS else "",
    )


def is_good(world: Environment, outcome: Outcome) -> bool:
    """The right answer in time."""
    slo_ms = world.scenario.models[world.requests[outcome.id].model].slo_ms
    return outcome.status == 200 and not outcome.wrong and outcome.latency_ms <= slo_ms


def figures(world: Environment, outcomes: Sequence[Outcome], wan_mb: float) -> Figures:
    """Count every arrival."""
    good = [is_good(world, outcome) for outcome in outcomes]
    took = sorted(o.latency_ms if fine else math.inf for o, fine in zip(outcomes, good, strict=True))
    return Figures(
        100.0 * sum(good) / len(outcomes),
        percentile(took, 0.50),
        percentile(took, 0.99),
        wan_mb,
        route_shares([outcome.route if fine else "" for outcome, fine in zip(outcomes, good, strict=True)]),
    )


def route_shares(routes: Sequence[str]) -> dict[str, float]:
    """Percent of good answers by where they ran, over all arrivals."""
    return {route: 100.0 * routes.count(route) / max(len(routes), 1) for route in ROUTES}
