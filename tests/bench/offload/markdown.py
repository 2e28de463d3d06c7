"""The document of a comparison as Markdown: a matrix of each figure, then all that is said about them.

Words and tables only; not here: figures (document.py), pictures (plots.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.offload.document import COST_BASE, Document
from tests.bench.report import Row

INTRODUCTION = """Made by `make bench-offload`; every figure is of virtual time. What is compared is told in
`tests/bench/README.md`, all figures are in `offload.json`."""
PICTURES = {
    "goodput": "Goodput by scenario and policy, with 95 % intervals",
    "rates": "Attainment over the rate of arrivals",
    "pareto": "WAN bytes over misses, the dial of ours joined",
    "stale": "Attainment over the age of reports, none on replies",
    "calibration": "Calibration of predictions",
}
OF_EACH = (
    "attainment", "attainment_ci", "attainment_diff", "attainment_diff_ci", "goodput99", "goodput99_low",
    "goodput99_high", "ratio", "p50_ms", "p99_ms", "p999_ms", "wan_mb", "wan_mb_ci", "wan_kb_per_good", "wasted",
    "fairness", "predicted_error", "by_prediction",
)  # fmt: skip


def markdown(document: Document, pictures: Sequence[str] = ()) -> str:
    """The whole page; `pictures` are the names of the PNG files beside it, without their ending."""
    rows: list[Row] = document["rows"]
    blocks = [
        "# Offload: the policies in simulated meshes",
        INTRODUCTION,
        "## What it comes to",
        table(document["verdicts"]),
        "## Goodput at 99 %, requests a second",
        matrix(rows, lambda row: _ranged(row, "goodput99")),
        _picture("goodput", pictures),
        "## Attainment, % of all arrivals",
        matrix(rows, lambda row: _with_ci(row, "attainment")),
        _picture("rates", pictures),
        "## WAN MB of a run",
        matrix(rows, lambda row: _with_ci(row, "wan_mb")),
    ]
    blocks += _section("An upper bound of attainment (linear program)", document.get("bounds", []))
    blocks += _section("WAN bytes and misses", document["pareto"], _picture("pareto", pictures))
    blocks += _section("Parts of the rule and turns of the dial, over ours", document["parts"])
    blocks += _section("Faults and stale reports", document.get("faults", []), _picture("stale", pictures))
    blocks += [f"- {note}" for note in document.get("fault_notes", [])]
    blocks += ["## Predictions", _picture("calibration", pictures)]
    blocks += _section(f"Cost of a decision, over {COST_BASE}", document.get("costs", []))
    blocks += ["## Every scenario", *_each(rows), "## How it was come by", *_how(document)]
    return _joined([block for block in blocks if block])


def table(rows: Sequence[Row]) -> str:
    """Columns that no row fills are left out."""
    if not rows:
        return "none"
    columns = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(key) is not None for row in rows)
    ]
    lines = [columns, ["---"] * len(columns), *([text(row.get(key)) for key in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def matrix(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Policies down, scenarios across; the best of the published rules is not marked, the verdicts name it."""
    scenarios = list(dict.fromkeys(str(row["scenario"]) for row in rows))
    policies = list(dict.fromkeys(str(row["policy"]) for row in rows))
    at = {(row["scenario"], row["policy"]): cell(row) for row in rows}
    lines = [["policy", *scenarios], ["---", *["---:"] * len(scenarios)]]
    table = [[policy, *(at.get((scenario, policy), "-") for scenario in scenarios)] for policy in policies]
    lines += [line for line in table if set(line[1:]) != {"-"}]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000.0 else f"{value:.4g}" if abs(value) >= 10.0 else f"{value:.3g}"
    return str(value)


def _ranged(row: Row, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    value = row.get(key)
    return text(value) if low is None else f"{text(value)} ({text(low)}-{text(high)})"


def _with_ci(row: Row, key: str) -> str:
    value, half = row.get(key), row.get(f"{key}_ci")
    if not isinstance(value, float) or not isinstance(half, float):
        return text(value)
    return f"{value:.2f} ± {half:.2f}" if value < 1000.0 else f"{value:.0f} ± {half:.0f}"


def _section(title: str, rows: Sequence[Row], picture: str = "") -> list[str]:
    return [f"## {title}", table(rows), picture] if rows else []


def _picture(name: str, pictures: Sequence[str]) -> str:
    return f"![{PICTURES[name]}]({name}.png)" if name in pictures else ""


def _each(rows: Sequence[Row]) -> list[str]:
    blocks = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        of = [{key: row.get(key) for key in ("policy", *OF_EACH)} for row in rows if row["scenario"] == scenario]
        blocks += [f"### {scenario}", table(of)]
    return blocks


def _how(document: Document) -> list[str]:
    lines = list(document["notes"])
    lines.append(f"seeds {document['seeds']}, of goodput {document['goodput_seeds']}; tuned on other ones")
    lines.append(f"seconds of a run: {document['seconds']}")
    lines += [f"tuned {name}: {chosen}" for name, chosen in document["parameters"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines.append(f"{versions}; sources {document['sources']}")
    return [f"- {line}" for line in lines]


def _joined(blocks: Sequence[str]) -> str:
    """Items of a list follow each other, all else has a line between."""
    page = ""
    for before, block in zip(["", *blocks], blocks, strict=False):
        page += ("" if not before else "\n" if before[:2] == block[:2] == "- " else "\n\n") + block
    return page + "\n"
