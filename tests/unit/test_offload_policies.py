"""The policies of the offload bench: their formulas by values worked out by hand, on a stub of a router's view.

Not here: the simulated mesh that the bench runs them in; the bounds (``test_offload_bound``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp
from random import Random
from typing import NoReturn

import pytest

from tests.bench.offload import policies
from tests.bench.offload.baselines import LeastInFlight, LocalOnly, RayPowerOfTwo, RoundRobin, WeightedRoundRobin
from tests.bench.offload.baselines_latency import C3, LlmdLike, Peak, PeakEwma
from tests.bench.offload.marginal import DgdLike, GmsrLike, marginal_ms, simplex
from tests.bench.offload.policy import Node, Report, Request
from tests.bench.offload.prequal import Prequal, Probe, threshold
from tests.bench.offload.profiles import best_row_ms, queue_ms, row_ms, rows_per_ms, work_ms

PROFILE = (8.0, 2.0, 4)
REQUEST = Request(0, 0, 0, 0.0, 0.1, 10_000, 1_000, 0)


class StubWorld:
    """A router's view made of plain values; node 0 is its own, the last one the cloud."""

    def __init__(self, count: int = 3, profiles: Sequence[tuple[float, float, int]] = (PROFILE,)) -> None:
        self.now = 0.0
        self.luck = Random(1)
        self.nodes: Sequence[Node] = [
            Node(i, 0 if i < count - 1 else 1, "edge" if i < count - 1 else "cloud", tuple(profiles))
            for i in range(count)
        ]
        self.reports: dict[int, Report] = {}
        self.pending: dict[int, list[tuple[float, int]]] = {}
        self.network: dict[int, float] = {}
        self.usable = list(range(count))

    def tells(self, node: int, in_flight: int = 0, slowdown: float = 1.0, free_ms: float = 0.0) -> None:
        self.reports[node] = Report(node, self.now, self.now, free_ms, slowdown, 0.0, in_flight, ())

    def report(self, node: int) -> Report | None:
        return self.reports.get(node)

    def in_flight(self, node: int) -> int:
        return len(self.pending.get(node, ()))

    def sent(self, node: int) -> Sequence[tuple[float, int]]:
        return self.pending.get(node, [])

    def network_ms(self, node: int, request: Request) -> float:
        return self.network.get(node, 0.1)

    def candidates(self, request: Request) -> Sequence[int]:
        return self.usable

    def truth(self) -> NoReturn:
        raise AssertionError("only the omniscient one may ask")


def test_service_formulas() -> None:
    assert work_ms(PROFILE, 5) == 2 * 8.0 + 5 * 2.0
    assert row_ms(PROFILE) == pytest.approx(8.0 / 3 + 2.0)
    assert best_row_ms(PROFILE) == 4.0
    assert rows_per_ms(PROFILE, 2) == pytest.approx(2 / 12)
    assert rows_per_ms(PROFILE, 40) == pytest.approx(4 / 16)
    assert queue_ms((PROFILE, PROFILE), [(0, 10.0, 3), (1, 10.0, 1), (0, 90.0, 2)]) == 26.0 + 10.0


def test_local_only_refuses_what_its_own_node_cannot_take() -> None:
    world = StubWorld()
    assert LocalOnly().choose(REQUEST, world) == 0
    world.usable = [1, 2]
    assert LocalOnly().choose(REQUEST, world) is None


def test_round_robin_passes_over_a_node_that_is_gone() -> None:
    world, policy = StubWorld(), RoundRobin()
    assert [policy.choose(REQUEST, world) for _ in range(4)] == [0, 1, 2, 0]
    world.usable = [0, 2]
    assert [policy.choose(REQUEST, world) for _ in range(2)] == [2, 0]


def test_weighted_turns_follow_capacity() -> None:
    world = StubWorld(2)
    world.nodes = [world.nodes[0], world.nodes[1]._replace(profiles=((8.0 / 3, 2.0 / 3, 4),))]
    policy = WeightedRoundRobin()
    assert Counter(policy.choose(REQUEST, world) for _ in range(40)) == {0: 10, 1: 30}


def test_least_in_flight_of_all_and_of_two() -> None:
    world = StubWorld(3)
    world.pending = {0: [(0.0, 0)] * 2, 1: [(0.0, 0)], 2: [(0.0, 0)] * 3}
    assert LeastInFlight().choose(REQUEST, world) == 1
    counts = Counter(LeastInFlight(choices=2).choose(REQUEST, world) for _ in range(300))
    assert counts[2] == 0  # never the better of any two
    assert counts[0] > 50  # against node 2
    assert counts[1] > 150


def test_ray_keeps_a_queue_length_until_it_expires() -> None:
    world, policy = StubWorld(2), RayPowerOfTwo(cache_s=10.0, max_ongoing=5)
    world.tells(0, in_flight=1)
    world.tells(1, in_flight=3)
    assert policy.choose(REQUEST, world) == 0  # beside the caller, and not full
    world.tells(0, in_flight=9)
    world.now = 9.0
    assert policy.choose(REQUEST, world) == 0  # still 2 by the cache
    world.now = 10.5
    assert policy.choose(REQUEST, world) == 1  # probed anew: 9 is full, so the next ring
    policy.answered(REQUEST, 1, 5.0, True, world)
    assert policy._cache[1] == (10.5, 3)  # what the answer reported, the own send included


def test_peak_is_believed_at_once_and_fades() -> None:
    peak = Peak(tau_s=10.0, now=0.0)
    peak.observe(40.0, 0.0)
    assert peak.cost_ms == 40.0
    peak.observe(20.0, 10.0)
    assert peak.cost_ms == pytest.approx(40.0 * exp(-1) + 20.0 * (1 - exp(-1)))
    peak.observe(100.0, 10.0)
    assert peak.cost_ms == 100.0  # reset to the peak
    assert peak.load(2, 20.0) == pytest.approx(100.0 * exp(-1) * 3)


def test_peak_ewma_flees_a_node_that_fails_fast() -> None:
    world, policy = StubWorld(2), PeakEwma()
    policy.answered(REQUEST, 0, 30.0, True, world)
    policy.answered(REQUEST, 1, 1.0, False, world)  # counts as 200 ms
    assert policy._peaks[1].cost_ms == pytest.approx(200.0)
    assert policy.choose(REQUEST, world) == 0
    world.pending = {0: [(0.0, 0)] * 6}  # 30 * 7 > 200
    assert policy.choose(REQUEST, world) == 1


def test_c3_score() -> None:
    world, policy = StubWorld(3), C3(alpha=0.9)
    world.tells(1, in_flight=2, slowdown=2.0)
    policy.answered(REQUEST, 1, 50.0, True, world)
    assert policy.score(1, 4) == pytest.approx(50.0 - 20.0 + (1 + 4 + 2) ** 3 * 20.0)
    world.tells(1, in_flight=0)
    policy.answered(REQUEST, 1, 10.0, True, world)
    response, service, queue = 0.9 * 10 + 0.1 * 50, 0.9 * 10 + 0.1 * 20, 0.2
    assert policy.score(1, 0) == pytest.approx(response - service + (1 + queue) ** 3 * service)


def a_pool(policy: Prequal, *probes: tuple[int, float, int]) -> None:
    policy.pool = [Probe(node, at_s, in_flight, uses=3) for node, at_s, in_flight in probes]


def learned(policy: Prequal, world: StubWorld, latencies: dict[int, float]) -> None:
    """Three answers of each node: enough for its median."""
    for node, ms in latencies.items():
        for number in range(3):
            request = REQUEST._replace(id=number)
            policy._sent[number, node] = (1, 0.0)
            policy.answered(request, node, ms, True, world)


def test_hot_cold_rule() -> None:
    world, policy = StubWorld(4), Prequal()
    learned(policy, world, {0: 50.0, 1: 20.0, 2: 5.0})
    a_pool(policy, (0, 0.0, 1), (1, 0.0, 2), (2, 0.0, 9))
    policy._heard.extend([1, 1, 2, 2, 3, 4])  # the quantile 0.84 of six is the last: 4
    assert policy.pick(REQUEST, world).node == 1  # the faster one of the cold; node 2 is hot
    a_pool(policy, (0, 0.0, 8), (2, 0.0, 9))
    assert policy.pick(REQUEST, world).node == 0  # all hot: fewest in flight, however slow
    assert threshold([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.84) == 9


def test_prequal_knows_the_network_only_if_told_to() -> None:
    for network, expected in ((False, 2), (True, 1)):
        world, policy = StubWorld(4), Prequal(network=network)
        world.network = {2: 40.0}
        learned(policy, world, {1: 20.0, 2: 5.0})
        a_pool(policy, (1, 0.0, 1), (2, 0.0, 1))
        assert policy.pick(REQUEST, world).node == expected


def test_prequal_reuse_and_removal() -> None:
    world, policy = StubWorld(6), Prequal()
    assert policy.reuse(16, 100) == pytest.approx(2 / (0.84 * 3 - 1))
    assert policy.reuse(16, 10) == 16.0  # the formula has no answer where the pool outnumbers the replicas
    learned(policy, world, {0: 5.0, 1: 50.0, 2: 9.0})
    a_pool(policy, (0, 0.3, 1), (1, 0.2, 1), (2, 0.1, 1))
    policy._drop(REQUEST, world)
    assert [probe.node for probe in policy.pool] == [0, 1]  # the oldest
    policy._drop(REQUEST, world)
    assert [probe.node for probe in policy.pool] == [0]  # the worst: none is hot, so the slowest


def test_prequal_forgets_old_probes_and_counts_its_own_sends() -> None:
    world, policy = StubWorld(6), Prequal(probes=0.0, remove=0.0)
    learned(policy, world, dict.fromkeys(range(3), 10.0))
    a_pool(policy, (0, 0.0, 1), (1, 0.9, 1), (2, 0.9, 1))
    world.now = 1.5
    chosen = policy.choose(REQUEST, world)
    assert chosen in (1, 2)
    assert {probe.node: probe.in_flight for probe in policy.pool} == {1: 1, 2: 1, chosen: 2}


def test_llmd_packs_or_spreads_within_positive_headroom() -> None:
    world = StubWorld(3)
    for node, free_ms in ((0, 10.0), (1, 60.0), (2, 200.0)):
        world.tells(node, in_flight=1, free_ms=free_ms)
    assert LlmdLike("least", explore=0.0).choose(REQUEST, world) == 1
    assert LlmdLike("most", explore=0.0).choose(REQUEST, world) == 0
    assert LlmdLike("least", explore=1.0).choose(REQUEST, world) == 2
    world.usable = [1, 2]
    late = REQUEST._replace(deadline_s=0.02)
    assert LlmdLike().choose(late, world) == 1  # none has headroom: the least overdue
    world.tells(2, in_flight=0, free_ms=200.0)
    assert LlmdLike().choose(late, world) == 2  # an idle one first


def test_marginal_cost_and_rate() -> None:
    assert marginal_ms(PROFILE, 3) == 8.0 + 2 * 2.0 * 3
    assert marginal_ms(PROFILE, 8, slowdown=2.0) == 2.0 * 2 * 8 * 16.0 / 4
    assert simplex([0.5, 0.5]) == [0.5, 0.5]
    assert simplex([1.2, 0.4, -1.0]) == pytest.approx([0.9, 0.1, 0.0])


def test_descent_moves_probability_to_the_cheaper_node() -> None:
    world, policy = StubWorld(2), DgdLike(step=5.0, floor=0.0)
    world.network = {1: 1e3}
    policy.choose(REQUEST, world)
    shares = []
    for step in range(1, 5):
        world.now = 0.02 * step
        policy.choose(REQUEST, world)
        shares.append(policy._shares[0][0])
    costs = (8.1, 1008.0)
    mean = sum(costs) / 2
    assert shares[0] == pytest.approx(0.5 + 5.0 * 0.02 * (mean - costs[0]) / mean)
    assert shares == sorted(shares)


def test_greatest_marginal_rate() -> None:
    world = StubWorld(2)
    world.tells(0, in_flight=1)
    world.tells(1, in_flight=3)
    assert GmsrLike().choose(REQUEST, world) == 0  # 2/12 - 1/10 against 4/16 - 3/14
    world.tells(0, in_flight=6)
    world.tells(1, in_flight=5)
    assert GmsrLike().choose(REQUEST, world) == 1  # both saturated: the shorter time
    world.network = {1: 99.0}
    assert GmsrLike(fits=True).choose(REQUEST, world) == 0  # 99 and one run do not fit 100 ms


@pytest.mark.parametrize("name", [name for name in policies.NAMES if name != "omniscient"])
def test_every_policy_answers_with_a_candidate_or_refuses_when_there_is_none(name: str) -> None:
    policy, world = policies.make(name), StubWorld(4)
    for number in range(30):
        world.now = number / 100
        request = REQUEST._replace(id=number, born_s=world.now, deadline_s=world.now + 0.1)
        if number % 3 == 0:
            world.tells(number % 4, in_flight=number % 5)
        chosen = policy.choose(request, world)
        assert chosen in world.usable
        policy.answered(request, chosen, 10.0 + number, number % 7 != 0, world)
    world.usable = []
    assert policy.choose(REQUEST._replace(id=99), world) is None
