"""What is counted in a phase of the demonstration, and the document it comes to. Pure; nothing is sent from here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NAMES = ("steady", "burst", "kill", "bus-outage")
ROUTES = ("local", "peer", "cloud")


@dataclass(slots=True)
class Phase:
    """Requests of one phase. ``title`` says to people what happens in it."""

    name: str
    title: str
    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0
    wrong: int = 0
    routes: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    """Right answers by workload."""
    errors: Counter[str] = field(default_factory=Counter)
    mistakes: Counter[str] = field(default_factory=Counter)
    """Wrong answers by workload."""
    events: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.latencies_ms) + self.failed

    def answered(self, workload: str, route: str, ms: float, *, right: bool) -> None:
        self.latencies_ms.append(ms)
        self.routes[route] += 1
        (self.right if right else self.mistakes)[workload] += 1
        self.wrong += not right

    def gave_up(self, code: str) -> None:
        self.failed += 1
        self.errors[code] += 1

    def quantile_ms(self, q: float) -> float | None:
        """Nearest-rank quantile of the answered requests; None of nothing."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "requests": self.requests,
            "failed": self.failed,
            "wrong": self.wrong,
            "p50_ms": self.quantile_ms(0.50),
            "p99_ms": self.quantile_ms(0.99),
            "routes": {route: self.routes[route] for route in ROUTES},
            "right": dict(self.right),
            "errors": dict(self.errors),
            "events": self.events,
        }


def document(phases: list[Phase]) -> dict[str, Any]:
    return {"phases": [phase.document() for phase in phases], "ok": ok(phases)}


def ok(phases: list[Phase]) -> bool:
    """Every phase ran, nothing failed, nothing was wrong, and the burst went to peers and the cloud."""
    by_name = {phase.name: phase for phase in phases}
    return (
        tuple(by_name) == NAMES
        and all(phase.requests and not phase.failed and not phase.wrong for phase in phases)
        and all(by_name["burst"].routes[route] for route in ("peer", "cloud"))
    )
