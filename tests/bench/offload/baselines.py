"""Policies that look at counts or at nothing: fixed tiers, turns, chance, fewest in flight.

Each class is one published rule with its published defaults. All of them leave batching, early drop, ejection and the
second chance after a refusal to the simulated mesh, as every policy here does. Not here: policies that learn latencies
(``baselines_latency``, ``prequal``), marginal-cost routing (``marginal``), their table of names (``policies``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.bench.offload.policy import Request, World
from tests.bench.offload.profiles import rows_per_ms


def least(nodes: Sequence[int], cost: Callable[[int], float], luck: random.Random, choices: int | None = None) -> int:
    """The node of least cost, of equals a random one; with ``choices``, among that many drawn without replacement."""
    if choices is not None and len(nodes) > choices:
        nodes = luck.sample(nodes, choices)
    costs = [cost(node) for node in nodes]
    lowest = min(costs)
    equals = [node for node, value in zip(nodes, costs, strict=True) if value == lowest]
    return equals[0] if len(equals) == 1 else luck.choice(equals)


class Baseline:
    """A policy that learns nothing from answers."""

    name = "baseline"

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        return None


class LocalOnly(Baseline):
    """Never offload; refuses what its own node cannot take."""

    name = "local-only"

    def choose(self, request: Request, world: World) -> int | None:
        return request.origin if request.origin in world.candidates(request) else None


class CloudOnly(Baseline):
    """Always offload, to the cloud worker with the fewest of our requests in flight."""

    name = "cloud-only"

    def choose(self, request: Request, world: World) -> int | None:
        cloud = [node for node in world.candidates(request) if world.nodes[node].tier == "cloud"]
        return least(cloud, world.in_flight, world.luck) if cloud else None


class RoundRobin(Baseline):
    """In turn, by index; a node that is not a candidate is passed over."""

    name = "round-robin"

    def __init__(self) -> None:
        self._last = -1

    def choose(self, request: Request, world: World) -> int | None:
        nodes = sorted(world.candidates(request))
        if not nodes:
            return None
        self._last = next((node for node in nodes if node > self._last), nodes[0])
        return self._last


class Random(Baseline):
    """Uniformly at random."""

    name = "random"

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        return world.luck.choice(nodes) if nodes else None


class WeightedRoundRobin(Baseline):
    """Smooth weighted round robin (nginx, upstream_round_robin): every turn each node gains its weight, the richest is
    taken and pays the sum. A node's weight is its capacity for the model, full runs of B rows over their time.
    """

    name = "weighted-rr"

    def __init__(self) -> None:
        self._credit: dict[tuple[int, int], float] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        total, model = 0.0, request.model
        for node in nodes:
            profile = world.nodes[node].profiles[model]
            weight = rows_per_ms(profile, profile[2])
            self._credit[model, node] = self._credit.get((model, node), 0.0) + weight
            total += weight
        chosen = max(nodes, key=lambda node: self._credit[model, node])
        self._credit[model, chosen] -= total
        return chosen


class LeastReported(Baseline):
    """Fewest in flight by the nodes' last reports, own sends not counted: the rule that herds. Silent nodes are 0."""

    name = "least-reported"

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        return least(nodes, lambda node: _reported(world, node), world.luck) if nodes else None


class LeastInFlight(Baseline):
    """Fewest of our own requests in flight: Envoy LEAST_REQUEST with equal weights (docs: choice_count 2, or a full
    scan for ``choices=None``).
    """

    def __init__(self, choices: int | None = None) -> None:
        self.name = "least-inflight" if choices is None else "least-inflight-p2c"
        self._choices = choices

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        return least(nodes, world.in_flight, world.luck, self._choices) if nodes else None


class RayPowerOfTwo(Baseline):
    """Two random replicas, the one with fewer ongoing requests by a cache of queue lengths (Ray Serve, power-of-two
    request router: ``RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S`` 10 s, ``max_ongoing_requests`` 5).

    Replicas beside the caller are drawn from first, then its site, then all, going on while both are full. A cached
    length rises by one with each own send and is replaced by what an answer reports. A miss or an entry past
    ``cache_s`` is probed, and the node's newest report stands for the answer. Where all are full Ray waits with
    backoff; a deadline cannot, so the shortest of the last two is taken.
    """

    name = "ray-pow2"

    def __init__(self, cache_s: float = 10.0, max_ongoing: int = 5) -> None:
        self._cache_s, self._max_ongoing = cache_s, max_ongoing
        self._cache: dict[int, tuple[float, int]] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        site = world.nodes[request.origin].site
        rings = ([request.origin], [n for n in nodes if world.nodes[n].site == site], nodes)
        for ring in rings:
            usable = [node for node in ring if node in nodes]
            if not usable:
                continue
            chosen = least(usable, lambda node: self._length(world, node), world.luck, 2)
            if self._length(world, chosen) < self._max_ongoing:
                break
        at, length = self._cache[chosen]
        self._cache[chosen] = (at, length + 1)
        return chosen

    def _length(self, world: World, node: int) -> int:
        entry = self._cache.get(node)
        if entry is None or world.now - entry[0] > self._cache_s:
            entry = self._cache[node] = (world.now, _reported(world, node))
        return entry[1]

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        self._cache[node] = (world.now, _reported(world, node))


def _reported(world: World, node: int) -> int:
    report = world.report(node)
    return 0 if report is None else report.in_flight
