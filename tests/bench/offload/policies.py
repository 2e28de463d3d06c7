"""All policies of the comparison by name, with published parameters and with those chosen on the tuning seeds.

Not here: the product's own rule (``ours``), which the bench adds; the rules themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.offload import baselines, baselines_latency, marginal, prequal
from tests.bench.offload.omniscient import Omniscient
from tests.bench.offload.policy import Policy

TUNED = Path(__file__).with_name("tuned.json")
Parameters = Mapping[str, Any]


_MAKERS: dict[str, Callable[..., Policy]] = {
    "local-only": baselines.LocalOnly,
    "cloud-only": baselines.CloudOnly,
    "round-robin": baselines.RoundRobin,
    "random": baselines.Random,
    "weighted-rr": baselines.WeightedRoundRobin,
    "least-reported": baselines.LeastReported,
    "least-inflight": baselines.LeastInFlight,
    "least-inflight-p2c": partial(baselines.LeastInFlight, choices=2),
    "ray-pow2": baselines.RayPowerOfTwo,
    "peak-ewma": baselines_latency.PeakEwma,
    "peak-ewma-p2c": partial(baselines_latency.PeakEwma, choices=2),
    "c3": baselines_latency.C3,
    "llmd-like": baselines_latency.LlmdLike,
    "prequal": prequal.Prequal,
    "prequal-net": partial(prequal.Prequal, network=True),
    "dgd-lb-like": marginal.DgdLike,
    "gmsr-like": marginal.GmsrLike,
    "omniscient": Omniscient,
}

NAMES = tuple(_MAKERS)


def make(name: str, parameters: Parameters | None = None) -> Policy:
    """A fresh policy for one router; raises ``KeyError`` for a name that is not in :data:`NAMES`."""
    return _MAKERS[name](**(parameters or {}))


def tuned(path: Path = TUNED) -> dict[str, dict[str, Any]]:
    """Parameters chosen by ``tuning``, by policy."""
    if not path.exists():
        return {}
    return {name: entry["parameters"] for name, entry in json.loads(path.read_text())["policies"].items()}
