"""NATS services discovery (ADR-32): ``nats micro ls``, ``info`` and ``stats`` show the fleet.

Every node answers ``$SRV.PING``, ``INFO`` and ``STATS``, for all, by its kind, and by its own id. Not here: answering
inferences (``bus_door``), liveness, which is the heartbeat's (``membership``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from mesh import subjects
from mesh.bus import Bus, BusMessage, Subscription
from mesh.bus_core import may_answer
from mesh.dataplane import Dataplane
from mesh.messages import Report

ROOT = "$SRV"
TYPE = "io.nats.micro.v1.%s_response"
DESCRIPTION = {"agent": "runs models of this box for the mesh", "router": "routes requests to the nodes of the mesh"}
APPLICATIONS = "mesh.v1.infer.*"


class NatsDiscovery:
    """``instance`` tells processes of one kind apart: letters and digits."""

    def __init__(self, dataplane: Dataplane, bus: Bus, instance: str) -> None:
        self._dataplane = dataplane
        self._bus = bus
        self._instance = instance
        self._started = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        kind = _kind(self._dataplane.report())
        held: list[Subscription] = []
        try:
            for pattern in (f"{ROOT}.*", f"{ROOT}.*.{kind}", f"{ROOT}.*.{kind}.{self._instance}"):
                held.append(await self._bus.subscribe(pattern, self._on_message))  # noqa: PERF401
            yield
        finally:
            for subscription in held:
                await subscription.unsubscribe()

    async def _on_message(self, message: BusMessage) -> None:
        answers = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}
        answer = answers.get(message.subject.split(".")[1])
        if answer is not None and may_answer(message.reply):
            await self._bus.publish(message.reply, msgspec.json.encode(answer()))

    def _ping(self) -> dict[str, Any]:
        return self._document("ping")

    def _info(self) -> dict[str, Any]:
        report = self._dataplane.report()
        endpoints = [
            {"name": name, "subject": subject, "queue_group": group, "metadata": {}}
            for name, subject, group in _endpoints(report)
        ]
        return self._document("info") | {"description": DESCRIPTION.get(report.role, ""), "endpoints": endpoints}

    def _stats(self) -> dict[str, Any]:
        """What the node counts is of all its doors; it stands at the first endpoint. Times are of what was answered."""
        requests, report = self._dataplane.requests, self._dataplane.report()
        answered = sum(histogram.count for histogram in requests.answered.values())
        spent_ns = int(sum(histogram.sum for histogram in requests.answered.values()) * 1e9)
        failed = sum(requests.failed.values())
        counted = {
            "num_requests": answered + failed,
            "num_errors": failed,
            "last_error": requests.last_error,
            "processing_time": spent_ns,
            "average_processing_time": spent_ns // answered if answered else 0,
            "data": {},  # nats-py reads no answer without it
        }
        nothing = {name: type(value)() for name, value in counted.items()}
        endpoints = [
            {"name": name, "subject": subject, "queue_group": group} | (nothing if number else counted)
            for number, (name, subject, group) in enumerate(_endpoints(report))
        ]
        return self._document("stats") | {"started": self._started, "endpoints": endpoints}

    def _document(self, kind: str) -> dict[str, Any]:
        report = self._dataplane.report()
        metadata = {
            "node": report.node,
            "site": report.site,
            "mesh": report.mesh,
            "tier": report.tier,
            "state": report.state,
            "http": report.http,
            "models": ",".join(sorted({model.name for model in report.models if model.state == "READY"})),
        }
        return {
            "type": TYPE % kind,
            "name": _kind(report),
            "id": self._instance,
            "version": semantic(self._dataplane.identity.version),
            "metadata": metadata,
        }


def semantic(version: str) -> str:
    """A version of Python's as the semantic one that ADR-32 wants: ``1.2.0rc1`` is ``1.2.0-rc1``."""
    release = re.match(r"\d+\.\d+\.\d+", version)
    if release is None:
        return "0.0.0"
    rest = re.sub(r"[^0-9A-Za-z]+", "-", version[release.end() :]).strip("-")
    return f"{release[0]}-{rest}" if rest else release[0]


def _kind(report: Report) -> str:
    return "mesh-router" if report.role == "router" else "mesh-edge"


def _endpoints(report: Report) -> list[tuple[str, str, str]]:
    """Name, subject and queue group of each: a node's own subject has no group, for it is only there."""
    own = ("node", subjects.infer(report.site, report.node), "")
    return [("applications", APPLICATIONS, subjects.ROUTER_QUEUE), own] if report.role == "router" else [own]
