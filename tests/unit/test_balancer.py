"""The rule: cheapest tier near the best, deadlines and errors, shedding, recall.

Not here: the prediction (``test_estimator``), other rules (``test_rules``), which model is meant (``test_resolve``).
"""

from __future__ import annotations

from collections import Counter
from math import inf
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.balancer import COST, OURS, Decision, Policy, decide
from mesh.estimator import Ask, estimate
from mesh.link import LAN, WAN, Link, Prior
from mesh.outlook import SUSPECT_MS, Outlook, Sent
from mesh.values import Route

property_test = settings(deadline=None, max_examples=200, database=None, suppress_health_check=[HealthCheck.too_slow])
NOW = 1000.0
MODEL = "resnet"


class Node(NamedTuple):
    """An idle peer on the LAN, just heard."""

    name: str = "peer"
    route: Route = "peer"
    service_ms: float = 5.0
    wait_ms: float = 0.0
    rtt_ms: float = 1.0
    bytes_per_ms: float = LAN.bytes_per_ms
    sigma_ms: float = 0.0
    penalty: float = 0.0


HERE = Node("here", "local")
PEER = Node()
CLOUD = Node("cloud", "cloud", rtt_ms=WAN.rtt_ms, bytes_per_ms=WAN.bytes_per_ms)


def an_outlook(*nodes: Node) -> Outlook:
    outlook = Outlook(2)
    for node in nodes:
        link = None if node.route == "local" else Link(Prior(node.rtt_ms, node.bytes_per_ms))
        at = outlook.slot(node.name, COST[node.route], link)
        outlook.wire(at, NOW)
        outlook.hear(at, NOW, node.wait_ms, ())
        outlook.told(at, MODEL, node.service_ms, node.service_ms)
        outlook.penalty[at], outlook.sigma[at] = node.penalty, node.sigma_ms
    return outlook


def an_ask(left_ms: float = 10_000.0, nbytes: int = 1024, priority: int = 0, given_ms: float = 0.0) -> Ask:
    return Ask(MODEL, left_ms, given_ms or max(left_ms, 0.0), nbytes, 0, priority)


def chosen(*nodes: Node, left_ms: float = 10_000.0, nbytes: int = 1024, priority: int = 0, seed: int = 1) -> Decision:
    return decide(an_ask(left_ms, nbytes, priority), an_outlook(*nodes), NOW, Random(seed))


def test_nobody_to_ask() -> None:
    for decision in (chosen(), chosen(HERE._replace(service_ms=inf)), chosen(PEER._replace(penalty=inf))):
        assert (decision.slot, decision.node, decision.reason) == (None, None, "no candidates")
        assert (decision.considered, decision.recall_ms, decision.wait_ms) == ([], 0.0, 0.0)


def test_a_single_node_is_taken_whatever_it_needs() -> None:
    decision = chosen(HERE)
    assert (decision.node, decision.reason) == ("here", "local is the cheapest tier near the best")
    assert decision.estimate.total_ms == pytest.approx(5.1)
    assert chosen(CLOUD._replace(wait_ms=1e5), left_ms=10.0).node == "cloud"


def test_idle_everywhere_stays_here() -> None:
    assert chosen(CLOUD, PEER, HERE).node == "here"


def test_without_a_local_copy_the_peer_comes_before_the_cloud() -> None:
    assert chosen(CLOUD._replace(rtt_ms=1.0, service_ms=4.0), PEER).node == "peer"


def test_a_queue_here_that_is_worth_a_hop_goes_to_the_peer() -> None:
    assert chosen(HERE._replace(wait_ms=20.0), PEER, CLOUD).node == "peer"
    assert chosen(HERE._replace(wait_ms=2.0), PEER, CLOUD).node == "here"


def test_a_busy_site_goes_to_the_cloud() -> None:
    assert chosen(HERE._replace(wait_ms=90.0), PEER._replace(wait_ms=80.0), CLOUD).node == "cloud"


def test_a_default_deadline_of_ten_seconds_does_not_hold_requests_in_a_queue() -> None:
    """A share of the time given alone would let this wait for half a second."""
    assert chosen(HERE._replace(wait_ms=400.0), PEER, left_ms=10_000.0).node == "peer"


def test_a_tight_deadline_narrows_the_band() -> None:
    slow, fast = HERE._replace(service_ms=26.0), CLOUD._replace(rtt_ms=1.0, service_ms=20.0)
    assert chosen(slow, fast, left_ms=1_000.0).node == "here"
    assert chosen(slow, fast, left_ms=40.0).node == "cloud"


def test_the_dial_from_fastest_to_cheapest() -> None:
    outlook, ask = (
        an_outlook(HERE._replace(service_ms=26.0), CLOUD._replace(rtt_ms=1.0, service_ms=20.0)),
        an_ask(500.0),
    )

    def at(near_budget: float) -> str | None:
        return decide(ask, outlook, NOW, Random(1), Policy(near_budget=near_budget)).node

    assert [at(share) for share in (0.0, 0.002, 0.05, 1.0)] == ["cloud", "cloud", "here", "here"]


@pytest.mark.parametrize(
    ("best_ms", "given_ms", "band_ms"),
    [(100.0, 400.0, 20.0), (100.0, 1e4, 50.0), (1.0, 1e4, 2.0), (1.0, 10.0, 0.5), (5.0, 0.0, 0.0), (5.0, -9.0, 0.0)],
)
def test_the_band(best_ms: float, given_ms: float, band_ms: float) -> None:
    assert OURS.band_ms(best_ms, given_ms) == pytest.approx(band_ms)


def test_the_band_is_a_share_of_all_the_time_given_not_of_what_is_left() -> None:
    outlook = an_outlook(HERE._replace(service_ms=30.0), CLOUD._replace(rtt_ms=1.0, service_ms=20.0))
    assert decide(an_ask(100.0, given_ms=1000.0), outlook, NOW, Random(1)).node == "here"
    assert decide(an_ask(100.0, given_ms=100.0), outlook, NOW, Random(1)).node == "cloud"


def test_big_bodies_stay_off_thin_links() -> None:
    thin, wide = Node("thin", bytes_per_ms=1_000.0), Node("wide", wait_ms=30.0)
    assert chosen(thin, wide, nbytes=1_000).node == "thin"
    assert chosen(thin, wide, nbytes=1_000_000).node == "wide"


def test_a_dearer_tier_inside_the_deadline_beats_a_cheaper_one_outside() -> None:
    assert chosen(HERE._replace(service_ms=21.0), CLOUD._replace(service_ms=8.0), left_ms=20.0).node == "cloud"


def test_nobody_inside_the_deadline_takes_the_best_all_the_same() -> None:
    decision = chosen(HERE._replace(wait_ms=500.0), PEER._replace(wait_ms=300.0), left_ms=50.0)
    assert (decision.node, decision.reason) == ("peer", "no candidate inside the deadline")
    assert not any(each.feasible for each in decision.considered)
    assert chosen(HERE, PEER, left_ms=-5.0).node == "here"


def test_suspects_are_taken_only_when_nothing_else_is_left() -> None:
    suspect = Node("n1", penalty=SUSPECT_MS)
    assert chosen(suspect, Node("n2", wait_ms=5_000.0), left_ms=100.0).node == "n2"
    decision = chosen(suspect)
    assert (decision.node, decision.reason) == ("n1", "only suspect nodes are left")
    assert decision.estimate.total_ms == pytest.approx(6.02, abs=0.01)
    assert chosen(suspect, priority=16).node == "n1", "that it is suspect is no overload"


@pytest.mark.parametrize("priority", range(18))
def test_only_what_may_be_shed_is_refused(priority: int) -> None:
    """Far too late everywhere: a class that may be shed costs nobody any bytes, and is told when to come back."""
    decision = chosen(HERE._replace(wait_ms=130.0), left_ms=100.0, priority=priority)
    if priority >= OURS.shed_from:
        assert (decision.slot, decision.reason) == (None, "it would be far too late everywhere")
        assert decision.wait_ms == pytest.approx(35.1, abs=0.1)
    else:
        assert (decision.node, decision.reason) == ("here", "no candidate inside the deadline")
    assert chosen(HERE._replace(wait_ms=120.0), left_ms=100.0, priority=priority).node == "here", "a little too late"


def test_nodes_that_are_as_good_as_each_other_share_the_load() -> None:
    luck, outlook = Random(7), an_outlook(*[Node(f"n{i}") for i in range(8)])
    count = Counter(decide(an_ask(), outlook, NOW, luck).node for _ in range(4000))
    assert len(count) == 8
    assert max(count.values()) < 1.3 * min(count.values())


def test_a_burst_between_two_reports_spreads_by_speed() -> None:
    """One router, no news: what it sent itself is all it knows, and it is enough to load nodes by their speed."""
    nodes = [Node("slow", service_ms=20.0), Node("middle", service_ms=10.0), Node("fast", service_ms=5.0)]
    outlook, luck = an_outlook(*nodes), Random(3)
    count: Counter[str] = Counter()
    for _ in range(210):
        slot = decide(an_ask(), outlook, NOW, luck).slot
        assert slot is not None
        outlook.send(slot, Sent(NOW + 0.0005, 0, NOW + 10.0, nodes[slot].service_ms))
        count[nodes[slot].name] += 1
    assert [count[node.name] for node in nodes] == pytest.approx([30, 60, 120], abs=6)


def test_without_some_slots() -> None:
    outlook = an_outlook(HERE, PEER, CLOUD)
    assert decide(an_ask(), outlook, NOW, Random(1), without=[0]).node == "peer"
    assert decide(an_ask(), outlook, NOW, Random(1), without=[0, 1, 1, 0]).node == "cloud"
    assert decide(an_ask(), outlook, NOW, Random(1), without=range(3)).slot is None
    assert decide(an_ask(), outlook, NOW, Random(1)).node == "here", "the outlook itself is not changed"


def test_recall_is_what_the_best_other_needs_from_when_it_is_given_back() -> None:
    decision = chosen(PEER._replace(rtt_ms=8.0), CLOUD, Node("n2", "cloud", 90.0), nbytes=0)
    assert decision.node == "peer"
    assert decision.recall_ms == pytest.approx(10.0 + 5.0 + 4.0)
    assert chosen(HERE, CLOUD, nbytes=0).recall_ms == pytest.approx(15.05)


@pytest.mark.parametrize(
    "others", [[], [CLOUD._replace(penalty=SUSPECT_MS)], [CLOUD._replace(penalty=inf)], [CLOUD._replace(wait_ms=99.0)]],
    ids=["none", "suspect", "out", "busy"],
)  # fmt: skip
def test_without_another_that_is_in_time_nothing_is_recalled(others: list[Node]) -> None:
    assert chosen(HERE, *others, left_ms=100.0).recall_ms == 0.0


def test_a_decision_explains_every_candidate_as_it_was() -> None:
    outlook = an_outlook(
        HERE._replace(wait_ms=500.0), Node("near"), Node("late", wait_ms=200.0), Node("doubted", penalty=SUSPECT_MS),
        Node("gone", penalty=inf), CLOUD._replace(rtt_ms=1.0), Node("twin", service_ms=5.4),
    )  # fmt: skip
    decision = decide(an_ask(400.0), outlook, NOW, Random(1))
    outlook.hear(1, NOW, 1e6, ())
    outlook.bias[:] = 99.0
    assert [(each.node, each.why) for each in decision.considered] == [
        ("here", "105.1 ms past the deadline"),
        ("near", "chosen"),
        ("late", "196.5 ms beyond the near-best"),
        ("doubted", "suspect"),
        ("cloud", "a dearer tier"),
        ("twin", "not the best of its tier"),
    ]
    assert decision.reason == "peer is the cheapest tier near the best"
    assert decision.considered[1].estimate == decision.estimate
    assert decision.estimate.total_ms == pytest.approx(6.02, abs=0.01)


nodes_drawn = st.lists(
    st.builds(
        Node,
        st.just(""),
        st.sampled_from(["local", "peer", "cloud"]),
        st.sampled_from([0.1, 5.0, 6.0, 80.0, inf]),
        st.one_of(st.sampled_from([0.0, 40.0]), st.floats(0, 2_000)),
        st.sampled_from([1.0, 40.0]),
        st.sampled_from([1_000.0, 50_000.0]),
        st.sampled_from([0.0, 5.0, 500.0]),
        st.sampled_from([0.0, 0.0, 0.0, SUSPECT_MS, inf]),
    ),
    max_size=12,
).map(lambda found: [node._replace(name=f"n{at}") for at, node in enumerate(found)])
asks = st.builds(
    an_ask, st.floats(-10, 20_000), st.integers(0, 10**6), st.integers(0, 17), st.sampled_from([0.0, 500.0])
)
without_drawn = st.lists(st.integers(0, 11), max_size=4)


@property_test
@given(asks, nodes_drawn, without_drawn, st.integers(0, 2**32))
def test_the_rule(ask: Ask, nodes: list[Node], without: list[int], seed: int) -> None:
    """The promises of decide, restated without its code, on any field of candidates."""
    outlook, without = an_outlook(*nodes), [slot for slot in without if slot < len(nodes)]
    decision = decide(ask, outlook, NOW, Random(seed), without=without)
    usable = {s for s, node in enumerate(nodes) if node.penalty + node.service_ms < inf and s not in without}
    pool = {slot for slot in usable if nodes[slot].penalty == 0.0} or usable
    assert {each.node for each in decision.considered} == {f"n{slot}" for slot in usable}
    predicted = estimate(outlook, ask, NOW)
    total = {slot: predicted.at(slot).total_ms for slot in usable}
    feasible = {slot for slot in pool if total[slot] + nodes[slot].penalty <= ask.left_ms}
    if decision.slot is None:
        if usable:
            assert ask.priority >= OURS.shed_from
            assert not feasible
            assert decision.wait_ms == pytest.approx(min(total[slot] for slot in pool) - ask.left_ms)
            assert min(total[slot] for slot in pool) > OURS.shed_ratio * ask.left_ms
        return
    assert decision.slot in pool
    assert decision.estimate.total_ms == total[decision.slot]
    if not feasible:
        assert total[decision.slot] == pytest.approx(min(total[slot] for slot in pool))
        assert decision.reason in ("no candidate inside the deadline", "only suspect nodes are left")
        return
    best = min(total[slot] for slot in feasible)
    band = OURS.band_ms(best, ask.given_ms)
    assert decision.slot in feasible
    assert total[decision.slot] <= best + band + 1e-6
    assert not [s for s in feasible if cost(nodes[s]) < cost(nodes[decision.slot]) and total[s] < best - 1e-6]
    same = [total[slot] for slot in feasible if cost(nodes[slot]) == cost(nodes[decision.slot])]
    assert total[decision.slot] <= min(same) + 1e-6, "of its tier the best"
    cheapest = min(pool, key=lambda slot: total[slot])
    if cheapest in feasible:
        near = [slot for slot in feasible if total[slot] <= best + band - 1e-6]
        assert cost(nodes[decision.slot]) == min(cost(nodes[slot]) for slot in [*near, decision.slot])


def cost(node: Node) -> float:
    return COST[node.route]


@property_test
@given(asks, nodes_drawn, st.integers(0, 2**32))
def test_the_same_seed_decides_the_same(ask: Ask, nodes: list[Node], seed: int) -> None:
    one, other = (decide(ask, an_outlook(*nodes), NOW, Random(seed)) for _ in range(2))
    assert (one.slot, one.reason, one.recall_ms, one.wait_ms) == (
        other.slot,
        other.reason,
        other.recall_ms,
        other.wait_ms,
    )
    assert one.considered == other.considered


@property_test
@given(asks, nodes_drawn, st.integers(0, 2**32))
def test_recall_needs_another_in_time(ask: Ask, nodes: list[Node], seed: int) -> None:
    decision = decide(ask, an_outlook(*nodes), NOW, Random(seed))
    others = [each for each in decision.considered if each.node != decision.node]
    needs = [each.estimate.total_ms for each in others if each.why != "suspect"]
    in_time = [ms for ms in needs if ms <= ask.left_ms]
    assert (decision.recall_ms > 0.0) == (decision.slot is not None and bool(in_time))
    assert decision.recall_ms == 0.0 or decision.recall_ms >= min(in_time)
