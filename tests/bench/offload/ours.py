"""The product's own decision, fed in the simulated mesh as `mesh.ways` and `mesh.router` feed it in a real one.

Reports become the figures of an outlook, dispatches are noted where the product notes them, `mesh.balancer.decide`
chooses. Not here: any rule of its own.
"""

from __future__ import annotations

from math import inf

from mesh.balancer import COST, OURS, Decision, decide
from mesh.balancer import Policy as Dials
from mesh.estimator import Ask
from mesh.messages import Queued
from mesh.outlook import Outlook, Sent
from mesh.rules import FAILED
from mesh.values import Route
from tests.bench.offload.policy import Report, Request, World
from tests.bench.offload.router import Router


class Ours:
    """One router of the product; what a subclass takes away is an ablation (``ablations``)."""

    error_counts = FAILED
    refusable = True
    """Its requests say what another node would need, so that one that would take longer refuses them at once."""
    listens = True
    """It heeds what neighbours tell of the uplink."""

    def __init__(self, name: str = "ours", dials: Dials = OURS) -> None:
        self.name = name
        self.predicted_ms: float | None = None
        self.sigma_ms = 0.0
        self.recall_ms = 0.0
        self.last: Decision | None = None
        self._dials = dials
        self._outlook = Outlook()
        self._heard: dict[int, Report] = {}
        self._sent_to = -1
        self._tokens: dict[tuple[int, int], tuple[int, float]] = {}

    def choose(self, request: Request, world: World) -> int | None:
        assert isinstance(world, Router)
        outlook = self._outlook
        if not outlook.count:
            for each in world.nodes:
                outlook.slot(str(each.index), 0.0, None)
        usable = [node for node in world.candidates(request) if self._look(node, request, world)]
        outlook.penalty[: outlook.count] = inf
        outlook.penalty[usable] = 0.0
        left_ms, given_ms = (request.deadline_s - world.now) * 1e3, (request.deadline_s - request.born_s) * 1e3
        ask = Ask(request.model, left_ms, given_ms, request.nbytes, request.reply_bytes, request.priority)
        decision = self.last = decide(ask, outlook, world.now, world.luck, self._dials)
        at = decision.slot
        if at is None:
            return None
        predicted = decision.estimate
        self.recall_ms = decision.recall_ms
        self.predicted_ms, self.sigma_ms = predicted.total_ms, predicted.sigma_ms
        arrives_s = world.now + outlook.up_ms(at, request.nbytes, world.now) / 1e3
        sent = Sent(arrives_s, request.priority, request.deadline_s, float(outlook.of(request.model)[1][at]))
        self._tokens[request.id, at] = self._send(at, sent), predicted.total_ms - predicted.bias_ms
        self._sent_to = at
        return at

    def _send(self, at: int, sent: Sent) -> int:
        return self._outlook.send(at, sent)

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        token, predicted_ms = self._tokens.pop((request.id, node), (0, 0.0))
        if not token:
            return
        assert isinstance(world, Router)
        outlook = self._outlook
        outlook.ended(node, token)
        given_ms = (request.deadline_s - request.born_s) * 1e3
        if world.came != "refusal":
            seen_ms = self.error_counts * given_ms if world.came == "error" else took_ms
            outlook.residuals[node].learn(seen_ms, predicted_ms, given_ms, world.now)
            outlook.learned(node, world.now)
        outlook.wire(node, world.now)

    def _look(self, node: int, request: Request, world: Router) -> bool:
        """Take what is new of a node; whether anything was ever heard of it."""
        outlook, now = self._outlook, world.now
        report = world.report(node)
        if report is None:
            return False
        if self._sent_to == node or world.home is None:  # its bytes are on the wire by now
            self._connect(node, request, world)
            self._sent_to = -1
        if self._heard.get(node) is report and node != world.home:
            return True
        if node not in self._heard or node != world.home:
            self._connect(node, request, world)
            outlook.learned(node, now)
        self._heard[node] = report
        for model, (service_ms, row_ms) in enumerate(zip(*self._costs(report), strict=True)):
            service, row = outlook.of(model)
            service[node], row[node] = service_ms, row_ms
        link = outlook.links[node]
        taken_s = now if link is None else report.heard_s - link.rtt_ms / 2e3
        wait_ms = report.free_ms + sum([sum(bins) for _, bins in report.queued])
        outlook.hear(node, taken_s, wait_ms, self._queued(report))
        return True

    def _queued(self, report: Report) -> Queued:
        return report.queued

    def _costs(self, report: Report) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per model: one inference, and what it adds to the queue."""
        return report.service_ms, report.row_ms

    def _connect(self, node: int, request: Request, world: Router) -> None:
        link = None if node == request.origin else world.link(node, request.origin)
        near: Route = "local" if link is None else "peer"
        self._outlook.slot(str(node), COST["cloud" if world.nodes[node].tier == "cloud" else near], link)
        self._outlook.wire(node, world.now)
