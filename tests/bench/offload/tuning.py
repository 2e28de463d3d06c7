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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.offload import policies
from tests.bench.offload.environment import Environment
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.world import Mesh

BUDGET = 12
FIRST_SEED = 1_000
"""Reported runs count from 0; tuning seeds are far from them."""
ON = ("S2", "S3", "S4", "S5", "S8", "S10")
EPSILON = 1e-4
"""A point must be this much better in attainment than the published one."""

GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "peak-ewma": {"tau_s": (10.0, 0.5, 1.0, 3.0, 30.0, 100.0), "failure": (2.0, 1.0)},
    "peak-ewma-p2c": {"tau_s": (10.0, 0.5, 1.0, 3.0, 30.0, 100.0), "failure": (2.0, 1.0)},
    "c3": {"alpha": (0.9, 0.3, 0.1), "exponent": (3.0, 2.0), "clients": (None, 1)},
    "ray-pow2": {"cache_s": (10.0, 1.0, 0.25), "max_ongoing": (5, 2, 10, 20)},
    "llmd-like": {"strategy": ("least", "most"), "buffer": (0.0, 0.25, 0.5), "explore": (0.01, 0.0)},
    "prequal-net": {"quantile": (2**-0.25, 0.95, 1.0), "probes": (3.0, 6.0), "share": (0.5, 1.0)},
    "dgd-lb-like": {"step": (5.0, 1.0, 2.0, 10.0, 20.0, 50.0), "floor": (0.005, 0.0)},
    "gmsr-like": {"fits": (True, False), "network": (False, True)},
    "proposed": {"explore": (0.01, 0.0), "near": (0.08, 0.04), "z": (1.0, 0.5, 2.0)},
}


ROOT = Path(__file__).parents[3]
BESIDE = ("__main__", "bound", "experiment", "goodput", "metrics", "ours", "tuning", "verdicts")
"""Modules of this package that do not change what a policy's run comes to."""
PRODUCT = ("edge/batching.py", "edge/latency.py", "mesh/estimator.py")


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


def worlds(scenarios: Sequence[str], seeds: int, seconds: float) -> Iterator[Environment]:
    """The tuning worlds, drawn one at a time, the same ones in each call."""
    for scenario in scenarios:
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            yield Environment(replace(SCENARIOS[scenario], seconds=seconds), seed)


def attainment(name: str, parameters: Mapping[str, Any], environments: Sequence[Environment]) -> tuple[float, float]:
    """Mean share of arrivals answered in time, and mean WAN MB of a run."""
    shares, wan = [], []
    for environment in environments:
        mesh = Mesh(environment, lambda: policies.make(name, parameters)).run()
        shares.append(1.0 - mesh.misses / max(len(environment.requests), 1))
        wan.append(mesh.network.wan_bytes() / 1e6)
    return sum(shares) / len(shares), sum(wan) / len(wan)


def tune(name: str, environments: Sequence[Environment]) -> dict[str, Any]:
    """Evaluate a policy's grid: the best point, its figures and those of the published one."""
    points = grid(name)
    figures = [attainment(name, point, environments) for point in points]
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--policy", nargs="+", choices=sorted(GRIDS), default=list(GRIDS))
    parser.add_argument("--scenario", nargs="+", choices=sorted(SCENARIOS), default=list(ON))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=policies.TUNED)
    options = parser.parse_args(arguments)
    on = {
        "version": fingerprint(),
        "scenarios": options.scenario,
        "seeds": [FIRST_SEED, FIRST_SEED + options.seeds - 1],
        "seconds": options.seconds,
        "budget": BUDGET,
    }
    environments = list(worlds(options.scenario, options.seeds, options.seconds))
    written = kept(options.out, on)
    for name in options.policy:
        written[name] = tune(name, environments)
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
