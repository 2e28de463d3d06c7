"""The document of a comparison: rows, verdicts, parts, faults, curves, and how all of it was come by.

Figures only; not here: its words (markdown.py), its pictures (plots.py), measuring.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tests.bench.offload import policies, tuning
from tests.bench.offload.experiment import Comparison
from tests.bench.offload.rows import rows
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.verdicts import pareto, parts, verdicts
from tests.bench.report import Row

COST_BASE = "peak-ewma"
Document = dict[str, Any]
"""Plain JSON: `rows` and the like are lists of flat rows."""
NOTES = (
    "attainment counts every arrival, in percent; a refusal, an error and a late answer are misses",
    "goodput99 is the rate, in requests a second, up to which 99 % of all arrivals are in time, all seeds together",
    "_ci is half a 95 % interval over the seeds; _low and _high bound a bootstrap of paired seeds",
    "ratio and diff are to the best tuned baseline of the scenario, named as base",
    "by_prediction: share of what was sent that came within the prediction and its sigma; within_z: and z sigmas",
    "choose_us compares policies of one run only: it depends on the machine",
)


def document(found: Comparison, *, published: bool = False, seconds: float | None = None) -> Document:
    """All that follows from a comparison; `faults`, `curves` and `bounds` are for the caller to add."""
    return {
        "rows": rows(found),
        "verdicts": [verdict.row() for verdict in verdicts(found)],
        "parts": parts(found),
        "pareto": [row for scenario in found.scenarios() for row in pareto(found, scenario)],
        "notes": notes(found.scenarios()),
        "seeds": list(found.seeds),
        "goodput_seeds": list(found.goodput_seeds),
        "seconds": {name: seconds or SCENARIOS[name].seconds for name in found.scenarios()},
        "parameters": {} if published else _parameters({policy for _, policy in found.cells}),
        "sources": tuning.fingerprint(),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
    }


def notes(scenarios: Sequence[str]) -> list[str]:
    return [*(f"{name}: {SCENARIOS[name].about}" for name in scenarios), *NOTES]


def _parameters(names: set[str]) -> dict[str, Any]:
    """Those chosen by tuning, of the policies compared."""
    return {name: chosen for name, chosen in policies.tuned().items() if name in names}


def without_times(told: Document) -> Document:
    """Without what depends on the machine, but for the cost of a decision as a ratio."""
    rows = [{key: value for key, value in row.items() if key != "choose_us"} for row in told["rows"]]
    return {**told, "rows": rows, "costs": _costs(told["rows"])}


def _costs(found: Sequence[Row]) -> list[Row]:
    """What a decision costs over one of the base, by policy, as mean over the scenarios."""
    costs: dict[str, list[float]] = {}
    of_base = {row["scenario"]: float(row["choose_us"] or 0.0) for row in found if row["policy"] == COST_BASE}
    for row in found:
        if of_base.get(row["scenario"]):
            costs.setdefault(str(row["policy"]), []).append(float(row["choose_us"] or 0.0) / of_base[row["scenario"]])
    return [{"policy": name, "choose_ratio": sum(ratios) / len(ratios)} for name, ratios in costs.items()]
