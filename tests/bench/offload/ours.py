"""The product's own decision, fed in the simulated mesh as `mesh.router` and `mesh.ways` feed it in a real one.

Reports become the figures of a heartbeat, dispatches are noted where the product notes them, `mesh.balancer.decide`
chooses. Not here: any rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.balancer import OURS, decide
from mesh.balancer import Policy as Dials
from mesh.estimator import Ask, Candidate, Dispatches
from mesh.messages import ModelLoad
from mesh.values import Route
from tests.bench.offload.environment import unit_ms
from tests.bench.offload.policy import Policy, Report, Request, World
from tests.bench.offload.router import Router


class Ours:
    """One router of the product."""

    def __init__(self, name: str = "ours", dials: Dials = OURS) -> None:
        self.name = name
        self.predicted_ms: float | None = None
        self._dials = dials
        self._dispatches = Dispatches()
        self._tokens: dict[tuple[int, int], int] = {}
        self._units: list[tuple[float, ...]] = []
        self._names: list[str] = []
        self._said: dict[int, tuple[Report, float, tuple[ModelLoad, ...]]] = {}

    def choose(self, request: Request, world: World) -> int | None:
        assert isinstance(world, Router)
        if not self._units:
            self._units = [tuple([unit_ms(profile) for profile in node.profiles]) for node in world.nodes]
            self._names = [str(node.index) for node in world.nodes]
        candidates = []
        for node in world.candidates(request):
            report = world.report(node)
            if report is not None:
                candidates.append(self._candidate(node, report, request, world))
        if not candidates:
            return None
        left_ms = (request.deadline_s - world.now) * 1e3
        ask = Ask(left_ms, request.nbytes, request.reply_bytes, request.priority)
        decision = decide(ask, candidates, world.now, world.luck, self._dials)
        if decision.node is None:
            return None
        self.predicted_ms = decision.predicted_ms
        node = int(decision.node)
        if node != world.home:
            service_ms = self._said[node][2][request.model].service_ms
            self._tokens[request.id, node] = self._dispatches.add(decision.node, service_ms, world.now)
        return node

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        token = self._tokens.pop((request.id, node), None)
        if token is not None:
            self._dispatches.done(self._names[node], token)

    def _candidate(self, node: int, report: Report, request: Request, world: Router) -> Candidate:
        said = self._said.get(node)
        if said is None or said[0] is not report:
            said = self._said[node] = report, self._wait_ms(report), _loads(report)
        _, wait_ms, loads = said
        name, load = self._names[node], loads[request.model]
        if node == world.home:
            return Candidate(name, "local", "local", True, load, wait_ms, world.now)
        link = None if node == request.origin else world.link(node, request.origin)
        near: Route = "peer" if link is not None else "local"
        rtt_s = link.rtt_ms / 1e3 if link is not None else 0.0
        own_ms = self._dispatches.since(name, report.heard_s - rtt_s)
        route: Route = "cloud" if world.nodes[node].tier == "cloud" else near
        return Candidate(name, route, "http", True, load, wait_ms, report.heard_s, own_ms, link)

    def _wait_ms(self, report: Report) -> float:
        """What the node's heartbeat would say (`edge.forecast.Forecast.wait_ms`)."""
        units = self._units[report.node]
        queued_ms = sum([rows * units[model] for model, _, rows in report.queue])
        return report.free_ms + queued_ms * report.slowdown


def _loads(report: Report) -> tuple[ModelLoad, ...]:
    return tuple([ModelLoad("m", "1", "", "READY", service_ms=service_ms) for service_ms in report.service_ms])


POLICIES: dict[str, Callable[[], Policy]] = {"ours": Ours}
