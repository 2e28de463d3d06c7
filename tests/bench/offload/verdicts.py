"""Ours beside the best of the others, scenario by scenario, in sentences. No measuring.

The best baseline is the one of highest goodput in that very scenario, whichever it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.bench.report import Row

OURS = "ours"
REFERENCE = "omniscient"
GAIN_IN = ("S2", "S3", "S4", "S5", "S8", "S9", "S10")
"""Where routing by prediction should pay; in the other scenarios it must not lose."""


def is_baseline(policy: str) -> bool:
    """Whether it is a published rule, not ours, a proposal for ours, or one that knows the truth."""
    return not policy.startswith((OURS, "proposed", REFERENCE))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One line for each scenario that has ours and a baseline, and the geometric mean."""
    lines, ratios = [], {}
    for scenario in dict.fromkeys(str(row["scenario"]) for row in rows):
        at = {str(row["policy"]): row for row in rows if row["scenario"] == scenario}
        for figure in ("goodput99", "attainment"):
            others = {name: _value(row, figure) for name, row in at.items() if is_baseline(name)}
            if OURS not in at or not others or at[OURS].get(figure) is None:
                continue
            best = max(others, key=others.__getitem__)
            mine, other = _value(at[OURS], figure), others[best]
            line = f"{scenario}: {figure} {mine:.4g}, best baseline {best} {other:.4g}"
            if REFERENCE in at and (gap := _value(at[REFERENCE], figure) - other) > 0.0:
                line += f", {100.0 * (mine - other) / gap:.0f} % of the gap to {REFERENCE}"
            lines.append(line)
            if figure == "goodput99" and other > 0.0:
                ratios[scenario] = mine / other
    gains = [math.log(max(ratios[name], 1e-9)) for name in GAIN_IN if name in ratios]
    if gains:
        mean = math.exp(sum(gains) / len(gains))
        among = ", ".join(name for name in GAIN_IN if name in ratios)
        lines.append(f"goodput99 over the best baseline, geometric mean of {among}: {mean:.3f}")
    return lines


def _value(row: Row, figure: str) -> float:
    return float(row.get(figure) or 0.0)
