"""``python -m tests.bench.reality``: the policies on real processes beside the same arrivals in the simulator.

Real agents in network namespaces, real inferences on devices paced to different speeds, wires shaped by ``tbf`` and
delayed by a proxy. Needs root and iproute2. Not here: one run (``run``, ``simulated``), the scenarios.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from tests.bench.offload.__main__ import matching
from tests.bench.offload.rows import interval
from tests.bench.reality import busy, overhead
from tests.bench.reality.fleet import Unusable, policy_environ
from tests.bench.reality.run import MAX_LAG_MS, ROUTES, Figures, Run, real
from tests.bench.reality.scenarios import CASES, MAIN, SLOWER, Case
from tests.bench.reality.simulated import simulate
from tests.bench.reality.testbed import Bed, Denied, laid
from tests.bench.report import Row, machine, show

POLICIES = ("ours", "peak-ewma", "prequal-net", "local-only")
TRIES = 2
"""Most runs of a seed and policy, until one is valid."""
QUICK_S = 12.0
AIM = 3.0
"""Points of attainment by which simulation and reality may differ."""

Pair = tuple[Figures, Run]


@dataclass(frozen=True)
class Asked:
    """What is compared: policies, seeds, and settings of the agents beside the policy."""

    policies: Sequence[str]
    seeds: Sequence[int]
    environ: Mapping[str, str]
    tries: int = TRIES


async def _case(case: Case, asked: Asked, said: list[str]) -> list[Row]:
    """All policies on one scenario's wires, seed by seed, so that a slow phase of the machine hits all of them."""
    wan, scenario = case.scenario.wan, case.scenario
    pairs: dict[str, list[Pair]] = {policy: [] for policy in asked.policies}
    sites = [len(site) for site in (*scenario.sites, scenario.cloud)]
    with laid(sites, wan.mbit, wan.mbit * wan.down) as bed:
        idle = await overhead.measured(bed, case)
        said.append(f"{scenario.name}: {scenario.about}; {idle.told()}")
        for seed in asked.seeds:
            for policy in asked.policies:
                pair = simulate(case, seed, policy, idle), await _valid(bed, case, seed, policy, asked)
                pairs[policy].append(pair)
                _tell(case, seed, policy, pair)
    return [row(scenario.name, policy, pairs[policy]) for policy in asked.policies]


async def _valid(bed: Bed, case: Case, seed: int, policy: str, asked: Asked) -> Run:
    """The first valid run, or the last of the tries."""
    for _ in range(asked.tries):
        found = await real(bed, case, seed, policy, asked.environ)
        if not found.invalid:
            break
    return found


def _tell(case: Case, seed: int, policy: str, pair: Pair) -> None:
    simulated, run = pair
    ran = ", ".join(f"{route} {run.figures.routes[route]:.0f}/{simulated.routes[route]:.0f}" for route in ROUTES)
    parts = [
        f"{time.strftime('%H:%M:%S')} {case.scenario.name}, seed {seed}, {policy}",
        f"attainment {run.figures.attainment:.2f} (simulated {simulated.attainment:.2f})",
        f"ran, real/simulated: {ran}",
        f"statuses {run.statuses}, {run.wrong} wrong",
        f"machine {run.busy:.0f} % busy, {run.own:.0f} % with this, full {run.full:.1f} % of the time",
        f"requests {run.lag_ms:.1f} ms late",
        *([f"INVALID: {run.invalid}"] if run.invalid else []),
    ]
    print("; ".join(parts), file=sys.stderr, flush=True)


def row(scenario: str, policy: str, pairs: Sequence[Pair]) -> Row:
    """Means over the valid runs, and the simulations of the same seeds; of latencies the median."""
    valid = [pair for pair in pairs if not pair[1].invalid]
    simulated, runs = [pair[0] for pair in valid], [pair[1] for pair in valid]
    made = [run.figures for run in runs]
    differences = [there.attainment - here.attainment for here, there in zip(simulated, made, strict=True)]
    return {
        "scenario": scenario,
        "policy": policy,
        "runs": len(valid),
        "invalid": len(pairs) - len(valid),
        "simulated": _mean([f.attainment for f in simulated]),
        "real": _mean([f.attainment for f in made]),
        "difference": _mean(differences),
        "difference_ci": interval(differences),
        "p50_ms": _middle([f.p50_ms for f in made]),
        "p50_sim_ms": _middle([f.p50_ms for f in simulated]),
        "p99_ms": _middle([f.p99_ms for f in made]),
        "p99_sim_ms": _middle([f.p99_ms for f in simulated]),
        "wan_mb": _mean([f.wan_mb for f in made]),
        "wan_sim_mb": _mean([f.wan_mb for f in simulated]),
        **{route: _mean([f.routes[route] for f in made]) for route in ROUTES},
        **{f"{route}_sim": _mean([f.routes[route] for f in simulated]) for route in ROUTES},
        "busy": _mean([run.busy for run in runs]),
        "own": _mean([run.own for run in runs]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _middle(values: Sequence[float]) -> float | None:
    """None where it is infinite: so many had no answer in time."""
    value = statistics.median_high(values) if values else float("inf")
    return value if isfinite(value) else None


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether the order is the simulated one, and where the difference is over the aim."""
    said = []
    for scenario in dict.fromkeys(str(row["scenario"]) for row in rows):
        own = [row for row in rows if row["scenario"] == scenario and row["real"] is not None]
        real_order, order = (
            [str(row["policy"]) for row in sorted(own, key=lambda row: -float(row[key] or 0.0))]
            for key in ("real", "simulated")
        )
        same = "as simulated" if real_order == order else f"simulated {' > '.join(order)}"
        said.append(f"{scenario}: {' > '.join(real_order)}, {same}")
        said += [
            f"{scenario}: {row['policy']} is {float(row['difference'] or 0.0):+.1f} points off, over the aim of {AIM:g}"
            for row in own
            if abs(float(row["difference"] or 0.0)) > AIM
        ]
    return said


async def _case_if_usable(case: Case, asked: Asked, said: list[str]) -> list[Row]:
    """What the other scenarios gave is not lost for one that gives nothing."""
    try:
        return await _case(case, asked, said)
    except Unusable as error:
        said.append(f"{case.scenario.name}: no figures: {error}")
        return []


async def _all(cases: Sequence[Case], asked: Asked, said: list[str]) -> list[Row]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rows: list[Row] = []
    for case in cases:
        rows += await _case_if_usable(case, asked, said)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scenario", nargs="*", default=list(MAIN), help=f"names or patterns: {', '.join(CASES)}")
    parser.add_argument("--policy", nargs="*", default=["*"], help=f"names or patterns: {', '.join(POLICIES)}")
    parser.add_argument("--seconds", type=float, default=25.0, help="of arrivals in each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="more for the agents, as MESH_ROUTER__MAX_HOPS=1")
    parser.add_argument("--quick", action="store_true", help=f"coarse: bursts, two policies, 1 seed of {QUICK_S:g} s")
    arguments = parser.parse_args()
    names = ["bursts"] if arguments.quick else matching(arguments.scenario, CASES)
    policies = ["ours", "peak-ewma"] if arguments.quick else matching(arguments.policy, POLICIES)
    seconds, count = (QUICK_S, 1) if arguments.quick else (arguments.seconds, arguments.seeds)
    notes = [machine(), *_about(seconds, count)]
    unable = {policy: why for policy in policies if (why := _why_not(policy))}
    notes += [f"left out: {why}" for why in unable.values()]
    able = [policy for policy in policies if policy not in unable]
    asked = Asked(
        able, range(1, count + 1), dict(pair.split("=", 1) for pair in arguments.set), 1 if arguments.quick else TRIES
    )
    notes += [f"set for the agents: {pair}" for pair in arguments.set]
    try:
        rows = asyncio.run(_all([CASES[name].lasting(seconds) for name in names], asked, notes))
    except Denied as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("stopped")
    if not rows:
        sys.exit("; ".join(notes[-len(names) :]))
    show(rows, [*notes, *verdicts(rows)], as_json=arguments.json)


def _why_not(policy: str) -> str:
    """Why it cannot be had in this build; empty if it can."""
    try:
        policy_environ(policy)
    except Unusable as error:
        return str(error)
    return ""


def _about(seconds: float, seeds: int) -> list[str]:
    mean, full = 100 * busy.MOST_MEAN, 100 * busy.MOST_FULL
    limits = f"over {mean:.0f} % of the machine used, over {full:.0f} % of the looks found it full"
    return [
        f"seeds 1 to {seeds}, {seconds:g} s each; the same arrivals in both; attainment is percent of all arrivals",
        f"times are {SLOWER:g} times those of the scenarios S1 to S11, bandwidths as many times lower",
        "wan_mb counts headers and heartbeats too, wan_sim_mb only tensors; local, peer, cloud: percent of arrivals",
        f"invalid: {limits}, or requests left over {MAX_LAG_MS:g} ms late (p99); tried again once but with --quick",
    ]


if __name__ == "__main__":
    main()
