"""``mesh nodes`` and ``mesh models``: who is there, what is served, as the asked door sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.markup import escape
from rich.table import Table

from mesh.cli.door import Url, get
from mesh.command import Json, console, fail, print_json

COLOURS = {
    "ready": "green",
    "starting": "cyan",
    "draining": "yellow",
    "suspect": "yellow",
    "lost": "red",
    "left": "dim",
}
MODEL_COLOURS = {"READY": "green", "FAILED": "red", "QUARANTINED": "red"}


def nodes(url: Url = "", json: Json = False) -> None:
    """List the nodes of the mesh, the departed of the last ten minutes included."""
    with fail():
        document = get(url, "/mesh/v1/nodes")
    if json:
        print_json(document)
        return
    columns = [name for name, read in HARDWARE.items() if any(read(row) is not None for row in document["nodes"])]
    table = Table("node", "site", "tier", "state", "door", "models", "wait ms", "cpu %", "°C", *columns)
    for row in document["nodes"]:
        gauges = row["gauges"]
        ready = sum(m["state"] == "READY" for m in row["models"])
        table.add_row(
            row["node"] + (" (router)" if row["role"] == "router" else ""),
            row["site"],
            row["tier"],
            _coloured(row["state"], COLOURS),
            row["http"] or "bus only",
            f"{ready}/{len(row['models'])}",
            _number(row["wait_ms"]),
            _number(gauges["cpu_percent"]),
            _number(gauges["temperature_c"]),
            *(_number(HARDWARE[name](row)) for name in columns),
        )
    console().print(table)


def _of_devices(name: str, join: Callable[[list[float]], float]) -> Callable[[dict[str, Any]], float | None]:
    """One reading of all the node's devices that have it."""

    def read(row: dict[str, Any]) -> float | None:
        found = [device[name] for device in row["gauges"]["devices"] if device[name] is not None]
        return join(found) if found else None

    return read


def _capacity(row: dict[str, Any]) -> float | None:
    """In percent, of nodes that do not have all of it."""
    capacity: float | None = row["capacity"]
    return None if capacity is None or capacity >= 1 else 100 * capacity


HARDWARE: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "gpu %": _of_devices("utilization_percent", max),
    "gpu °C": _of_devices("temperature_c", max),
    "gpu W": _of_devices("power_w", sum),
    "J/inference": lambda row: row["gauges"]["joule_per_inference"],
    "capacity %": _capacity,
}
"""Columns that are shown where any node has something to say in them."""


def models(url: Url = "", json: Json = False) -> None:
    """List the models of the mesh and where each is held."""
    with fail():
        document = get(url, "/mesh/v1/nodes")
    rows = held(document["nodes"])
    if json:
        print_json({"models": rows})
        return
    table = Table(
        "model", "version", "digest", "node", "state", "backend", "memory MB", "service ms", "in flight", "why"
    )
    for row in rows:
        for at in row["nodes"]:
            table.add_row(
                row["name"],
                row["version"],
                row["digest"][:12],
                at["node"],
                _coloured(at["state"], MODEL_COLOURS) + _percent(at["progress"]),
                _backend(at["requested"], at["effective"]) + _times(at["instances"]),
                _megabytes(at["memory_bytes"]),
                _number(at["service_ms"]),
                str(at["in_flight"]),
                escape(at["reason"]),
            )
    console().print(table)


def held(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn the list of nodes around: each (name, version, digest) once, with the nodes that hold it."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for node in rows:
        if node["state"] in ("lost", "left"):
            continue
        for model in node["models"]:
            key = (model["name"], model["version"], model["digest"])
            at = {name: value for name, value in model.items() if name not in ("name", "version", "digest")}
            found.setdefault(key, []).append({"node": node["node"], **at})
    return [
        {"name": name, "version": version, "digest": digest, "nodes": at}
        for (name, version, digest), at in sorted(found.items())
    ]


def _coloured(state: str, colours: dict[str, str]) -> str:
    colour = colours.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _percent(share: float | None) -> str:
    return "" if share is None else f" {share:.0%}"


def _backend(requested: str | None, effective: str | None) -> str:
    """What it runs on, and what was asked for where that is something else (DESIGN D8)."""
    if not effective or not requested:
        return effective or requested or "-"
    if effective == requested or effective.startswith(f"{requested}-"):  # tensorrt-rtx is tensorrt
        return effective
    return f"[yellow]{effective}[/] for {requested}"


def _times(instances: int) -> str:
    """How many inferences may run at the same time, where that is more than one."""
    return f" x{instances}" if instances > 1 else ""


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
