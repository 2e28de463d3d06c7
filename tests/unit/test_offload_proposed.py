"""The proposed estimator and rule by values worked out by hand, and what they do about nodes that lie.

Not here: the other policies (``test_offload_policies``), whole simulated runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from random import Random

import pytest

from tests.bench.offload.policy import Request
from tests.bench.offload.proposed import Choice, choose
from tests.bench.offload.proposed_estimate import Ask, Candidate, Dials, Learned, Load, Sent, estimate
from tests.bench.offload.proposed_policy import Proposed
from tests.unit.test_offload_policies import StubWorld

PROFILE = (8.0, 2.0, 4)
CALM = Dials(explore=0.0)
ASK = Ask(model=0, deadline_s=0.1, slo_ms=100.0)


def load(
    free_ms: float = 5.0,
    slowdown: float = 2.0,
    arriving: float = 0.5,
    queue: Sequence[tuple[int, float, float, int]] = ((0, 0.05, 0.05, 3),),
    service_ms: Sequence[float] = (),
) -> Load:
    return Load(0.0, free_ms, slowdown, arriving, queue, (PROFILE, PROFILE), service_ms)


def candidate(
    said: Load | None, own: Sequence[Sent] = (), tier: int = 0, in_flight: int = 0, learned: Learned | None = None
) -> Candidate:
    return Candidate(tier, 1.0, 1.0, PROFILE, said, own, 0.2, in_flight, learned or Learned())


OWN = (Sent(0.005, 0, 0.09),)
FULL = candidate(load(), OWN)


def total(dials: Dials = CALM, of: Candidate = FULL, now: float = 0.01) -> float:
    return estimate(ASK, of, now, dials).total_ms


def test_the_walk_by_hand() -> None:
    """5 ms of a run and one of 3 rows at half speed, drained at 1 - 0.3; an own row comes; 1 ms is spent on the way."""
    wait = 5.0 + 2 * (8 + 3 * 2)
    wait = wait - 0.7 * 5.0 + 2 * (8 / 3 + 2)
    wait -= 0.7 * 6.0
    parts = estimate(ASK, FULL, 0.01, CALM)
    assert parts.wait_ms == pytest.approx(wait)
    assert parts.service_ms == 20.0
    assert parts.total_ms == pytest.approx(2.0 + wait + 20.0)


def test_a_queue_that_ran_dry_does_not_pay_for_later() -> None:
    own = (Sent(0.005, 0, 0.09),)
    dry = candidate(load(free_ms=1.0, slowdown=1.0, arriving=0.0, queue=()), own)
    assert estimate(ASK, dry, 0.005, CALM).wait_ms == pytest.approx(8 / 3 + 2 - 1.0)


@pytest.mark.parametrize(
    ("dials", "more"),
    [
        (replace(CALM, own=False), -2 * (8 / 3 + 2)),
        (replace(CALM, others=False), -0.3 * 11),
        (replace(CALM, batches=False), 2 * 2 * 8 + 2 * (10 - 8 / 3 - 2)),
        (replace(CALM, slowdown=False), -(8 + 6) - (8 / 3 + 2) - 10),
    ],
)
def test_each_switch_takes_its_part_away(dials: Dials, more: float) -> None:
    assert total(dials) == pytest.approx(total() + more)


def test_later_deadlines_do_not_stand_in_the_way() -> None:
    later = candidate(load(queue=((0, 0.2, 0.2, 3),)), OWN)
    assert total(of=later) == pytest.approx(total() - 2 * 14)
    assert total(replace(CALM, edf=False), later) == pytest.approx(total())
    half = candidate(load(queue=((0, 0.05, 0.15, 4),)), OWN)  # a bin of which half comes first: 2 rows
    assert total(of=half) == pytest.approx(total() - 2 * 2)


def test_what_a_node_has_learned_of_itself_counts() -> None:
    slower = candidate(load(slowdown=1.0, service_ms=(30.0, 10.0)), OWN)
    assert total(of=slower) - total(of=candidate(load(slowdown=1.0), OWN)) == pytest.approx(2 * (14 + 14 / 3 + 10))


def test_a_model_that_must_be_loaded_costs_its_load_but_once() -> None:
    loads = candidate(load(slowdown=1.0, service_ms=(510.0, 10.0)), OWN)
    assert total(of=loads) == pytest.approx(total(of=candidate(load(slowdown=1.0), OWN)) + 500.0)
    assert total(replace(CALM, loads=False), loads) == pytest.approx(total(of=candidate(load(slowdown=1.0), OWN)))


def test_bias_is_learned_clipped_and_never_below_the_run_alone() -> None:
    learned = Learned()
    for _ in range(200):
        learned.answered(40.0, 10.0, 100.0, 0.0, CALM)
    assert learned.bias_ms == pytest.approx(30.0, abs=0.1)
    assert learned.sigma_ms == pytest.approx(30.0, abs=0.1)
    for _ in range(500):
        learned.answered(10.0, 500.0, 100.0, 0.0, CALM)
    assert learned.bias_ms == -20.0
    idle = candidate(load(free_ms=0.0, queue=()), learned=learned)
    assert total(of=idle) == 2.0 + 20.0


def test_a_node_whose_answers_all_come_later_than_it_says_is_doubted() -> None:
    learned = Learned()
    for _ in range(5):
        learned.answered(300.0, 10.0, 100.0, 1.0, CALM)  # counts as 200, twice the SLO
    assert learned.doubt_ms(1.0, CALM) == pytest.approx(190.0)
    assert learned.doubt_ms(6.0, CALM) == pytest.approx(190.0 * exp(-1))
    assert total(of=candidate(load(), learned=learned), now=1.0) > 200.0
    assert total(replace(CALM, floors=False, bias=False), candidate(load(), learned=learned), 1.0) < 100.0
    learned.answered(10.0, 10.0, 100.0, 1.0, CALM)
    assert learned.doubt_ms(1.0, CALM) == 0.0  # one answer as predicted is enough


def test_an_old_report_gives_way_to_the_peak_average() -> None:
    learned = Learned()
    learned.answered(50.0, 50.0, 100.0, 4.0, CALM)
    known = candidate(load(), in_flight=2, learned=learned)
    assert total(of=known, now=4.0) == pytest.approx(150.0)
    assert total(replace(CALM, fallback=False), known, 4.0) < 100.0
    assert total(of=candidate(None), now=4.0) == 12.0  # never heard of: the network and a run


def idle(tier: int, ms: float) -> Candidate:
    """A candidate predicted at so many ms."""
    return candidate(load(free_ms=ms - 12.0 + 1.0, slowdown=1.0, arriving=0.2, queue=()), tier=tier)


def chosen(*candidates: Candidate, dials: Dials = CALM, ask: Ask = ASK, seed: int = 1) -> Choice:
    return choose(ask, candidates, 0.0, Random(seed), dials)


def test_the_cheapest_tier_within_the_regret() -> None:
    assert chosen(idle(2, 30.0), idle(1, 35.0), idle(0, 39.0)).at == 2
    assert chosen(idle(2, 30.0), idle(1, 35.0), idle(0, 41.0)).at == 1
    assert chosen(idle(2, 30.0), idle(0, 39.0), dials=replace(CALM, gamma=0.0)).at == 0
    assert chosen(idle(2, 30.0), idle(0, 41.0), dials=replace(CALM, gamma=0.4)).at == 1


def test_a_tier_that_may_miss_the_deadline_is_not_worth_its_price() -> None:
    shaky = idle(0, 35.0)
    shaky.learned.sigma_ms = 70.0
    assert chosen(idle(2, 30.0), shaky).at == 0
    assert chosen(idle(2, 30.0), shaky, dials=replace(CALM, sigma=False)).at == 1


def test_none_in_time_takes_the_best_and_sheds_only_the_lowest_class() -> None:
    late = (idle(0, 160.0), idle(1, 140.0))
    assert chosen(*late).at == 1
    assert chosen(*late, ask=ASK._replace(priority=2)).at == 1
    assert chosen(*late, ask=ASK._replace(priority=3)) == (None, chosen(*late).estimates, "shed")
    assert chosen(idle(0, 120.0), ask=ASK._replace(priority=3)).at == 0  # within 1.3 times the time left
    assert chosen().at is None


def test_two_of_the_near_best_are_drawn() -> None:
    peers = (idle(1, 30.0), idle(1, 31.0), idle(1, 32.0), idle(1, 45.0))
    counts = Counter(chosen(*peers, seed=seed).at for seed in range(300))
    assert counts[0] > counts[1] > 60  # the better of any two of the first three
    assert counts[2] == counts[3] == 0
    assert {chosen(*peers, dials=replace(CALM, draw_two=False), seed=seed).at for seed in range(9)} == {0}


def test_exploration_only_where_there_is_room() -> None:
    eager = replace(CALM, explore=1.0)
    old = idle(2, 24.0)
    old = old._replace(load=old.load._replace(taken_s=-1.0) if old.load else None)
    assert chosen(idle(0, 20.0), old, dials=eager).reason == "explored"
    assert chosen(idle(0, 50.0), old._replace(learned=Learned()), dials=replace(eager, gamma=0.0)).at is not None
    assert chosen(idle(0, 30.0), idle(2, 40.0), dials=eager).reason == "near-best"


def test_own_sends_count_until_a_report_knows_of_them() -> None:
    world, policy = StubWorld(2, ((20.0, 5.0, 4),)), Proposed(CALM)
    for node in (0, 1):
        world.tells(node)
    world.now = 0.001
    sent = [policy.choose(Request(i, 0, 0, 0.001, 0.201, 1_000, 1_000, 0), world) for i in range(8)]
    assert sent[0] == 0
    assert 1 in sent  # its own sends made node 0 look loaded, though no report came
    world.now = 0.1
    for node in (0, 1):
        world.tells(node)  # all done
    assert policy.choose(Request(9, 0, 0, 0.1, 0.3, 1_000, 1_000, 0), world) == 0


def test_traffic_leaves_a_node_that_reports_itself_idle_and_answers_late() -> None:
    world, policy = StubWorld(2), Proposed(replace(CALM, bias=False))
    picks: list[int | None] = []
    for number in range(60):
        world.now = number / 10
        for node in (0, 1):
            world.tells(node)
        request = Request(number, 0, 0, world.now, world.now + 0.1, 1_000, 1_000, 0)
        picks.append(policy.choose(request, world))
        assert picks[-1] is not None
        policy.answered(request, picks[-1], 12.0 if picks[-1] else 90.0, True, world)
    assert picks[:5] == [0] * 5
    assert picks[5:25] == [1] * 20  # two seconds' doubt is still 78 ms * e^-0.4, more than the regret of 10
