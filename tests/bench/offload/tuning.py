"""``python -m tests.bench.offload.tuning``: choose each policy's parameters on seeds that are never reported.

Every policy with parameters gets a grid of at most :data:`BUDGET` points, ours like the others; what has fewer sensible
settings has fewer points. The point with the best mean attainment over scenarios and seeds is written to ``tuned.json``
with its figures; of equal points the published one, which comes first, stays. ``prequal`` stays as published, its tuned
self is ``prequal-net``. Figures of different versions of the simulated mesh do not compare: the file names the version
by a digest of the sources, and what was chosen on another one is dropped. Not here: the reported runs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mesh.balancer import OURS
from tests.bench.offload import lineup, policies
from tests.bench.offload.experiment import environment
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.work import Work, workers
from tests.bench.offload.world import Mesh

BUDGET = 12
FIRST_SEED = 1_000
"""Reported runs count from 0; tuning seeds are far from them."""
ON = ("S2", "S3", "S4", "S5", "S8", "S10")
EPSILON = 1e-4
"""A point must be this much better in attainment than the published one."""


def _from(default: float, *others: float) -> tuple[float, ...]:
    """The product's own setting first."""
    return (default, *[other for other in others if other != default])


GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "peak-ewma": {"tau_s": (10.0, 0.5, 1.0, 3.0, 30.0, 100.0), "failure": (2.0, 1.0)},
    "peak-ewma-p2c": {"tau_s": (10.0, 0.5, 1.0, 3.0, 30.0, 100.0), "failure": (2.0, 1.0)},
    "c3": {"alpha": (0.9, 0.3, 0.1), "exponent": (3.0, 2.0), "clients": (None, 1)},
    "ray-pow2": {"cache_s": (10.0, 1.0, 0.25), "max_ongoing": (5, 2, 10, 20)},
    "llmd-like": {"strategy": ("least", "most"), "buffer": (0.0, 0.25, 0.5), "explore": (0.01, 0.0)},
    "prequal-net": {"quantile": (2**-0.25, 0.95, 1.0), "probes": (3.0, 6.0), "share": (0.5, 1.0)},
    "dgd-lb-like": {"step": (5.0, 1.0, 2.0, 10.0, 20.0, 50.0), "floor": (0.005, 0.0)},
    "gmsr-like": {"fits": (True, False), "network": (False, True)},
    "ours": {
        "near_budget": _from(OURS.near_budget, 0.05, 0.10)[:2],
        "near_ratio": _from(OURS.near_ratio, 0.25, 0.5)[:2],
    },
}


ROOT = Path(__file__).parents[3]
BESIDE = (
    "__main__", "bound", "curves", "document", "experiment", "faults", "goodput", "lineup", "markdown", "metrics",
    "plots", "publish", "rows", "timeline", "tuning", "verdicts", "work",
)  # fmt: skip
"""Modules of this package that do not change what a policy's run comes to."""
PRODUCT = (
    "edge/batching.py", "edge/latency.py", "mesh/balancer.py", "mesh/estimator.py", "mesh/link.py", "mesh/outlook.py",
    "mesh/residual.py", "mesh/wires.py",
)  # fmt: skip


def fingerprint() -> str:
    """Digest of the sources that a policy's figures depend on."""
    sources = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in BESIDE)
    digest = hashlib.sha256()
    for path in [*sources, *(ROOT / name for name in PRODUCT)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def grid(name: str) -> list[dict[str, Any]]:
    """The points of a policy, the published one first; a policy without parameters has that one only."""
    axes = GRIDS.get(name, {})
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(points) > BUDGET:
        raise ValueError(f"{name} has {len(points)} points, {BUDGET} are allowed")
    return points


class Trial(NamedTuple):
    """One point of one policy in one world."""

    policy: str
    parameters: Mapping[str, Any]
    scenario: str
    seed: int
    seconds: float


def attainment(trial: Trial) -> tuple[float, float]:
    """Share of arrivals answered in time, and WAN MB."""
    world = environment(trial.scenario, trial.seed, 1.0, trial.seconds)
    mesh = Mesh(world, partial(lineup.with_parameters, trial.policy, trial.parameters)).run()
    return 1.0 - mesh.misses / max(len(world.requests), 1), mesh.network.wan_bytes() / 1e6


def tune(name: str, worlds: Sequence[tuple[str, int, float]], work: Work) -> dict[str, Any]:
    """Evaluate a policy's grid in all worlds (scenario, seed, seconds): the best point, its figures and those of the
    published one."""
    points = grid(name)
    trials = [Trial(name, point, *world) for world in worlds for point in points]
    results = work.each(attainment, trials, name)
    figures = [_mean(results[at :: len(points)]) for at in range(len(points))]
    best = 0
    for index, (share, _) in enumerate(figures):
        if share > figures[best][0] + (EPSILON if best == 0 else 0.0):
            best = index
    return {
        "parameters": points[best],
        "attainment": round(figures[best][0], 5),
        "wan_mb": round(figures[best][1], 1),
        "published": {"attainment": round(figures[0][0], 5), "wan_mb": round(figures[0][1], 1)},
        "points": len(points),
    }


def _mean(figures: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum([share for share, _ in figures]) / len(figures), sum([wan for _, wan in figures]) / len(figures)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--policy", nargs="+", choices=sorted(GRIDS), default=list(GRIDS))
    parser.add_argument("--scenario", nargs="+", choices=sorted(SCENARIOS), default=list(ON))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, help="processes; as many as there are cores")
    parser.add_argument("--out", type=Path, default=policies.TUNED)
    options = parser.parse_args(arguments)
    on = {
        "version": fingerprint(),
        "scenarios": options.scenario,
        "seeds": [FIRST_SEED, FIRST_SEED + options.seeds - 1],
        "seconds": options.seconds,
        "budget": BUDGET,
    }
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    worlds = [(scenario, seed, options.seconds) for scenario in options.scenario for seed in seeds]
    written = kept(options.out, on)
    with workers(options.jobs) as work:
        for name in options.policy:
            written[name] = tune(name, worlds, work)
            print(f"{name:16} {written[name]}", file=sys.stderr, flush=True)
            options.out.write_text(json.dumps({**on, "policies": written}, indent=2) + "\n")
    return 0


def kept(path: Path, on: Mapping[str, Any]) -> dict[str, Any]:
    """What the file already holds of policies tuned on exactly the same: version, scenarios, seeds, budget."""
    document = json.loads(path.read_text()) if path.exists() else {}
    same = all(document.get(key) == value for key, value in on.items())
    return dict(document.get("policies", {})) if same else {}


if __name__ == "__main__":
    sys.exit(main())
