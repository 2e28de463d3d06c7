"""The rules that ``router.policy`` names: whom they choose, and what they learn.

Not here: our own rule's reasons (``test_balancer``), the rivals beside the simulator's (``test_rules_simulated``).
"""

from __future__ import annotations

from collections import Counter
from math import inf
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.balancer import COST
from mesh.estimator import Ask, estimate
from mesh.link import LAN, Link, Prior
from mesh.outlook import SUSPECT_MS, Outlook, Sent
from mesh.prequal import Dials
from mesh.rules import MAX_SENT, RULES, UNKNOWN_MS, Kind, LocalOnly, Peak, PeakEwma, PrequalNet, Rule, Seen

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
NOW = 100.0
MODEL = "resnet"
KINDS: tuple[Kind, ...] = ("answer", "error", "late", "refusal")
RIVALS = sorted(set(RULES) - {"ours"})


def an_outlook(*service_ms: float, rtt_ms: float = 1.0) -> Outlook:
    """This very process in slot 0 and idle peers behind it, just heard, each with its service time."""
    outlook = Outlook(4)
    for slot, service in enumerate(service_ms):
        link = Link(Prior(rtt_ms, LAN.bytes_per_ms)) if slot else None
        assert outlook.slot(f"n{slot}", COST["peer" if slot else "local"], link) == slot
        outlook.wire(slot, NOW)
        outlook.hear(slot, NOW, 0.0, ())
        outlook.told(slot, MODEL, service, service)
        outlook.penalty[slot] = 0.0
    return outlook


def an_ask(left_ms: float = 1000.0, model: str = MODEL) -> Ask:
    return Ask(model, left_ms, 1000.0, 1024)


def chosen(rule: Rule, outlook: Outlook, without: tuple[int, ...] = (), now: float = NOW, seed: int = 1) -> int | None:
    return rule.choose(an_ask(), outlook, now, Random(seed), without).slot


def seen(took_ms: float, kind: Kind = "answer", network_ms: float = 1.0) -> Seen:
    return Seen(took_ms, 0.0, network_ms, kind)


def holding(outlook: Outlook, slot: int, count: int) -> None:
    """Requests of our own that are there."""
    for _ in range(count):
        outlook.send(slot, Sent(NOW, 0, NOW + 1.0, 5.0))


Slot = tuple[float, float, bool]
slots = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, SUSPECT_MS, inf]), st.sampled_from([2.0, 30.0, inf]), st.booleans()),
    max_size=12,
)


@property_test
@given(st.sampled_from(sorted(RULES)), slots, st.integers(0, 2**32), st.booleans())
def test_no_rule_takes_what_cannot_be_asked(name: str, drawn: list[Slot], seed: int, here: bool) -> None:
    """Many decisions with answers between them; suspect nodes only where nothing else is left."""
    outlook, luck, rule = an_outlook(), Random(seed), RULES[name]()
    for slot, (penalty, service, _) in enumerate(drawn):
        outlook.slot(f"n{slot}", 0.0, None if here and slot == 0 else Link())
        outlook.penalty[slot] = penalty
        outlook.told(slot, MODEL, service, 0.0)
        outlook.hear(slot, NOW - luck.choice([0.0, 60.0]), 0.0, ())
    excluded = tuple(slot for slot, (_, _, without) in enumerate(drawn) if without)
    usable = {s for s, (penalty, service, out) in enumerate(drawn) if penalty + service < inf and not out}
    sure = {slot for slot in usable if drawn[slot][0] == 0.0}
    held_here = bool(here and drawn and drawn[0][0] + drawn[0][1] < inf)
    for turn in range(8):
        now, ask = NOW + turn * 0.4, an_ask(luck.choice([-5.0, 20.0, 1000.0]))
        decision = rule.choose(ask, outlook, now, luck, excluded)
        if name == "local-only" and held_here:
            assert decision.slot == (0 if 0 in usable else None)
        else:
            assert (decision.slot is None) == (not usable)
            assert decision.slot is None or decision.slot in (sure or usable)
        assert decision.node == (None if decision.slot is None else f"n{decision.slot}")
        assert {each.node for each in decision.considered} == {f"n{slot}" for slot in usable}
        if decision.slot is not None:
            kind = luck.choice(KINDS)
            rule.answered(decision.slot, ask, seen(luck.random() * 50.0, kind), now)


@pytest.mark.parametrize("name", sorted(RULES))
def test_nowhere_to_go(name: str) -> None:
    for outlook in (Outlook(), an_outlook(inf, inf)):
        decision = RULES[name]().choose(an_ask(), outlook, NOW, Random(1), ())
        assert (decision.slot, decision.reason, decision.considered) == (None, "no candidates", [])
    assert chosen(RULES[name](), an_outlook(5.0, 5.0), without=(0, 1, 1)) is None


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_decision_says_what_is_predicted_of_its_slot(name: str) -> None:
    outlook, ask = an_outlook(5.0, 7.0, 9.0), an_ask()
    outlook.penalty[2] = SUSPECT_MS
    decision = RULES[name]().choose(ask, outlook, NOW, Random(1), ())
    assert decision.slot is not None
    assert decision.estimate == estimate(outlook, ask, NOW).at(decision.slot)
    why = {each.node: each.why for each in decision.considered}
    assert (why[f"n{decision.slot}"], why["n2"], len(why)) == ("chosen", "suspect", 3)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_always_asked_and_call_nothing_back(name: str) -> None:
    rule = RULES[name]()
    assert rule.at_once_ms == 0.0
    assert rule.choose(an_ask(), an_outlook(5.0, 5.0), NOW, Random(1), ()).recall_ms == 0.0


def test_ours_looks_at_queues() -> None:
    outlook = an_outlook(5.0, 5.0)
    assert chosen(RULES["ours"](), outlook) == 0
    outlook.hear(0, NOW, 500.0, ())
    assert chosen(RULES["ours"](), outlook) == 1
    assert chosen(RULES["local-only"](), outlook) == 0


def test_local_only_goes_elsewhere_only_with_what_is_not_here() -> None:
    assert chosen(LocalOnly(), an_outlook(900.0, 5.0, 5.0)) == 0
    assert chosen(LocalOnly(), an_outlook(900.0, 5.0, 5.0), without=(0,)) is None
    assert chosen(LocalOnly(), an_outlook(inf, inf, 5.0, 5.0)) == 2
    assert chosen(LocalOnly(), an_outlook(inf, inf, 5.0, 5.0), without=(2,)) == 3
    draining = an_outlook(5.0, 5.0)
    draining.penalty[0] = SUSPECT_MS
    assert chosen(LocalOnly(), draining) == 0


def test_a_peak_is_believed_at_once_and_fades() -> None:
    peak = Peak("n1", 0.0)
    peak.observe(80.0, 0.0, 3.0)
    peak.observe(20.0, 0.0, 3.0)
    assert peak.cost_ms == 80.0
    assert peak.load_ms(1, 3.0, 3.0) == pytest.approx(2 * 80.0 * 0.36788, rel=1e-4)


def test_peak_ewma_tries_everybody_first_and_then_takes_the_quickest() -> None:
    outlook, rule, took = an_outlook(5.0, 5.0, 5.0), PeakEwma(), {0: 40.0, 1: 10.0, 2: 30.0}
    met = []
    for _ in took:
        slot = chosen(rule, outlook)
        assert slot is not None
        met.append(slot)
        rule.answered(slot, an_ask(), seen(took[slot]), NOW)
    assert sorted(met) == [0, 1, 2]
    assert chosen(rule, outlook) == 1
    holding(outlook, 1, 3)
    assert chosen(rule, outlook) == 2


def test_peak_ewma_passes_over_a_node_that_holds_a_request_and_never_answered() -> None:
    outlook, rule = an_outlook(5.0, 5.0), PeakEwma()
    assert {chosen(rule, outlook, seed=seed) for seed in range(20)} == {0, 1}
    rule.answered(1, an_ask(), seen(400.0), NOW)
    holding(outlook, 0, 1)
    assert chosen(rule, outlook) == 1
    assert Peak("n1", NOW).load_ms(2, NOW, 3.0) == UNKNOWN_MS + 2


@pytest.mark.parametrize(("kind", "counted_ms"), [("answer", 3.0), ("error", 2000.0), ("late", 1000.0)])
def test_what_an_outcome_counts_as(kind: Kind, counted_ms: float) -> None:
    assert seen(3.0, kind).counted_ms(given_ms=1000.0) == counted_ms
    assert seen(9e3, kind).counted_ms(given_ms=1000.0) == 9e3


@pytest.mark.parametrize("kind", ["error", "late", "refusal"])
def test_who_fails_fast_attracts_nobody(kind: Kind) -> None:
    outlook, rule = an_outlook(5.0, 5.0), PeakEwma()
    for slot, outcome in ((0, seen(1.0, kind)), (1, seen(300.0))):
        assert chosen(rule, outlook, without=(1 - slot,)) == slot
        rule.answered(slot, an_ask(), outcome, NOW)
    assert chosen(rule, outlook) == 1


@pytest.mark.parametrize("name", ["peak-ewma", "prequal-net"])
def test_the_next_node_in_a_slot_is_not_taken_for_the_one_before(name: str) -> None:
    outlook, rule, asks = an_outlook(5.0, 5.0), RULES[name](), [an_ask(500.0 + turn) for turn in range(20)]
    for ask in asks:
        assert rule.choose(ask, outlook, NOW, Random(1), (0,)).slot == 1
        rule.answered(1, ask, seen(900.0), NOW)
    for ask in asks:
        assert rule.choose(ask, outlook, NOW, Random(1), (1,)).slot == 0
        rule.answered(0, ask, seen(50.0), NOW)
    assert Counter(chosen(rule, outlook, seed=seed) for seed in range(20)).most_common(1)[0][0] == 0
    outlook.forget("n1")
    assert outlook.slot("n9", COST["peer"], Link()) == 1
    outlook.told(1, MODEL, 5.0, 5.0)
    outlook.penalty[1] = 0.0
    outlook.wire(1, NOW)
    assert Counter(chosen(rule, outlook, seed=seed, now=NOW + 2.0) for seed in range(20))[1] > 0


def test_prequal_learns_latencies_without_the_network_and_adds_the_predicted_one() -> None:
    outlook, rule = an_outlook(50.0, 50.0, rtt_ms=20.0), PrequalNet(Dials(probes=4.0, remove=0.0, share=1.0))
    chosen(rule, outlook)
    assert {probe.slot for probe in rule.pool.probes} == {0, 1}
    assert chosen(rule, outlook) == 0
    for turn in range(5):
        ask = an_ask(500.0 + turn)
        assert rule.choose(ask, outlook, NOW, Random(turn), (0,)).slot == 1
        rule.answered(1, ask, seen(45.0, network_ms=20.0), NOW)
    chosen(rule, outlook)
    assert chosen(rule, outlook) == 1, "25 ms there and 20 ms of network are less than 50 ms here"


def test_prequal_goes_by_the_reported_number_in_flight() -> None:
    outlook, rule = an_outlook(5.0, 5.0, 5.0), PrequalNet(Dials(probes=3.0, remove=0.0, quantile=0.4, share=1.0))
    outlook.reported_in_flight[:3] = 0.0, 9.0, 1.0
    holding(outlook, 0, 4)
    for _ in range(3):
        chosen(rule, outlook)
    assert {probe.slot: probe.in_flight for probe in rule.pool.probes} == {0: 4.0, 1: 9.0, 2: 1.0}
    assert chosen(rule, outlook) == 2, "it has the fewest, and is the only cold one"


def test_prequal_forgets_requests_that_are_never_answered() -> None:
    outlook, rule = an_outlook(5.0), PrequalNet()
    asks = [an_ask(float(turn)) for turn in range(MAX_SENT + 2)]
    for ask in asks:
        rule._note(0, ask, outlook)
    assert len(rule._sent) == MAX_SENT
    rule.answered(0, asks[0], seen(5.0), NOW)
    assert rule._answers[0].by_model == {}
    rule.answered(0, asks[-1], seen(5.0), NOW)
    assert list(rule._answers[0].by_model[MODEL]) == [(0.0, 4.0)]
