"""``mesh nodes`` and ``mesh models``: who is there, what is served, as the asked door sees it."""

from __future__ import annotations

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
    table = Table("node", "site", "tier", "state", "door", "models", "wait ms", "cpu %", "°C")
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
        )
    console().print(table)


def models(url: Url = "", json: Json = False) -> None:
    """List the models of the mesh and where each is held."""
    with fail():
        document = get(url, "/mesh/v1/nodes")
    rows = held(document["nodes"])
    if json:
        print_json({"models": rows})
        return
    table = Table("model", "version", "digest", "node", "state", "service ms", "in flight", "why")
    for row in rows:
        for at in row["nodes"]:
            table.add_row(
                row["name"],
                row["version"],
                row["digest"][:12],
                at["node"],
                _coloured(at["state"], MODEL_COLOURS),
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
            at = {name: model[name] for name in ("state", "service_ms", "in_flight", "reason")}
            found.setdefault(key, []).append({"node": node["node"], **at})
    return [
        {"name": name, "version": version, "digest": digest, "nodes": at}
        for (name, version, digest), at in sorted(found.items())
    ]


def _coloured(state: str, colours: dict[str, str]) -> str:
    colour = colours.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
