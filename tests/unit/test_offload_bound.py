"""The bounds are bounds: never below the best schedule that trying everything finds, nor below any simulated policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from tests.bench.offload import policies
from tests.bench.offload.bound import Instance, bound, earliest_first, flow_bound, linear_bound
from tests.bench.offload.environment import Environment
from tests.bench.offload.policy import Request
from tests.bench.offload.profiles import Profile
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.world import Mesh

RTT_S = 0.02


def tiny(luck: Random) -> Instance:
    """Five requests for two models, on a box and in the cloud across a wide WAN."""
    requests = []
    for number in range(5):
        born_s = luck.uniform(0.0, 0.06)
        requests.append(Request(number, luck.randrange(2), 0, born_s, born_s + luck.uniform(0.02, 0.09), 1_000, 100, 0))
    profiles = [
        [(luck.uniform(2.0, 25.0), luck.uniform(2.0, 15.0), luck.choice((1, 2, 3))) for _ in range(2)] for _ in range(2)
    ]
    return Instance(requests, [0, 1], 1, profiles, _whole, _wide, RTT_S)


def _whole(_node: int, begin_s: float, end_s: float) -> float:
    return end_s - begin_s


def _wide(_site: int, begin_s: float, end_s: float) -> float:
    return 1e9 * (end_s - begin_s)


def best_schedule(instance: Instance) -> int:
    """Most requests in time, by trying every division between the two nodes and every order of runs."""
    everything = list(instance.requests)
    here = [set(s) for s in _subsets(everything) if _in_time(s, instance.profiles[0], 0.0, 0.0)]
    there = [set(s) for s in _subsets(everything) if _in_time(s, instance.profiles[1], 0.0, RTT_S / 2)]
    return max(len(one) + len(other) for one in here for other in there if not one & other)


def _subsets(requests: Sequence[Request]) -> list[tuple[Request, ...]]:
    return [chosen for count in range(len(requests) + 1) for chosen in combinations(requests, count)]


def _in_time(waiting: Sequence[Request], profiles: Sequence[Profile], now: float, way_s: float) -> bool:
    """Whether one node can run all of them so that each is back at its deadline."""
    if not waiting:
        return True
    for run in _subsets(waiting)[1:]:
        a, c, most = profiles[run[0].model]
        if len(run) > most or any(request.model != run[0].model for request in run):
            continue
        end_s = max(now, *(request.born_s + way_s for request in run)) + (a + c * len(run)) / 1e3
        if end_s + way_s > min(request.deadline_s for request in run):
            continue
        if _in_time([request for request in waiting if request not in run], profiles, end_s, way_s):
            return True
    return False


@pytest.mark.parametrize("seed", range(25))
def test_no_schedule_beats_the_bounds(seed: int) -> None:
    instance = tiny(Random(seed))
    best = best_schedule(instance)
    for slot_s in (0.1, 0.02, 0.005):
        assert best <= flow_bound(instance, slot_s) + 1e-6
        assert best <= bound(instance, slot_s) + 1e-6


def test_the_bounds_are_below_the_arrivals_somewhere() -> None:
    pytest.importorskip("scipy.optimize")  # the flow bound alone is looser
    """Else they would say nothing."""
    least = [bound(tiny(Random(seed)), 0.005) for seed in range(25)]
    assert min(least) < 4.0


def test_the_linear_bound_is_the_tighter_one() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(10):
        instance = tiny(Random(seed))
        assert linear_bound(instance, 0.005, optimize) <= flow_bound(instance, 0.005) + 1e-6


def test_the_uplink_limits_what_the_cloud_can_do() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    instance = tiny(Random(0))
    requests = [Request(i, 0, 0, 0.0, 0.09, 1_000, 100, 0) for i in range(10)]
    profiles = [[(500.0, 1.0, 1)] * 2, [(0.0, 0.1, 1)] * 2]
    narrow = replace(instance, requests=requests, profiles=profiles, carried=lambda _s, b, e: 3e4 * (e - b))
    assert linear_bound(narrow, 0.1, optimize) == pytest.approx(3.0)
    assert flow_bound(narrow, 0.1) == pytest.approx(10.0)


def test_capacity_by_hand() -> None:
    """One box, 10 ms a row, 20 rows wanted within 100 ms of one slot."""
    requests = [Request(i, 0, 0, 0.0, 0.0999, 1_000, 100, 0) for i in range(20)]
    alone = Instance(requests, [0], 1, [[(0.0, 10.0, 1)]], _whole, _wide, RTT_S)
    assert flow_bound(alone, 0.1) == pytest.approx(10.0)
    assert bound(alone, 0.1) == pytest.approx(10.0)


def test_earliest_deadline_first_is_a_maximum_flow() -> None:
    assert earliest_first([(0, 0, 2.0), (0, 1, 2.0), (1, 2, 3.0)], [2.0, 2.0, 1.0]) == pytest.approx(5.0)
    assert earliest_first([(0, 2, 4.0), (0, 0, 1.0)], [1.0, 0.0, 2.0]) == pytest.approx(3.0)
    assert earliest_first([], [1.0]) == 0.0


@pytest.mark.parametrize("scenario", ["S2", "S6", "S9"])
def test_no_simulated_policy_beats_the_bound(scenario: str) -> None:
    environment = Environment(replace(SCENARIOS[scenario], seconds=4.0, noise=0.0), 7)
    most = bound(Instance.of(environment))
    assert most <= flow_bound(Instance.of(environment)) + 1e-6
    for name in ("prequal-net", "omniscient", "peak-ewma"):
        mesh = Mesh(environment, lambda name=name: policies.make(name)).run()  # type: ignore[misc]
        assert len(environment.requests) - mesh.misses <= most + 1e-6
