"""The fleet as a door sees it: the documents of ``GET /mesh/v1/nodes`` that the CLI shows (DESIGN section 4).

Pure: reports in, plain data out. Not here: HTTP, tables for people (``mesh.cli``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh.membership import NodeView
from mesh.messages import Report


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
        "models": [
            {
                "name": m.name,
                "version": m.version,
                "digest": m.digest,
                "state": m.state,
                "in_flight": m.in_flight,
                "service_ms": round(m.service_ms, 3) or None,
                "reason": m.reason,
            }
            for m in report.models
        ],
        "gauges": {
            "cpu_percent": report.gauges.cpu_percent,
            "memory_used_bytes": report.gauges.memory_used_bytes,
            "memory_total_bytes": report.gauges.memory_total_bytes,
            "temperature_c": report.gauges.temperature_c,
        },
    }
