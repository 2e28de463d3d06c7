"""The mesh in virtual time: an event heap, and the way of each request from its arrival to its one outcome.

Arrive, choose, carry up, queue, run, carry down, and once more elsewhere after a refusal or an error. Not here: what
routers know (router.py), devices (device.py), what is drawn beforehand (environment.py), what is made of it
(metrics.py).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Any, Literal

from tests.bench.offload.device import Attempt, Device
from tests.bench.offload.environment import Environment, stream
from tests.bench.offload.network import Network
from tests.bench.offload.policy import Policy, Report, Request
from tests.bench.offload.reporting import Reporting
from tests.bench.offload.router import Router
from tests.bench.offload.scenario import Fault

Outcome = Literal["good", "late", "refused", "rejected", "failed"]
"""Answered in time; answered late or given up at the deadline; refused by the policy; by nodes; failed by an error."""


class Mesh:
    """One run of one policy. `run` ends when every request has its outcome, or when `allowed` misses are exceeded."""

    def __init__(self, environment: Environment, policy: Callable[[], Policy], allowed: float = inf) -> None:
        self.environment = environment
        self.scenario = scenario = environment.scenario
        self.now = 0.0
        self.devices = [
            Device(node, true, environment.heat[node.index], scenario, stream(environment.seed, "noise", node.index))
            for node, true in zip(environment.nodes, environment.profiles, strict=True)
        ]
        self.network = Network(environment)
        self.outcomes: list[Outcome | None] = [None] * len(environment.requests)
        self.latency_ms = [inf] * len(environment.requests)
        self.predictions: list[tuple[float, float, float]] = []
        """(predicted ms, its sigma, actual ms) of what was answered in time, where the policy predicts."""
        self.good_ms = 0.0
        """Work of the devices that made answers in time."""
        self.misses = 0
        self.choose_s = 0.0
        self.choices = 0
        self.stopped = False
        self.events = 0
        self._allowed = allowed
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()
        self._central = 0 < scenario.routers < len(environment.edges)
        self.reporting = Reporting(environment, self._central, lambda: self.now, self._push)
        self.dispatched: list[tuple[float, int, int]] = []
        """(moment, origin, node) of each dispatch."""
        self.routers = self._build_routers(policy)
        self._homes: dict[int, list[Router]] = {edge: [] for edge in environment.edges}
        for router in self.routers:
            if router.home is not None:
                self._homes[router.home].append(router)

    def _build_routers(self, policy: Callable[[], Policy]) -> list[Router]:
        edges, count = self.environment.edges, self.scenario.routers
        homes = (
            [None] * count if self._central else [home for _ in range(max(count // len(edges), 1)) for home in edges]
        )
        routers = []
        for number, home in enumerate(homes):
            board = self.reporting.boards[0 if home is None else self.environment.nodes[home].site]
            router = Router(self, number, home, board, stream(self.environment.seed, "policy", number))
            router.policy = policy()
            routers.append(router)
        return routers

    def router_of(self, request: Request) -> Router:
        if self._central:
            return self.routers[request.id % len(self.routers)]
        edges = len(self.environment.edges)
        return self.routers[request.origin + edges * (request.id % (len(self.routers) // edges))]

    def run(self) -> Mesh:
        requests, heap, index = self.environment.requests, self._heap, 0
        for device in self.devices:
            self.reporting.begin(device)
        for fault in self.scenario.faults:
            self._push(fault.at * self.scenario.seconds, self._break, fault)
        while self.misses <= self._allowed:
            if heap and (index == len(requests) or heap[0][0] <= requests[index].born_s):
                self.now, _, handle, what = heapq.heappop(heap)
                self.events += 1
                handle(what)
            elif index < len(requests):
                request = requests[index]
                self.now = request.born_s
                index += 1
                self._arrive(request)
            else:
                return self
        self.stopped = True
        return self

    def _push(self, at: float, handle: Callable[[Any], None], what: object) -> None:
        if at < inf:
            heapq.heappush(self._heap, (at, next(self._order), handle, what))

    def _arrive(self, request: Request) -> None:
        if self.devices[request.origin].down:  # its clients go to the next door of the site
            site = self.environment.nodes[request.origin].site
            doors = [
                n for n in self.environment.edges if self.environment.nodes[n].site == site and not self.devices[n].down
            ]
            if not doors:
                self._settle(request, "failed")
                return
            request = request._replace(origin=doors[request.id % len(doors)])
        self._place(request, -1)

    def _place(self, request: Request, tried: int) -> None:
        router = self.router_of(request)
        began = perf_counter()
        node = router.choose(request, tried)
        self.choose_s += perf_counter() - began
        self.choices += 1
        if node is None:
            self._settle(request, "refused")
            return
        attempt = Attempt(request, node, router.number, self.now, tried >= 0)
        attempt.predicted_ms = getattr(router.policy, "predicted_ms", None)
        attempt.sigma_ms = getattr(router.policy, "sigma_ms", 0.0)
        attempt.recall_ms = getattr(router.policy, "recall_ms", 0.0)
        attempt.refusable = getattr(router.policy, "refusable", False)
        router.sends(attempt)
        self.dispatched.append((self.now, request.origin, node))
        if node == request.origin:
            self._reach(attempt)
            return
        arrives = self.network.way(request.origin, node).send(self.now, request.nbytes, request.deadline_s)
        if arrives is not None:
            told = self._word(self.devices[request.origin]) if self.environment.nodes[node].tier == "edge" else None
            handle, what = (self._reach, attempt) if told is None else (self._reach_with, (attempt, told))
            self._push(arrives + self.network.delay_s(request.origin, node), handle, what)
        self._push(request.deadline_s, self._expire, attempt)

    def _reach_with(self, what: tuple[Attempt, Report]) -> None:
        """A request comes with what its origin says of itself, for the routers of the node that it reaches."""
        attempt, report = what
        if not self._central and not self.devices[attempt.node].down:
            for router in self._homes[attempt.node]:
                router.hears(report)
        self._reach(attempt)

    def _reach(self, attempt: Attempt) -> None:
        if attempt.done:
            return
        device, request = self.devices[attempt.node], attempt.request
        if self.devices[attempt.node].down or device.fails_at_once():
            self._return(attempt, self._fail)
            return
        load_s = device.wants(request.model, self.now)
        if load_s is not None:
            self._push(self.now + load_s, self._loaded, (device, request.model))
        if not device.admits(attempt, self.now):
            self._return(attempt, self._reject)
            return
        self._turn(device)
        self.reporting.changed(device)
        if attempt.recall_ms > 0.0 and not attempt.again:
            at = request.deadline_s - attempt.recall_ms / 1e3
            if at > self.now:
                self._push(at, self._recall, attempt)

    def _recall(self, attempt: Attempt) -> None:
        """The last moment at which it could still be answered elsewhere: hand it back if it will not be here."""
        device = self.devices[attempt.node]
        if not attempt.done and device.gives_back(attempt, self.now):
            self._return(attempt, self._reject)

    def _return(self, attempt: Attempt, handle: Callable[[Attempt], None]) -> None:
        """Bring back word without a body; where a node lives to give it, what it says of itself rides along."""
        attempt.report = self._word(self.devices[attempt.node])
        if attempt.node == attempt.request.origin:
            handle(attempt)
        else:
            self._push(self.now + self.network.delay_s(attempt.request.origin, attempt.node), handle, attempt)

    def _word(self, device: Device) -> Report | None:
        """What rides on anything that a node sends."""
        return self.reporting.says(device) if self.scenario.reports.on_reply and not device.down else None

    def _turn(self, device: Device) -> None:
        run, dropped, expired = device.dispatch(self.now)
        if run is not None:
            self._push(run.ends_s, self._end, (device, device.epoch))
        for attempt in dropped:
            self._return(attempt, self._reject)
        for attempt in expired:
            if attempt.node == attempt.request.origin:
                self._expire(attempt)

    def _end(self, what: tuple[Device, int]) -> None:
        device, epoch = what
        if device.epoch != epoch:
            return
        run = device.ended(self.now)
        self._turn(device)
        self.reporting.changed(device)
        report = self._word(device)
        for attempt in run.attempts:
            if attempt.done:
                continue
            if run.fails:
                self._return(attempt, self._fail)
                continue
            attempt.report = report
            attempt.served_ms = (self.now - attempt.arrived_s) * 1e3
            origin = attempt.request.origin
            if attempt.node == origin:
                self._answer(attempt)
                continue
            end = self.network.way_back(origin, attempt.node).send(
                self.now, attempt.request.reply_bytes, attempt.request.deadline_s
            )
            if end is not None:
                self._push(end + self.network.delay_s(origin, attempt.node), self._answer, attempt)

    def _answer(self, attempt: Attempt) -> None:
        if attempt.done:
            return
        request = attempt.request
        ok = self.now <= request.deadline_s
        attempt.done = True
        self.routers[attempt.router].ends(attempt, ok=ok, error=False, server_ms=attempt.served_ms)
        if ok:
            self.good_ms += attempt.work
            took_ms = (self.now - attempt.sent_s) * 1e3
            if attempt.predicted_ms is not None:
                self.predictions.append((attempt.predicted_ms, attempt.sigma_ms, took_ms))
        self._settle(request, "good" if ok else "late")

    def _expire(self, attempt: Attempt) -> None:
        if not attempt.done:
            attempt.done = True
            self.routers[attempt.router].ends(attempt, ok=False, error=False, server_ms=0.0)
            self._settle(attempt.request, "late")

    def _reject(self, attempt: Attempt) -> None:
        self._again(attempt, "rejected")

    def _fail(self, attempt: Attempt) -> None:
        self._again(attempt, "failed")

    def _again(self, attempt: Attempt, outcome: Outcome) -> None:
        """Refused or failed: choose once more, among the others."""
        if attempt.done:
            return
        attempt.done = True
        error = outcome == "failed"
        gone = error and self.devices[attempt.node].down
        self.routers[attempt.router].ends(attempt, ok=False, error=error, server_ms=0.0, unreachable=gone)
        if attempt.again or self.now >= attempt.request.deadline_s:
            self._settle(attempt.request, outcome)
        else:
            self._place(attempt.request, attempt.node)

    def _settle(self, request: Request, outcome: Outcome) -> None:
        if self.outcomes[request.id] is not None:
            raise AssertionError(f"request {request.id} was {self.outcomes[request.id]} and is {outcome}")
        self.outcomes[request.id] = outcome
        if outcome == "good":
            self.latency_ms[request.id] = (self.now - request.born_s) * 1e3
        else:
            self.misses += 1

    def _break(self, fault: Fault) -> None:
        device = self.devices[fault.node]
        device.fault = fault
        self._push(self.now + fault.lasts_s, self._mend, fault)
        if fault.kind != "crash":
            return
        for router in self.routers:
            if router.home == fault.node:
                for attempt in router.outstanding():
                    attempt.done = True
                    router.ends(attempt, ok=False, error=False, server_ms=0.0)
                    self._settle(attempt.request, "failed")
        for attempt in device.crash():
            self._return(attempt, self._fail)

    def _mend(self, fault: Fault) -> None:
        device = self.devices[fault.node]
        if device.fault is fault:
            device.fault = None
            self.reporting.tell(device)

    def _loaded(self, what: tuple[Device, int]) -> None:
        device, model = what
        device.memory.loaded(model, self.now)
        self._turn(device)
