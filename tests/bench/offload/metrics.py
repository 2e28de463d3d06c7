"""What one run was worth: attainment over every arrival, latencies, bytes, fairness, waste, how well it predicted.

Arithmetic on finished runs only. Not here: runs (world.py), several seeds and rates (experiment.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tests.bench.offload.reporting import REPORT_BYTES
from tests.bench.offload.world import Mesh
from tests.bench.stats import percentile

RECOVERED = 0.98
"""Attainment of a second, and of the two behind it, from which on a disturbance is over."""
LOOK_S = 3
SIGMAS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Sigmas above the prediction at which is asked how many of the answers had come, for its calibration."""


def within(sigmas: float) -> str:
    """The name of the figure."""
    return f"within_{sigmas:g}"


def measure(mesh: Mesh) -> dict[str, float]:
    """Figures of one finished run. A latency is infinite where that share of the arrivals had no answer in time."""
    requests, count = mesh.environment.requests, len(mesh.outcomes)
    good = count - mesh.misses
    latencies = sorted(mesh.latency_ms)
    answered = latencies[:good]
    wan_mb = mesh.network.wan_bytes() / 1e6
    cloud_ms = sum([device.executed_ms for device in mesh.devices if device.node.tier == "cloud"])
    executed_ms = sum([device.executed_ms for device in mesh.devices])
    figures = {
        "attainment": 100.0 * good / max(count, 1),
        "arrivals_per_s": count / mesh.scenario.seconds,
        "p50_ms": _at(latencies, 0.5),
        "p99_ms": _at(latencies, 0.99),
        "p999_ms": _at(latencies, 0.999),
        "p99_answered_ms": _at(answered, 0.99),
        "wan_mb": wan_mb,
        "wan_kb_per_good": 1e3 * wan_mb / max(good, 1),
        "cloud_ms_per_good": cloud_ms / max(good, 1),
        "wasted": 100.0 * max(1.0 - mesh.good_ms / executed_ms, 0.0) if executed_ms else 0.0,
        "fairness": jain(_attainments([request.origin for request in requests], mesh)),
        "choose_us": 1e6 * mesh.choose_s / max(mesh.choices, 1),
        "report_kb_per_s": mesh.reporting.sent * REPORT_BYTES / 1e3 / mesh.scenario.seconds,
        **_outcomes(mesh),
        **_predictions(mesh),
    }
    levels = [request.priority for request in requests]
    if mesh.scenario.load.priorities:
        for level, value in zip(sorted(set(levels)), _attainments(levels, mesh), strict=True):
            figures[f"attainment_{level}"] = 100.0 * value
    if mesh.scenario.settled:
        figures["recovery_s"] = recovery_s(mesh)
    return figures


def _at(ordered: Sequence[float], share: float) -> float:
    return percentile(ordered, share) if ordered else math.inf


def _outcomes(mesh: Mesh) -> dict[str, float]:
    count = max(len(mesh.outcomes), 1)
    return {kind: 100.0 * mesh.outcomes.count(kind) / count for kind in ("late", "refused", "rejected", "failed")}


def _attainments(keys: Sequence[int], mesh: Mesh) -> list[float]:
    """By key, in order of the keys."""
    total, good = dict.fromkeys(sorted(set(keys)), 0), dict.fromkeys(sorted(set(keys)), 0)
    for key, outcome in zip(keys, mesh.outcomes, strict=True):
        total[key] += 1
        good[key] += outcome == "good"
    return [good[key] / total[key] for key in total]


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    squares = sum([value * value for value in values])
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _predictions(mesh: Mesh) -> dict[str, float]:
    """Median relative error and mean error of the answers in time, and the share of all that came by the prediction.

    A miss that was sent somewhere did not come by it.
    """
    predictions = mesh.predictions
    if not predictions:
        return {}
    errors = [abs(predicted - took) / max(took, 1e-3) for predicted, _, took in predictions]
    kept = sum([took <= predicted + sigma for predicted, sigma, took in predictions])
    sent = len(predictions) + mesh.misses - mesh.outcomes.count("refused")
    return {
        "predicted_error": 100.0 * statistics.median(errors),
        "predicted_bias_ms": statistics.fmean([predicted - took for predicted, _, took in predictions]),
        "by_prediction": 100.0 * kept / sent,
        **{
            within(z): 100.0 * sum([took <= predicted + z * sigma for predicted, sigma, took in predictions]) / sent
            for z in SIGMAS
            if any(sigma for _, sigma, _ in predictions)
        },
    }


def recovery_s(mesh: Mesh) -> float:
    """Seconds from the last disturbance's end until arrivals are served as before; infinite if they are not again."""
    start, seconds = mesh.scenario.settled * mesh.scenario.seconds, int(mesh.scenario.seconds)
    total, good = [0] * (seconds + 1), [0] * (seconds + 1)
    for request, outcome in zip(mesh.environment.requests, mesh.outcomes, strict=True):
        second = int(request.born_s)
        total[second] += 1
        good[second] += outcome == "good"
    served = [of >= RECOVERED * all_ for of, all_ in zip(good, total, strict=True)]
    for second in range(int(start), seconds - LOOK_S + 1):
        if all(served[second : second + LOOK_S]):
            return max(second - start, 0.0)
    return math.inf
