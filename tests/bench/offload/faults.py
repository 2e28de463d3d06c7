"""``python -m tests.bench.offload.faults``: stale reports, five routers, a liar, a slow node, a narrow link, a spike.

For each fault: attainment before it, in its first two seconds, and settled; and the time until traffic has moved away
and until attainment is back, in windows of 100 ms pooled over the seeds. Not here: what the scenarios are
(scenarios.py), the arithmetic of windows (timeline.py), the table of all scenarios (__main__.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from statistics import fmean
from typing import NamedTuple

from tests.bench.offload import lineup
from tests.bench.offload.environment import Environment
from tests.bench.offload.experiment import environment
from tests.bench.offload.goodput import draws, middle
from tests.bench.offload.lineup import Factory
from tests.bench.offload.rows import interval
from tests.bench.offload.scenarios import AGES_S, SCENARIOS
from tests.bench.offload.timeline import WINDOW_S, Timeline, attained, back_s, moved_s, pooled, share, timeline
from tests.bench.offload.work import Work, workers
from tests.bench.offload.world import Mesh
from tests.bench.report import Row, show

STALE = tuple(f"stale-{age:g}s" for age in AGES_S)
WATCHED = ("fault-lie", "fault-slow", "fault-link")
SPIKE = "fault-spike"
CENTRAL = "fault-five-routers"
NAMES = (*STALE, CENTRAL, *WATCHED, SPIKE)
POLICIES = ("ours", "peak-ewma", "prequal-net")
FIRST_S = 2.0
BEFORE_S = 5.0
RESAMPLES = 200
OF_FAULTS = (
    "before", "first_2s", "settled", "share_before", "share_first_2s", "share_settled", "moved_s", "moved_s_low",
    "moved_s_high", "back_s", "back_s_low", "back_s_high", "good_ratio",
)  # fmt: skip


class Piece(NamedTuple):
    scenario: str
    policy: Factory
    seed: int
    seconds: float | None = None


class Seen(NamedTuple):
    """What one run shows."""

    attainment: float
    line: Timeline


def look(piece: Piece) -> Seen:
    """One run."""
    world = environment(piece.scenario, piece.seed, 1.0, piece.seconds)
    mesh = Mesh(world, piece.policy).run()
    return Seen(1.0 - mesh.misses / max(len(world.requests), 1), timeline(mesh, _watch(world)))


def _watch(world: Environment) -> Callable[[int, int], bool | None]:
    """Of a bad node: what others send it, of all they send. Of a bad link: what goes over it, of all of its site."""
    faults = world.scenario.faults
    if not faults:
        return lambda origin, node: None
    bad, kind = faults[0].node, faults[0].kind
    sites = [node.site for node in world.nodes]
    if kind == "link":
        return lambda origin, node: sites[node] != sites[bad] if sites[origin] == sites[bad] else None
    return lambda origin, node: node == bad if origin != bad and sites[origin] == sites[bad] else None


def faults(
    names: Sequence[str],
    policies: Mapping[str, Factory],
    seeds: Sequence[int],
    seconds: float | None = None,
    work: Work | None = None,
) -> list[Row]:
    """One row for each scenario and policy."""
    order = [(name, seed, policy) for name in names for seed in seeds for policy in policies]
    pieces = [Piece(name, policies[policy], seed, seconds) for name, seed, policy in order]
    seen = dict(zip(order, (work or Work()).each(look, pieces, "faults"), strict=True))
    rows = []
    for name in names:
        for policy in policies:
            runs = [seen[name, seed, policy] for seed in seeds]
            rows.append(_row(name, policy, runs, seconds or SCENARIOS[name].seconds))
    return rows


def _row(name: str, policy: str, runs: Sequence[Seen], seconds: float) -> Row:
    attainments = [100.0 * run.attainment for run in runs]
    row: dict[str, str | int | float | None] = {"scenario": name, "policy": policy}
    row |= {"attainment": fmean(attainments), "attainment_ci": interval(attainments), **dict.fromkeys(OF_FAULTS)}
    when = _span(name, seconds)
    if when is None:
        return row
    lines = [run.line for run in runs]
    told = _figures(name, pooled(lines), *when)
    row |= {key: value if isfinite(value) else None for key, value in told.items()}
    again = [_figures(name, pooled([lines[at] for at in draw]), *when) for draw in draws(len(lines))[:RESAMPLES]]
    for key in ("moved_s", "back_s"):
        limits = middle([of[key] for of in again if key in of])
        if limits is not None:
            row[f"{key}_low"], row[f"{key}_high"] = (limit if isfinite(limit) else None for limit in limits)
    return row


def _span(name: str, seconds: float) -> tuple[float, float] | None:
    """From when to when something is wrong; the spike's is over soon, so that its end is the run's."""
    scenario = SCENARIOS[name]
    if scenario.faults:
        begin_s = scenario.faults[0].at * seconds
        return begin_s, min(begin_s + scenario.faults[0].lasts_s, seconds)
    if scenario.load.spikes:
        begin, lasts_s, _, _ = scenario.load.spikes[0]
        return begin * seconds, min(begin * seconds + lasts_s, seconds)
    return None


def _figures(name: str, line: Timeline, begin_s: float, end_s: float) -> dict[str, float]:
    """Percentages of attainment and of dispatches; good answers a second in a spike over those before; times."""
    from_s = max(begin_s - BEFORE_S, 0.0)
    before = attained(line, from_s, begin_s)
    figures = {"before": 100.0 * before, "first_2s": 100.0 * attained(line, begin_s, begin_s + FIRST_S)}
    if name == SPIKE:
        last_s = len(line.arrivals) * WINDOW_S - 1.0
        good = [share(line.good, [1] * len(line.good), *span) for span in ((from_s, begin_s), (begin_s, end_s))]
        figures["settled"] = 100.0 * attained(line, last_s - BEFORE_S, last_s)
        figures["good_ratio"] = good[1] / good[0] if good[0] else inf
        figures["back_s"] = back_s(line, end_s, last_s, before)
        return figures
    third_s = begin_s + (end_s - begin_s) * 2.0 / 3.0
    figures["settled"] = 100.0 * attained(line, third_s, end_s)
    figures["share_before"] = 100.0 * share(line.watched, line.sent, from_s, begin_s)
    figures["share_first_2s"] = 100.0 * share(line.watched, line.sent, begin_s, begin_s + FIRST_S)
    figures["share_settled"] = 100.0 * share(line.watched, line.sent, third_s, end_s)
    figures["moved_s"] = moved_s(line, begin_s, end_s)
    figures["back_s"] = back_s(line, begin_s, end_s, before)
    return figures


NOTES = (
    "before, first_2s, settled: attainment in % in the 5 s before a fault, its first 2 s, its last third",
    "settled of the spike: in the last 5 s of the run",
    "share_*: % of what a site's other nodes send that goes to the bad one; of the link, % of its site's that uses it",
    "moved_s: until the share is at most 1.2 times the settled one, and half a point, in 100 ms and in the next second",
    "back_s: likewise until attainment is within 2 points of before; of the spike from its end; none: not in the fault",
    "good_ratio: good answers a second during the spike over those before it; below 1 would be a collapse",
    "_low and _high: bootstrap over the seeds, none: not within the fault",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policy", nargs="*", choices=lineup.names(), default=list(POLICIES))
    parser.add_argument("--scenario", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, help="processes; as many as there are cores")
    arguments = parser.parse_args()
    policies = {name: lineup.factory(name) for name in arguments.policy}
    with workers(arguments.jobs, tells=True) as work:
        rows = faults(arguments.scenario, policies, range(1, arguments.seeds + 1), work=work)
    notes = [f"{name}: {SCENARIOS[name].about}" for name in arguments.scenario]
    show(rows, [*notes, *NOTES, f"seeds 1 to {arguments.seeds}"], as_json=arguments.json)


if __name__ == "__main__":
    main()
