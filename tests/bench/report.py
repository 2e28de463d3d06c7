"""How a benchmark prints: a table for people, or one JSON document. No measuring."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

Row = Mapping[str, str | int | float | None]


def machine() -> str:
    """The note that every document starts with."""
    libraries = ("uvicorn", "httptools", "uvloop", "aiohttp", "nats-py", "onnxruntime", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.1f} at the start, Linux {platform.release()}, {platform.machine()}, "
        f"CPython {platform.python_version()}, {versions}; everything on loopback of this machine"
    )


def show(rows: Sequence[Row], notes: Sequence[str], *, as_json: bool) -> None:
    """Print one document ``{"rows": [...], "notes": [...]}``, or the table with its notes below."""
    if as_json:
        print(json.dumps({"rows": rows, "notes": notes}, indent=1, allow_nan=False))
        return
    for group in _same_columns(rows):
        print(table(group))
        print()
    for note in notes:
        print(f"- {note}")


def table(rows: Sequence[Row]) -> str:
    """Rows of the same columns as aligned text."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _same_columns(rows: Sequence[Row]) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for row in rows:
        if groups and list(groups[-1][0]) == list(row):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _text(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else value
