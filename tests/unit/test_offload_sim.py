"""The simulated mesh: the same seed is the same run, every arrival has one outcome, and times are what theory says."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mesh.ejection import ERRORS, FIRST_S
from tests.bench.offload.baselines_latency import PeakEwma
from tests.bench.offload.environment import Environment, Steps, Trace, stream
from tests.bench.offload.network import LAN_BYTES_S, LAN_MS, Pipe
from tests.bench.offload.ours import Ours
from tests.bench.offload.policy import Policy, Request, World
from tests.bench.offload.scenario import Fault, Heat, Load, Model, Profile, Scenario, Wan
from tests.bench.offload.scenarios import MAIN, SCENARIOS
from tests.bench.offload.world import Mesh

MODEL = Model("m", slo_ms=1000.0, nbytes=100_000, reply_bytes=5_000)
PLAIN = Scenario(
    "plain", "nothing happens", (MODEL,), (("box", "box"),), ("cloud",),
    {"box": {"m": (6.0, 4.0, 4)}, "cloud": {"m": (1.0, 1.0, 8)}},
    Load(rho=0.5), Wan(mbit=8.0, cv=0.0), noise=0.0, seconds=10.0,
)  # fmt: skip


class Fixed:
    """Sends everything where it is told: a node, or for each request the next of several."""

    name = "fixed"

    def __init__(self, *nodes: int) -> None:
        self.nodes = nodes
        self.asked: list[tuple[int, Sequence[int]]] = []
        self.heard: list[tuple[int, float, bool]] = []

    def choose(self, request: Request, world: World) -> int | None:
        candidates = world.candidates(request)
        self.asked.append((request.id, candidates))
        node = self.nodes[(len(self.asked) - 1) % len(self.nodes)]
        return node if node in candidates else None

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        self.heard.append((node, took_ms, ok))


class Chance(Fixed):
    """Any candidate, and a good deal of luck drawn beside it."""

    def choose(self, request: Request, world: World) -> int | None:
        return min(world.luck.choice(world.candidates(request)) for _ in range(2))


class Favourite(Fixed):
    """The first of its nodes that may be had."""

    def choose(self, request: Request, world: World) -> int | None:
        candidates = world.candidates(request)
        self.asked.append((request.id, candidates))
        return next((node for node in self.nodes if node in candidates), None)


def short(name: str, seconds: float = 6.0) -> Scenario:
    return replace(SCENARIOS[name], seconds=seconds)


def told(scenario: Scenario, born: Sequence[float], *, slo_ms: float = 1000.0, origin: int = 0) -> Environment:
    """A world with just these requests."""
    world = Environment(scenario, 1)
    world.requests = [
        Request(n, 0, origin, at, at + slo_ms / 1e3, MODEL.nbytes, MODEL.reply_bytes, 0) for n, at in enumerate(born)
    ]
    return world


def run(world: Environment, policy: Callable[[], Policy]) -> Mesh:
    return Mesh(world, policy).run()


@pytest.mark.parametrize("policy", [Ours, PeakEwma])
def test_the_same_seed_is_the_same_run(policy: Callable[[], Policy]) -> None:
    first, again, other = (run(Environment(short("S5"), seed), policy) for seed in (1, 1, 2))
    assert first.latency_ms == again.latency_ms
    assert first.outcomes == again.outcomes
    assert first.network.wan_bytes() == again.network.wan_bytes()
    assert first.latency_ms != other.latency_ms


VARIANTS = ("S4-outage", "S7-50ms-1r", "S7-250ms-100r", "S7-none")


@pytest.mark.parametrize("name", [*MAIN, *VARIANTS])
@pytest.mark.parametrize("policy", [Ours, PeakEwma, Chance])
def test_every_arrival_has_exactly_one_outcome(name: str, policy: Callable[[], Policy]) -> None:
    """A second outcome raises in the mesh itself. Afterwards nothing is under way, queued or running."""
    mesh = run(Environment(short(name), 3, scale=1.5), policy)
    assert None not in mesh.outcomes
    assert mesh.misses == sum(outcome != "good" for outcome in mesh.outcomes)
    assert [router.outstanding() for router in mesh.routers if router.outstanding()] == []
    left = [(device.in_flight, device.run, device.lanes) for device in mesh.devices]
    assert left == [(0, None, {})] * len(left)
    answered = [ms < math.inf for ms in mesh.latency_ms]
    assert answered == [outcome == "good" for outcome in mesh.outcomes]


def test_a_policy_changes_nothing_of_the_world_around_it() -> None:
    scenario = replace(short("S10"), heat=Heat(every_s=5.0), wan=Wan(cv=0.6, outage_share=0.2))
    worlds = [Environment(scenario, 4) for _ in range(3)]
    moments = [step / 7 for step in range(70)]

    def facts(world: Environment) -> list[Any]:
        heat = [[steps.at(at) for at in moments] for steps in world.heat]
        return [world.requests, [trace.rates for trace in world.up], heat, world.profiles]

    before = facts(worlds[0])
    for world, policy in zip(worlds, (Ours, PeakEwma, Chance), strict=True):
        run(world, policy)
        assert facts(world) == before
    busier = Environment(scenario, 4, scale=2.0)
    assert facts(busier)[1:] == before[1:], "more load is no other weather"
    assert len(busier.requests) > 1.5 * len(worlds[0].requests)


def test_times_of_a_single_node_by_hand() -> None:
    """A run of n rows takes 6 + 4 n ms: the first runs alone for 10, the two that come meanwhile together for 14."""
    mesh = run(told(PLAIN, [1.0, 1.002, 1.004, 3.0]), lambda: Fixed(0))
    assert mesh.latency_ms == pytest.approx([10.0, 22.0, 20.0, 10.0])
    assert mesh.devices[0].executed_ms == pytest.approx(34.0)
    assert mesh.good_ms == pytest.approx(34.0)


def test_time_to_a_neighbour_by_hand() -> None:
    policy = Fixed(1)
    mesh = run(told(PLAIN, [1.0]), lambda: policy)
    wire_ms = (MODEL.nbytes + MODEL.reply_bytes) / LAN_BYTES_S * 1e3
    assert mesh.latency_ms == [pytest.approx(wire_ms + LAN_MS + 10.0)]
    assert policy.heard == [(1, mesh.latency_ms[0], True)]
    assert mesh.network.wan_bytes() == 0.0


def test_time_to_the_cloud_by_hand() -> None:
    """8 Mbit/s up and 32 down: 100 ms up and 1.25 ms down; the second waits for the first. The RTT is 40 ms, about."""
    mesh = run(told(PLAIN, [1.0, 1.0]), lambda: Fixed(2))
    assert mesh.latency_ms == pytest.approx([143.25, 243.25], abs=20.0)
    assert mesh.network.wan_bytes() == 2 * (MODEL.nbytes + MODEL.reply_bytes)


def test_a_sender_gives_up_at_the_deadline() -> None:
    """Of ten bodies of 100 ms each, those that do not get through in 250 ms cost no more bytes than went by then."""
    mesh = run(told(PLAIN, [1.0] * 10, slo_ms=250.0), lambda: Fixed(2))
    assert mesh.outcomes.count("late") == 8
    assert mesh.network.up[0].carried == pytest.approx(250_000.0)


def test_what_a_node_refuses_is_tried_once_elsewhere() -> None:
    """Eight at once, for 40 ms: by its best batches node 0 is done with the sixth after 42 ms, and says so at once."""
    policy = Favourite(0, 1)
    mesh = run(told(PLAIN, [1.0] * 8, slo_ms=40.0), lambda: policy)
    again = [now for before, now in itertools.pairwise(policy.asked) if before[0] == now[0]]
    assert [request for request, _ in again][:3] == [5, 6, 7]
    assert all(0 not in candidates for _, candidates in again)
    assert max(sum(asked == request for asked, _ in policy.asked) for request in range(8)) == 2
    assert mesh.outcomes.count("good") >= 7


def test_a_queue_behaves_as_theory_says() -> None:
    """M/D/1: the mean wait is rho s / (2 (1 - rho)), at rho = 0.7 and s = 50 ms: 58.3 ms."""
    boxes: dict[str, dict[str, Profile]] = {box: {"m": (0.0, 50.0, 1)} for box in ("box", "cloud")}
    patient = (replace(MODEL, slo_ms=1e6),)
    scenario = replace(PLAIN, models=patient, sites=(("box",),), boxes=boxes, load=Load(rho=0.7), seconds=2000.0)
    waits = [ms - 50.0 for ms in run(Environment(scenario, 1), lambda: Fixed(0)).latency_ms]
    assert statistics.fmean(waits) == pytest.approx(0.7 * 50.0 / 0.6, rel=0.06)
    assert sum(wait < 1e-6 for wait in waits) / len(waits) == pytest.approx(0.3, abs=0.02), "who comes to an idle node"


def test_arrivals_have_the_rate_and_the_gaps_that_were_asked_for() -> None:
    for cv in (1.0, 3.0):
        scenario = replace(PLAIN, sites=(("box",),), load=Load(rho=0.5, cv=cv), seconds=300.0)
        world = Environment(scenario, 1)
        born = [request.born_s for request in world.requests]
        gaps = [after - before for before, after in itertools.pairwise(born)]
        assert len(born) / scenario.seconds == pytest.approx(world.rate, rel=0.05)
        assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.1)


def test_a_crash_is_told_to_the_senders_who_go_elsewhere_and_come_back() -> None:
    scenario = replace(PLAIN, faults=(Fault("crash", 1, 0.2, 4.0),))
    policy = Favourite(1, 0)
    mesh = run(told(scenario, [1.999, 3.0, 8.0]), lambda: policy)
    node, took_ms, ok = policy.heard[0]
    assert (node, ok) == (1, False)
    assert took_ms == pytest.approx(MODEL.nbytes / LAN_BYTES_S * 1e3 + LAN_MS), "it was gone when the request came"
    assert [(request, 1 in candidates) for request, candidates in policy.asked] == [
        (0, True), (0, False), (1, False), (2, True)
    ]  # fmt: skip
    assert set(mesh.outcomes) == {"good"}


def test_five_errors_in_a_row_eject_a_node_until_a_trial_succeeds() -> None:
    scenario = replace(PLAIN, faults=(Fault("fast-fail", 1, 0.0, 2.5),))
    born = [1.0 + 0.05 * n for n in range(ERRORS + 4)] + [1.25 + FIRST_S, 1.25 + FIRST_S]
    policy = Favourite(1, 0)
    mesh = run(told(scenario, born), lambda: policy)
    first = dict(reversed(policy.asked))
    offered = [1 in first[request] for request in range(len(born))]
    assert offered == [True] * ERRORS + [False] * 4 + [True, False], "one trial at a time"
    assert set(mesh.outcomes) == {"good"}, "each was tried elsewhere"


def test_a_model_that_is_not_in_memory_is_loaded_before_it_runs() -> None:
    models = tuple(Model(name, 5000.0, 1000, load_s=0.5) for name in "ab")
    profile: dict[str, Profile] = dict.fromkeys("ab", (6.0, 4.0, 4))
    scenario = replace(PLAIN, models=models, boxes={"box": profile, "cloud": profile}, memory=1.0)
    world = told(scenario, [3.0, 5.0], slo_ms=5000.0)
    world.requests = [request._replace(model=1) for request in world.requests]
    mesh = run(world, lambda: Fixed(0))
    assert mesh.latency_ms == pytest.approx([510.0, 10.0])
    assert list(mesh.devices[0].memory.resident) == [1]


def test_bytes_through_a_trace() -> None:
    trace = Trace([100.0, 0.0, 0.0, 200.0])
    assert trace.finish(0.5, 50.0) == pytest.approx(1.0)
    assert trace.finish(0.5, 60.0) == pytest.approx(3.05), "two dark seconds"
    assert trace.finish(10.0, 400.0) == pytest.approx(12.0), "the last rate holds"
    luck = random.Random(1)
    rates = [luck.choice([0.0, 1.0]) * luck.random() * 1e5 for _ in range(30)] + [1e4]
    trace = Trace(rates)
    for _ in range(200):
        start, nbytes = luck.uniform(0.0, 30.0), luck.uniform(1.0, 1e5)
        assert trace.carried(trace.finish(start, nbytes)) - trace.carried(start) == pytest.approx(nbytes, rel=1e-6)
    pipe = Pipe(Trace([100.0]))
    assert pipe.send(0.0, 100, 9.0) == pytest.approx(1.0)
    assert pipe.send(0.0, 100, 1.5) is None
    assert pipe.free_s == 1.5
    assert pipe.carried == pytest.approx(150.0)
    assert pipe.send(0.0, 100, 1.4) is None
    assert pipe.carried == pytest.approx(150.0), "its turn never came"


def test_of_overlapping_spans_the_larger_factor_counts() -> None:
    steps = Steps([(1.0, 4.0, 1.5), (2.0, 3.0, 2.0)])
    assert [steps.at(at) for at in (0.5, 1.0, 2.5, 3.5, 4.0)] == [1.0, 1.5, 2.0, 1.5, 1.0]
    assert Steps([]).at(1.0) == 1.0


def test_streams_of_causes_are_independent() -> None:
    assert len({stream(1, cause, index).random() for cause in ("a", "b") for index in (0, 1)}) == 4
    assert stream(1, "a").random() == stream(1, "a").random()
