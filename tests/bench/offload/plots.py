"""The pictures of a comparison, as PNG. Needs matplotlib (the extra `bench`); not here: any figure of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from tests.bench.offload.document import Document
from tests.bench.offload.lineup import DIAL, PRODUCT, REFERENCE, is_baseline
from tests.bench.offload.metrics import SIGMAS, within
from tests.bench.offload.scenarios import AGES_S
from tests.bench.report import Row

MOST = 6
"""Published rules in a picture of bars: the best by goodput."""
DPI = 110


def plots(document: Document, folder: Path) -> list[str]:
    """Draw what the document has figures for; the names of the pictures, without their ending."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    drawn = []
    for name, draw in DRAWN.items():
        figure = draw(document, pyplot)
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
            pyplot.close(figure)
            drawn.append(name)
    return drawn


def _goodput(document: Document, pyplot: Any) -> Any:
    rows = [row for row in document["rows"] if row.get("goodput99") is not None]
    if not rows:
        return None
    scenarios = _unique(rows, "scenario")
    policies = _shown(rows)
    figure, axes = pyplot.subplots(figsize=(14, 5), layout="constrained")
    width = 0.8 / len(policies)
    best = {name: max(_number(row, "goodput99") for row in rows if row["scenario"] == name) for name in scenarios}
    for number, policy in enumerate(policies):
        of = {row["scenario"]: row for row in rows if row["policy"] == policy}
        at = [index + (number - len(policies) / 2 + 0.5) * width for index, name in enumerate(scenarios) if name in of]
        values, low, high = [], [], []
        for name in (name for name in scenarios if name in of):
            value, scale = _number(of[name], "goodput99"), max(best[name], 1e-9)
            values.append(value / scale)
            low.append(max(value - _number(of[name], "goodput99_low", value), 0.0) / scale)
            high.append(max(_number(of[name], "goodput99_high", value) - value, 0.0) / scale)
        axes.bar(at, values, width, yerr=[low, high], label=policy, color=f"C{number}", error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(scenarios)), scenarios)
    axes.set_ylabel("goodput at 99 %, over the best of the scenario")
    axes.legend(ncols=len(policies), fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _rates(document: Document, pyplot: Any) -> Any:
    rows = document.get("curves", [])
    if not rows:
        return None
    scenarios = _unique(rows, "scenario")
    figure, panes = pyplot.subplots(
        1, len(scenarios), figsize=(5 * len(scenarios), 4), squeeze=False, layout="constrained"
    )
    for axes, scenario in zip(panes[0], scenarios, strict=True):
        _lines(axes, [row for row in rows if row["scenario"] == scenario], "rate")
        axes.axhline(99.0, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=scenario, xlabel="requests a second", ylabel="attainment, %")
        axes.legend(fontsize="small")
    return figure


def _stale(document: Document, pyplot: Any) -> Any:
    ages = {f"stale-{age:g}s": age for age in AGES_S}
    rows = [{**row, "age": ages[row["scenario"]]} for row in document.get("faults", []) if row["scenario"] in ages]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    _lines(axes, rows, "age")
    axes.set(xscale="log", xlabel="seconds between reports, none on replies", ylabel="attainment, %")
    axes.legend(fontsize="small")
    return figure


def _lines(axes: Any, rows: Sequence[Row], key: str) -> None:
    """Attainment over `key`, a line for each policy."""
    for number, policy in enumerate(_unique(rows, "policy")):
        of = [row for row in rows if row["policy"] == policy]
        axes.errorbar(
            [_number(row, key) for row in of],
            [_number(row, "attainment") for row in of],
            [_number(row, "attainment_ci") for row in of],
            label=policy,
            color=f"C{number}",
            marker="o",
            markersize=3,
            capsize=2,
        )


def _pareto(document: Document, pyplot: Any) -> Any:
    rows = document["pareto"]
    scenarios = _unique(rows, "scenario")
    if not scenarios:
        return None
    columns = min(len(scenarios), 4)
    lines = -(-len(scenarios) // columns)
    figure, panes = pyplot.subplots(
        lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False, layout="constrained"
    )
    for axes in panes.flat[len(scenarios) :]:
        axes.set_axis_off()
    for axes, scenario in zip(panes.flat, scenarios, strict=False):
        of = {row["policy"]: row for row in rows if row["scenario"] == scenario}
        dial = [of[name] for name in DIAL if name in of]
        for name, row in of.items():
            color = (
                "C0" if name in DIAL else "black" if name == REFERENCE else "C1" if row["front"] == "yes" else "grey"
            )
            place = (_number(row, "missed"), _number(row, "wan_kb_per_good"))
            axes.plot(*place, "o", color=color, markersize=4)
            if color != "grey":
                axes.annotate(name, place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.plot([_number(r, "missed") for r in dial], [_number(r, "wan_kb_per_good") for r in dial], color="C0")
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set(title=scenario, xlabel="missed, %", ylabel="WAN kB a good answer", xlim=(0.0, None))
    return figure


def _calibration(document: Document, pyplot: Any) -> Any:
    rows = [row for row in document["rows"] if row["policy"] == PRODUCT and row.get(within(0.0)) is not None]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for number, row in enumerate(rows):
        style = "-" if number < 10 else "--"
        values = [_number(row, within(z)) for z in SIGMAS]
        axes.plot(SIGMAS, values, style, marker="o", markersize=3, color=f"C{number % 10}", label=row["scenario"])
    usual = [100.0 * NormalDist().cdf(z) for z in SIGMAS]
    axes.plot(SIGMAS, usual, ":", color="black", label="normal")
    axes.set(xlabel="sigmas above the prediction", ylabel="answers that had come, % of what was sent")
    axes.legend(fontsize="small", ncols=2)
    return figure


DRAWN: dict[str, Callable[[Document, Any], Any]] = {
    "goodput": _goodput,
    "rates": _rates,
    "pareto": _pareto,
    "stale": _stale,
    "calibration": _calibration,
}
"""By name of the file."""


def _shown(rows: Sequence[Row]) -> list[str]:
    """Ours, the best published rules by their sum of goodput over the best of each scenario, and the reference."""
    scenarios = _unique(rows, "scenario")
    best = {name: max(_number(row, "goodput99") for row in rows if row["scenario"] == name) for name in scenarios}
    sums: dict[str, float] = {}
    for row in rows:
        if is_baseline(str(row["policy"])):
            share = _number(row, "goodput99") / max(best[str(row["scenario"])], 1e-9)
            sums[str(row["policy"])] = sums.get(str(row["policy"]), 0.0) + share
    present = _unique(rows, "policy")
    others = sorted(sums, key=lambda name: -sums[name])[:MOST]
    return [name for name in (PRODUCT, *others, REFERENCE) if name in present]


def _unique(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _number(row: Row, key: str, default: float = 0.0) -> float:
    value = row.get(key)
    return default if value is None else float(value)
