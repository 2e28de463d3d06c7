"""Who hears what of whom, and when: reports to a node's site by the clock, over the bus by the clock and on change.

What rides on replies goes to the router that asked (router.py). Not here: what a report says (device.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.bench.offload.device import Device
from tests.bench.offload.environment import Environment, stream
from tests.bench.offload.policy import Report

REPORT_BYTES = 300
JITTER = 0.1
"""Share of the period by which a report comes earlier or later."""

Push = Callable[[float, Callable[[Any], None], object], None]


class Reporting:
    """A board for each site, or one for all central routers; `clock` is the virtual time."""

    def __init__(self, environment: Environment, central: bool, clock: Callable[[], float], push: Push) -> None:
        self.boards: list[dict[int, Report]] = [{} for _ in range(1 if central else environment.cloud_site)]
        self.sent = 0
        """Reports, each counted for every board that it goes to."""
        self._environment = environment
        self._reports = environment.scenario.reports
        self._delay_s = environment.scenario.wan.rtt_ms / 2e3
        self._central = central
        self._clock = clock
        self._push = push
        self._luck = [stream(environment.seed, "jitter", node.index) for node in environment.nodes]
        self._told: list[tuple[float, int]] = [(0.0, 0) for _ in environment.nodes]
        self._far = [central or node.tier == "cloud" for node in environment.nodes]

    def period_s(self, node: int) -> float:
        return self._reports.bus_s if self._far[node] else self._reports.lan_s

    def begin(self, device: Device) -> None:
        """Everybody knows everybody at the start."""
        node = device.node.index
        for board in range(len(self.boards)):
            self._hear((node, board, self.says(device)))
        self._push(self.period_s(node) * self._luck[node].random(), self._tick, device)

    def says(self, device: Device) -> Report:
        """What others are told; a node that lies knows better itself."""
        report = device.report(self._clock())
        fault = device.fault
        return lie(report, fault.factor) if fault is not None and fault.kind == "lie" else report

    def changed(self, device: Device) -> None:
        """More than half a batch more or less in flight is told at once over the bus, but not too often."""
        node = device.node.index
        if self._far[node] and self._reports.on_change:
            told_s, in_flight = self._told[node]
            moved = abs(device.in_flight - in_flight)
            if moved > device.node.profiles[0][2] / 2 and self._clock() - told_s >= self._reports.min_s:
                self.tell(device)

    def tell(self, device: Device) -> None:
        if device.down:
            return
        node, now, environment = device.node, self._clock(), self._environment
        self._told[node.index] = now, device.in_flight
        report = self.says(device)
        if not self._far[node.index]:
            self._hear((node.index, node.site, report))
            return
        for board in range(len(self.boards)):
            site = node.site if self._central else board
            if site == environment.cloud_site or environment.up[site].rate(now) > 0.0:
                self._push(now + self._delay_s, self._hear, (node.index, board, report))

    def _tick(self, device: Device) -> None:
        self.tell(device)
        now, node = self._clock(), device.node.index
        if now <= self._environment.scenario.seconds:
            jitter = 1.0 + JITTER * (2.0 * self._luck[node].random() - 1.0)
            self._push(now + self.period_s(node) * jitter, self._tick, device)

    def _hear(self, what: tuple[int, int, Report]) -> None:
        node, board, report = what
        self.sent += 1
        self.boards[board][node] = report._replace(heard_s=self._clock())


def lie(report: Report, factor: float) -> Report:
    """The same of a node that claims to be idle and so many times faster than it is."""
    return report._replace(
        free_ms=0.0,
        arrivals_per_s=0.0,
        in_flight=0,
        queue=(),
        queued=(),
        service_ms=tuple([ms / factor for ms in report.service_ms]),
        row_ms=tuple([ms / factor for ms in report.row_ms]),
    )
