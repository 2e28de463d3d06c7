"""The balancer: cheapest tier near the best, deadlines, fairness among equals, and which model is meant."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mesh.balancer import OURS, Decision, Policy, decide, resolve
from mesh.estimator import Ask, Candidate, Dispatches, Link
from mesh.messages import ModelLoad
from mesh.values import ModelRef
from tests.builders import (
    DIGEST,
    OTHER_DIGEST,
    a_candidate,
    a_cloud,
    a_local,
    a_model_load,
    an_ask,
    an_identity,
)

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
COST = {"local": 0, "peer": 1, "cloud": 2}


def chosen(*candidates: Candidate, left_ms: float = 10_000.0, nbytes: int = 1024, seed: int = 1) -> Decision:
    return decide(an_ask(left_ms, nbytes), candidates, 0.0, Random(seed))


def test_nobody_to_ask() -> None:
    decision = chosen()
    assert (decision.node, decision.reason, list(decision.considered)) == (None, "no candidates", [])


def test_a_single_local_candidate_runs_here() -> None:
    decision = chosen(a_local(service_ms=5.0))
    assert (decision.node, decision.path, decision.route) == ("here", "local", "local")
    assert decision.predicted_ms == pytest.approx(5.1)


def test_idle_everywhere_stays_local() -> None:
    assert chosen(a_cloud(), a_candidate(), a_local()).node == "here"


def test_without_a_local_copy_the_peer_comes_before_the_cloud() -> None:
    near_cloud = a_cloud(link=Link.lan(), service_ms=4.0)
    assert chosen(near_cloud, a_candidate("n1", service_ms=5.0)).node == "n1"


def test_a_local_queue_worth_a_hop_goes_to_the_peer() -> None:
    queued = a_local(wait_ms=20.0)
    assert chosen(queued, a_candidate("n1"), a_cloud()).node == "n1"
    assert chosen(replace(queued, wait_ms=2.0), a_candidate("n1"), a_cloud()).node == "here"


def test_a_busy_site_goes_to_the_cloud() -> None:
    assert chosen(a_local(wait_ms=90.0), a_candidate(wait_ms=80.0), a_cloud()).node == "cloud"


def test_a_default_deadline_of_ten_seconds_does_not_hold_requests_in_a_queue() -> None:
    """A tenth of the budget alone would let this wait 900 ms for nothing."""
    assert chosen(a_local(wait_ms=900.0), a_candidate("n1"), left_ms=10_000.0).node == "n1"


def test_a_tight_deadline_narrows_the_band_to_a_tenth_of_it() -> None:
    slow, fast = a_local(service_ms=26.0), a_cloud(link=Link.lan(), service_ms=20.0)
    assert chosen(slow, fast, left_ms=1_000.0).node == "here"
    assert chosen(slow, fast, left_ms=30.0).node == "cloud"


def test_big_bodies_stay_off_thin_links() -> None:
    thin, wide = a_candidate("thin", link=Link.bus()), a_candidate("wide", link=Link.lan(), wait_ms=30.0)
    assert chosen(thin, wide, nbytes=1_000).node == "thin"
    assert chosen(thin, wide, nbytes=1_000_000).node == "wide"


def test_a_dearer_tier_inside_the_deadline_beats_a_cheaper_one_outside() -> None:
    assert chosen(a_local(service_ms=21.0), a_cloud(service_ms=8.0), left_ms=20.0).node == "cloud"


def test_nobody_inside_the_deadline_takes_the_best_all_the_same() -> None:
    decision = chosen(a_local(wait_ms=500.0), a_candidate("n1", wait_ms=300.0), left_ms=50.0)
    assert (decision.node, decision.reason) == ("n1", "no candidate inside the deadline")
    assert not any(c.feasible for c in decision.considered)


def test_an_expired_budget_still_decides() -> None:
    assert chosen(a_local(), a_candidate(), left_ms=-5.0).node == "here"


def test_suspects_are_taken_only_when_nothing_else_is_left() -> None:
    suspect, busy = a_candidate("n1", ready=False), a_candidate("n2", wait_ms=5_000.0)
    assert chosen(suspect, busy, left_ms=100.0).node == "n2"
    decision = chosen(suspect)
    assert (decision.node, decision.reason) == ("n1", "only suspect nodes are left")


@pytest.mark.parametrize("state", ["LOADING", "BUILDING", "WARMING", "DRAINING", "FAILED", "QUARANTINED"])
def test_a_model_that_is_not_ready_is_never_chosen(state: str) -> None:
    decision = chosen(a_candidate(model=a_model_load(state=state)))  # type: ignore[arg-type]
    assert (decision.node, decision.reason) == (None, "no candidates")
    assert [c.why for c in decision.considered] == [f"the model is {state} there"]


def test_equal_nodes_share_the_load() -> None:
    luck, nodes = Random(7), [a_candidate(f"n{i}") for i in range(8)]
    count = Counter(decide(an_ask(), nodes, 0.0, luck).node for _ in range(4000))
    assert len(count) == 8
    assert max(count.values()) < 1.25 * min(count.values())


def test_equally_hopeless_nodes_share_the_load() -> None:
    luck, nodes = Random(7), [a_candidate(f"n{i}") for i in range(4)]
    count = Counter(decide(an_ask(1.0), nodes, 0.0, luck).node for _ in range(2000))
    assert min(count.values()) > 400


def test_a_burst_between_two_reports_spreads_by_speed() -> None:
    """One router, no news: what it sent itself is all it knows, and it is enough to load nodes by their speed."""
    sent, luck, speeds = Dispatches(), Random(3), {"slow": 20.0, "middle": 10.0, "fast": 5.0}
    count: Counter[str] = Counter()
    for _ in range(210):
        nodes = [a_candidate(n, service_ms=ms, own_ms=sent.since(n, 0.0)) for n, ms in speeds.items()]
        node = decide(an_ask(), nodes, 0.0, luck).node
        assert node is not None
        sent.add(node, speeds[node], 0.0)
        count[node] += 1
    assert count["slow"] == pytest.approx(30, abs=12)
    assert count["middle"] == pytest.approx(60, abs=12)
    assert count["fast"] == pytest.approx(120, abs=12)


def test_a_node_that_never_ran_the_model_is_taken_for_the_median_of_the_others() -> None:
    known = [a_candidate(f"n{i}", service_ms=ms) for i, ms in enumerate((2.0, 30.0, 4.0))]
    decision = chosen(*known, a_candidate("new", service_ms=0.0))
    assert [c.estimate.service_ms for c in decision.considered] == [2.0, 30.0, 4.0, 4.0]
    alone = decide(an_ask(), [a_local(service_ms=0.0)], 0.0, Random(1), Policy(service_ms=25.0))
    assert alone.predicted_ms == pytest.approx(25.1)


def test_a_decision_explains_every_candidate_as_it_was() -> None:
    link = Link.lan()
    decision = chosen(
        a_local(wait_ms=500.0),
        a_candidate("near", link=link),
        a_candidate("late", wait_ms=200.0),
        a_candidate("doubted", ready=False),
        a_candidate("loading", model=a_model_load(state="LOADING")),
        a_cloud(link=Link.lan()),
        left_ms=400.0,
    )
    link.sent(10**9, 0.0)
    assert [(c.node, c.why) for c in decision.considered] == [
        ("here", "105.1 ms past the deadline"),
        ("near", "chosen"),
        ("late", "196.9 ms beyond the near-best"),
        ("doubted", "suspect"),
        ("loading", "the model is LOADING there"),
        ("cloud", "a dearer tier"),
    ]
    assert decision.reason == "peer is the cheapest tier near the best"
    assert decision.considered[1].estimate.total_ms == pytest.approx(decision.predicted_ms)
    assert [c.node for c in decision.considered[:2]] == ["here", "near"]
    assert (decision.considered[0].feasible, decision.considered[1].feasible) == (False, True)


def test_of_two_near_the_best_one_is_not_drawn() -> None:
    decision = chosen(a_candidate("n1"), a_candidate("n2"))
    assert sorted(c.why for c in decision.considered) == ["chosen", "not drawn"]


candidates = st.builds(
    lambda make, i, **fields: make(f"n{i}", **fields),
    st.sampled_from([a_local, a_candidate, a_cloud]),
    st.integers(0, 30),
    ready=st.booleans(),
    model=st.builds(
        a_model_load, state=st.sampled_from(["READY", "READY", "READY", "LOADING"]), service_ms=st.floats(0, 200)
    ),
    wait_ms=st.floats(0, 500),
    own_ms=st.floats(0, 100),
    heard_at=st.floats(-2, 0),
)
asks = st.builds(an_ask, st.floats(-10, 20_000), st.integers(0, 10**7))
fields_of_candidates = st.lists(candidates, max_size=12, unique_by=lambda c: c.node)


@property_test
@given(asks, fields_of_candidates, st.integers(0, 2**32))
def test_the_rule(ask: Ask, field: list[Candidate], seed: int) -> None:
    """The promises of decide, restated without its code, on any field of candidates."""
    decision = decide(ask, field, 0.0, Random(seed))
    considered = {c.node: c for c in decision.considered}
    serving = [c for c in field if c.model.state == "READY"]
    pool = [c for c in serving if c.ready] or serving
    assert list(considered) == [c.node for c in field]
    if not pool:
        assert decision.node is None
        return
    totals = {c.node: considered[c.node].estimate.total_ms for c in pool}
    assert decision.node in totals
    assert decision.predicted_ms == pytest.approx(totals[decision.node])
    best = min(totals.values())
    if best > ask.left_ms:
        assert totals[decision.node] == best
        assert decision.reason == "no candidate inside the deadline"
        return
    band = OURS.band_ms(best, ask.left_ms)
    assert 0 <= band <= 0.1 * ask.left_ms
    near = [c for c in pool if totals[c.node] <= min(best + band, ask.left_ms)]
    assert decision.node in [c.node for c in near]
    assert COST[decision.route] == min(COST[c.route] for c in near)
    tier = sorted(totals[c.node] for c in near if c.route == decision.route)
    assert len(tier) == 1 or totals[decision.node] < tier[-1] or tier[-2] == tier[-1]


@property_test
@given(asks, fields_of_candidates, st.integers(0, 2**32))
def test_the_same_seed_decides_the_same(ask: Ask, field: list[Candidate], seed: int) -> None:
    one, other = (decide(ask, field, 0.0, Random(seed)) for _ in range(2))
    assert one == other


def held(*loads: ModelLoad) -> list[tuple[str, ModelLoad]]:
    return [(f"n{i}", load) for i, load in enumerate(loads)]


def test_a_model_nobody_holds_is_not_resolved() -> None:
    assert resolve(ModelRef("resnet"), held(a_model_load("bert")), None) is None
    assert resolve(ModelRef("resnet", "3"), held(a_model_load(version="1")), an_identity(version="2")) is None


def test_this_box_answers_with_its_own_model_whatever_neighbours_hold() -> None:
    others = held(a_model_load(version="9"), *[a_model_load(digest=OTHER_DIGEST)] * 3)
    assert resolve(ModelRef("resnet"), others, an_identity()) == an_identity()
    assert resolve(ModelRef("resnet", "1"), others, an_identity()) == an_identity()
    assert resolve(ModelRef("resnet", "9"), others, an_identity()) == an_identity(version="9")


def test_the_default_version_is_the_highest_number() -> None:
    versions = ["2", "10", "009", "beta", "9" * 5000]
    loads = [a_model_load(version=version) for version in versions]
    assert resolve(ModelRef("resnet"), held(*loads), None) == an_identity(version="9" * 5000)
    assert resolve(ModelRef("resnet"), held(*loads[:4]), None) == an_identity(version="10")
    assert resolve(ModelRef("resnet"), held(loads[3]), None) == an_identity(version="beta")


def test_of_two_digests_the_one_most_nodes_hold() -> None:
    one, other = a_model_load(digest=DIGEST), a_model_load(digest=OTHER_DIGEST)
    assert resolve(ModelRef("resnet"), held(one, other, other), None) == an_identity(digest=OTHER_DIGEST)
    assert resolve(ModelRef("resnet"), held(other, one), None) == an_identity(digest=DIGEST)
    assert resolve(ModelRef("resnet"), [("n1", other), ("n1", other), ("n2", one)], None) == an_identity()


def test_a_version_still_loading_is_not_the_default_while_another_is_ready() -> None:
    loading = a_model_load(version="2", state="LOADING")
    assert resolve(ModelRef("resnet"), held(loading, a_model_load()), None) == an_identity()
    assert resolve(ModelRef("resnet"), held(loading), None) == an_identity(version="2")


@property_test
@given(
    st.lists(
        st.builds(
            a_model_load,
            version=st.sampled_from(["1", "2", "10", "x"]),
            digest=st.sampled_from([DIGEST, OTHER_DIGEST]),
            state=st.sampled_from(["READY", "LOADING"]),
        ),
        max_size=8,
    ),
    st.integers(0, 2**32),
)
def test_resolving_depends_on_no_order(loads: list[ModelLoad], seed: int) -> None:
    views = held(*loads)
    shuffled = list(views)
    Random(seed).shuffle(shuffled)
    found = resolve(ModelRef("resnet"), views, None)
    assert found == resolve(ModelRef("resnet"), shuffled, None)
    assert (found is None) == (not loads)
    if found is not None:
        assert found in [load.identity for load in loads]
