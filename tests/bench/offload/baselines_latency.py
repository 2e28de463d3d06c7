"""Policies that choose by latency, learned from answers or predicted from reports: peak-EWMA, C3, llm-d's headroom.

``slo_ms`` is what a request had at birth; an answer that failed counts as twice that, so that a node which fails fast
attracts nobody. Not here: Prequal (``prequal``), marginal cost (``marginal``).
"""

from __future__ import annotations

from math import exp
from typing import Literal, NamedTuple

from tests.bench.offload.baselines import least
from tests.bench.offload.policy import Report, Request, World
from tests.bench.offload.profiles import queue_ms, run_ms

PENALTY_MS = float((2**63 - 1) >> 16)
"""Finagle's cost of a node that has never answered but holds a request (PeakEwma.scala)."""


def slo_ms(request: Request) -> float:
    return (request.deadline_s - request.born_s) * 1e3


def seen_ms(request: Request, took_ms: float, ok: bool, failure: float = 2.0) -> float:
    """What an answer counts as: its time, or ``failure`` times the SLO, twice by default."""
    return took_ms if ok else max(took_ms, failure * slo_ms(request))


class Peak:
    """Finagle's peak-sensitive average (twitter/finagle PeakEwma.scala, there in ns): a sample above it is believed at
    once, below it with weight 1 - e^(-Δt/τ); reading it observes a 0.
    """

    __slots__ = ("_at", "_tau_s", "cost_ms")

    def __init__(self, tau_s: float, now: float) -> None:
        self._tau_s, self._at, self.cost_ms = tau_s, now, 0.0

    def observe(self, ms: float, now: float) -> None:
        kept = exp(-max(now - self._at, 0.0) / self._tau_s)
        self._at = max(now, self._at)
        self.cost_ms = ms if ms > self.cost_ms else self.cost_ms * kept + ms * (1.0 - kept)

    def load(self, pending: int, now: float) -> float:
        self.observe(0.0, now)
        if self.cost_ms == 0.0 and pending:
            return PENALTY_MS + pending
        return self.cost_ms * (pending + 1)


class PeakEwma:
    """Least cost · (pending + 1) by :class:`Peak`, τ = 10 s (Finagle, P2C; Envoy contrib peak_ewma with the same).

    ``choices=None`` scans all candidates, 2 is as published. A node that never answered and has nothing pending costs 0
    and is tried first, as in Finagle. A failure counts as ``failure`` times the SLO.
    """

    def __init__(self, tau_s: float = 10.0, choices: int | None = None, failure: float = 2.0) -> None:
        self.name = "peak-ewma" if choices is None else "peak-ewma-p2c"
        self._tau_s, self._choices, self._failure = tau_s, choices, failure
        self._peaks: dict[int, Peak] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        return least(
            nodes, lambda n: self._peak(n, world.now).load(world.in_flight(n), world.now), world.luck, self._choices
        )

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        self._peak(node, world.now).observe(seen_ms(request, took_ms, ok, self._failure), world.now)

    def _peak(self, node: int, now: float) -> Peak:
        peak = self._peaks.get(node)
        if peak is None:
            peak = self._peaks[node] = Peak(self._tau_s, now)
        return peak


class _Averages(NamedTuple):
    response_ms: float
    service_ms: float
    queue: float


class C3:
    """Least Ψ = R̄ - s̄ + q̂³·s̄ with q̂ = 1 + outstanding · clients + q̄ (Suresh et al., NSDI 2015, section 3.1).

    Averages have weight ``alpha`` on the newest answer, 0.9 as in the authors' Cassandra (Elasticsearch took 0.3). The
    answer's feedback, queue size and service time, is read from the node's report of that moment; the service time is
    one row's run at the reported slowdown, since answers carry no server time here. ``clients`` defaults to the number
    of edge nodes, each of which routes. Nodes that never answered cost 0. Left out: C3's CUBIC rate control, which
    holds requests back at the client; here a request that waits at home is a miss.
    """

    name = "c3"

    def __init__(self, alpha: float = 0.9, exponent: float = 3.0, clients: int | None = None) -> None:
        self._alpha, self._exponent, self._clients = alpha, exponent, clients
        self._averages: dict[int, _Averages] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        clients = self._clients or sum(node.tier == "edge" for node in world.nodes)
        return least(nodes, lambda node: self.score(node, world.in_flight(node) * clients), world.luck)

    def score(self, node: int, outstanding: int) -> float:
        averages = self._averages.get(node)
        if averages is None:
            return float(outstanding)
        waiting = 1.0 + outstanding + averages.queue
        return averages.response_ms - averages.service_ms + float(waiting**self._exponent) * averages.service_ms

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        report = world.report(node)
        slowdown, queue = (1.0, 0) if report is None else (report.slowdown, report.in_flight)
        service = slowdown * run_ms(world.nodes[node].profiles[request.model])
        seen = _Averages(seen_ms(request, took_ms, ok), service, float(queue))
        old = self._averages.get(node, seen)
        self._averages[node] = _Averages(
            *[self._alpha * new + (1.0 - self._alpha) * was for new, was in zip(seen, old, strict=True)]
        )


class LlmdLike:
    """Headroom tiers by predicted latency, after llm-d's inference scheduler (``slo-headroom-tier-filter``,
    ``latency-scorer``: strategy "least" packs nearest to the SLO, "most" spreads; a candidate without headroom is
    explored in 1 % of the choices).

    llm-d predicts by gradient-boosted trees trained online on queue and cache state. Here the prediction is what the
    report adds up to (rest of the running batch, queue, one row's run, all times the slowdown, plus the network) times
    a ratio learned per node (EWMA, ``learn``), which plays the part of the training. Headroom must exceed ``buffer`` of
    the prediction to be positive. Without headroom anywhere, idle nodes come first, then the least overdue one.
    """

    name = "llmd-like"

    def __init__(
        self,
        strategy: Literal["least", "most"] = "least",
        explore: float = 0.01,
        buffer: float = 0.0,
        learn: float = 0.05,
    ) -> None:
        self._strategy, self._explore, self._buffer, self._learn = strategy, explore, buffer, learn
        self._ratio: dict[int, float] = {}
        self._predicted: dict[tuple[int, int], float] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        left_ms = (request.deadline_s - world.now) * 1e3
        predicted = {node: self.predict_ms(request, node, world) for node in nodes}
        room = {node: left_ms - ms * (1.0 + self._buffer) for node, ms in predicted.items()}
        good = [node for node in nodes if room[node] >= 0.0]
        bad = [node for node in nodes if room[node] < 0.0]
        if good and bad and world.luck.random() < self._explore:
            good = []
        if good:
            sign = 1.0 if self._strategy == "least" else -1.0
            chosen = least(good, lambda node: sign * room[node], world.luck)
        else:
            idle = [node for node in bad if world.in_flight(node) == 0 and _idle(world.report(node))]
            chosen = least(idle or bad, lambda node: -room[node], world.luck)
        self._predicted[request.id, chosen] = predicted[chosen]
        return chosen

    def predict_ms(self, request: Request, node: int, world: World) -> float:
        profiles, report = world.nodes[node].profiles, world.report(node)
        service = run_ms(profiles[request.model])
        if report is not None:
            service = report.free_ms + report.slowdown * (queue_ms(profiles, report.queue) + service)
        return (world.network_ms(node, request) + service) * self._ratio.get(node, 1.0)

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        predicted = self._predicted.pop((request.id, node), None)
        if predicted is None or predicted <= 0.0:
            return
        old = self._ratio.get(node, 1.0)
        target = old * seen_ms(request, took_ms, ok) / predicted
        self._ratio[node] = min(max(old + self._learn * (target - old), 0.2), 5.0)


def _idle(report: Report | None) -> bool:
    return report is None or report.in_flight == 0
