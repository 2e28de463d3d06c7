"""Rows of a comparison: means over the seeds with 95 % intervals, and paired differences to the best baseline.

The best baseline is that of highest goodput in that very scenario, or of highest attainment where no goodput was
searched for, whichever policy it is. Not here: runs (experiment.py), what the differences amount to (verdicts.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from tests.bench.offload.experiment import Cell, Comparison
from tests.bench.offload.lineup import is_baseline
from tests.bench.report import Row

WORST_OF = ("p50_ms", "p99_ms", "p999_ms", "p99_answered_ms", "recovery_s")
"""Figures that may be infinite: of these the median over the seeds is told, of all others the mean."""
T_95 = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09,
)  # fmt: skip
"""Student's t, two-sided 95 %, by degrees of freedom from 1."""
WITH_INTERVAL = ("attainment", "wan_mb", "wan_kb_per_good")


def interval(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    t = T_95[len(values) - 2] if len(values) - 2 < len(T_95) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))


def best_baseline(cells: Mapping[str, Cell], figure: str | None = None) -> Cell | None:
    """Of one scenario, by policy: the published rule that does best by goodput, or by attainment if that is asked."""
    others = [cell for name, cell in cells.items() if is_baseline(name)]
    searched = [cell for cell in others if cell.goodput is not None] if figure != "attainment" else []
    return max(searched or others, key=goodput if searched else attainment, default=None)


def goodput(cell: Cell) -> float:
    """Requests a second; 0 where it was not searched for."""
    return cell.rate * cell.goodput.factor() if cell.goodput is not None else 0.0


def attainment(cell: Cell) -> float:
    return mean(cell, "attainment")


def mean(cell: Cell, figure: str) -> float:
    return statistics.fmean(of.get(figure, 0.0) for of in cell.figures)


def rows(found: Comparison) -> list[Row]:
    """One for each scenario and policy, in their order."""
    out: list[Row] = []
    for scenario in found.scenarios():
        cells = found.of(scenario)
        base = best_baseline(cells)
        out += [_row(cell, base) for cell in cells.values()]
    return out


def _row(cell: Cell, base: Cell | None) -> Row:
    row: dict[str, str | int | float | None] = {"scenario": cell.scenario, "policy": cell.policy}
    row |= _goodput(cell, base)
    keys = list(dict.fromkeys(key for figures in cell.figures for key in figures))
    for key in sorted(keys, key=lambda key: key not in WITH_INTERVAL):
        values = [figures.get(key, math.inf if key in WORST_OF else 0.0) for figures in cell.figures]
        value = statistics.median_high(values) if key in WORST_OF else statistics.fmean(values)
        row[key] = value if math.isfinite(value) else None
        if key in WITH_INTERVAL:
            row[f"{key}_ci"] = interval(values)
        if key == "attainment":
            row |= _difference(cell, base)
    return row


def _difference(cell: Cell, base: Cell | None) -> Row:
    if base is None:
        return {"attainment_diff": None, "attainment_diff_ci": None}
    pairs = zip(cell.figures, base.figures, strict=True)
    differences = [mine["attainment"] - other["attainment"] for mine, other in pairs]
    return {"attainment_diff": statistics.fmean(differences), "attainment_diff_ci": interval(differences)}


def _goodput(cell: Cell, base: Cell | None) -> Row:
    """Requests a second with its interval; and over that of the best baseline with the interval of the ratio."""
    keys = ("goodput99", "goodput99_low", "goodput99_high", "ratio", "ratio_low", "ratio_high")
    row: dict[str, str | int | float | None] = {"base": base.policy if base is not None else None}
    row |= dict.fromkeys(keys)
    if cell.goodput is None:
        return row
    row["goodput99"] = goodput(cell)
    if (limits := cell.goodput.interval()) is not None:
        row["goodput99_low"], row["goodput99_high"] = (cell.rate * limit for limit in limits)
    if base is not None and base.goodput is not None and (ratio := cell.goodput.ratio(base.goodput)) is not None:
        row["ratio"] = ratio[0]
        row["ratio_low"], row["ratio_high"] = ratio[1] or (None, None)
    return row
