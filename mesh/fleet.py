"""The fleet as a door sees it: the documents of ``GET /mesh/v1/nodes`` that the CLI shows (DESIGN section 4).

Pure: reports in, plain data out. Not here: HTTP, tables for people (``mesh.cli``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import asdict

from mesh.membership import NodeView
from mesh.messages import Gauges, ModelLoad, Report


def nodes(own: Report, views: Iterable[NodeView]) -> dict[str, Any]:
    """``own`` is the door's node; a router names itself too, with no models."""
    rows = [_row(own, own.state), *(_row(view.report, view.state) for view in views)]
    return {"nodes": sorted(rows, key=lambda row: (row["tier"] == "cloud", row["site"], row["node"]))}


def _row(report: Report, state: str) -> dict[str, Any]:
    departed = state in ("lost", "left")
    return {
        "node": report.node,
        "site": report.site,
        "tier": report.tier,
        "role": report.role,
        "state": state,
        "http": report.http,
        "wait_ms": None if departed else round(report.wait_ms, 3),
        "models": [_model(model) for model in report.models],
        "capacity": None if departed else round(report.capacity, 3),
        "gauges": _gauges(report.gauges),
    }


def _model(m: ModelLoad) -> dict[str, Any]:
    return {
        "name": m.name,
        "version": m.version,
        "digest": m.digest,
        "state": m.state,
        "progress": m.progress,
        "in_flight": m.in_flight,
        "service_ms": round(m.service_ms, 3) or None,
        "requested": m.requested or None,
        "effective": m.effective or None,
        "memory_bytes": m.memory_bytes,
        "instances": m.instances,
        "reason": m.reason,
    }


def _gauges(gauges: Gauges) -> dict[str, Any]:
    """Every reading by name, null where unknown, and why it is."""
    return asdict(gauges) | {"devices": [asdict(device) for device in gauges.devices]}
