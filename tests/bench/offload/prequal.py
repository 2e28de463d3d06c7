"""Prequal (Wydrowski et al., NSDI 2024, arXiv 2312.10172): a pool of probes, and the hot-cold lexicographic rule.

As published it knows nothing of the network, of deadlines or batches; ``network=True`` adds the link estimate to a
probe's latency, which makes it a fair rival across a WAN. Not here: the link estimator (the world's).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.offload.baselines_latency import seen_ms
from tests.bench.offload.policy import Request, World
from tests.bench.offload.profiles import run_ms, work_ms

HISTORY = 64
"""Answers per node and model that a latency estimate is drawn from."""
NEAREST = 9
"""Of these, so many with the nearest number in flight count."""
LARGEST_REUSE = 16.0
"""Where the formula has no answer, its divisor being 0 or less."""


@dataclass(slots=True)
class Probe:
    """One probe's answer in the pool; ``in_flight`` grows with our own sends, ``uses`` is what is left of its reuse."""

    node: int
    at_s: float
    in_flight: int
    uses: int


def threshold(in_flight: list[int], quantile: float) -> float:
    """θ, the quantile of the known numbers in flight (nearest rank; ``in_flight`` sorted, not empty)."""
    return in_flight[min(int(quantile * len(in_flight)), len(in_flight) - 1)]


class Prequal:
    """Defaults are the paper's: 3 probes a query, pool of 16, age limit 1 s, remove 1 a query, Q_RIF = 2^-0.25, δ = 1.

    A node's newest report stands for the answer of an asynchronous probe, and counts as fresh when it is asked for. A
    replica is in the pool once: its newer probe replaces the older. The published reuse b = max(1, (1 + δ) / ((1 - m/n)
    · r_probe - r_remove)) takes n replicas for many more than m; with fewer, m is lowered to ``share`` of n. Latency is
    the paper's median over recent answers with a similar number in flight, of our own answers less the network, since
    reports carry none; before there are three, what the profile says of that many rows. A failure counts as twice the
    SLO.
    """

    def __init__(
        self,
        probes: float = 3.0,
        pool: int = 16,
        age_s: float = 1.0,
        remove: float = 1.0,
        quantile: float = 2**-0.25,
        delta: float = 1.0,
        network: bool = False,
        share: float = 0.5,
    ) -> None:
        self.name = "prequal-net" if network else "prequal"
        self._probes, self._most, self._age_s, self._remove = probes, pool, age_s, remove
        self._quantile, self._delta, self._network, self._share = quantile, delta, network, share
        self.pool: list[Probe] = []
        self._turn = False
        self._heard: deque[int] = deque(maxlen=128)
        self._seen: dict[tuple[int, int], deque[tuple[int, float]]] = {}
        self._sent: dict[tuple[int, int], tuple[int, float]] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        usable = set(nodes)
        self.pool = [p for p in self.pool if p.node in usable and world.now - p.at_s <= self._age_s]
        chosen = world.luck.choice(nodes) if len(self.pool) < 2 else self.pick(request, world).node
        self._note(request, chosen, world)
        for _ in range(self._round(self._remove, world)):
            self._drop(request, world)
        self._probe(nodes, world)
        return chosen

    def pick(self, request: Request, world: World) -> Probe:
        """HCL: lowest latency among the cold (in flight at most θ), if there are any; else fewest in flight."""
        limit = self._limit()
        cold = [probe for probe in self.pool if probe.in_flight <= limit]
        if cold:
            return min(cold, key=lambda probe: self.latency_ms(probe, request, world))
        return min(self.pool, key=lambda probe: probe.in_flight)

    def _limit(self) -> float:
        known: list[int] = []
        for count in self._heard or (probe.in_flight for probe in self.pool):
            insort(known, count)
        return threshold(known, self._quantile)

    def latency_ms(self, probe: Probe, request: Request, world: World) -> float:
        far = world.network_ms(probe.node, request) if self._network else 0.0
        seen = self._seen.get((probe.node, request.model), ())
        if len(seen) >= 3:
            near = sorted(seen, key=lambda entry: abs(entry[0] - probe.in_flight))[:NEAREST]
            return far + median(ms for _, ms in near)
        profile, report = world.nodes[probe.node].profiles[request.model], world.report(probe.node)
        slowdown = 1.0 if report is None else report.slowdown
        return far + slowdown * (work_ms(profile, probe.in_flight) + run_ms(profile))

    def _note(self, request: Request, chosen: int, world: World) -> None:
        """Count the send in the pool, use the probe up, remember what the answer must be compared with."""
        in_flight = world.in_flight(chosen)
        for probe in list(self.pool):
            if probe.node == chosen:
                in_flight = probe.in_flight
                probe.in_flight += 1
                probe.uses -= 1
                if probe.uses <= 0:
                    self.pool.remove(probe)
        self._sent[request.id, chosen] = (in_flight, world.network_ms(chosen, request))

    def _drop(self, request: Request, world: World) -> None:
        """Remove the oldest and the worst in turn; worst is the hot one with most in flight, else the slowest."""
        if not self.pool:
            return
        self._turn = not self._turn
        if self._turn:
            self.pool.remove(min(self.pool, key=lambda probe: probe.at_s))
            return
        limit = self._limit()
        hot = [probe for probe in self.pool if probe.in_flight > limit]
        if hot:
            self.pool.remove(max(hot, key=lambda probe: probe.in_flight))
        else:
            self.pool.remove(max(self.pool, key=lambda probe: self.latency_ms(probe, request, world)))

    def _probe(self, nodes: Sequence[int], world: World) -> None:
        most = max(min(self._most, int(self._share * len(nodes))), 2)
        reuse = self.reuse(most, len(nodes))
        for node in world.luck.sample(nodes, min(self._round(self._probes, world), len(nodes))):
            report = world.report(node)
            if report is None:
                continue
            self._heard.append(report.in_flight)
            self.pool = [probe for probe in self.pool if probe.node != node]
            self.pool.append(Probe(node, world.now, report.in_flight, self._round(reuse, world)))
        while len(self.pool) > most:
            self.pool.remove(min(self.pool, key=lambda probe: probe.at_s))

    def reuse(self, most: int, replicas: int) -> float:
        """How often a probe may be used; ``most`` is the size of the pool."""
        rest = (1.0 - most / replicas) * self._probes - self._remove
        return LARGEST_REUSE if rest <= 0.0 else min(max(1.0, (1.0 + self._delta) / rest), LARGEST_REUSE)

    def _round(self, value: float, world: World) -> int:
        whole = int(value)
        return whole + (world.luck.random() < value - whole)

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        sent = self._sent.pop((request.id, node), None)
        if sent is None:
            return
        in_flight, network_ms = sent
        served = took_ms - network_ms if ok else seen_ms(request, took_ms, ok)
        self._seen.setdefault((node, request.model), deque(maxlen=HISTORY)).append((in_flight, max(served, 0.0)))
