"""Ejection: errors in a row and nothing else, longer each time, one trial at a time, half of the peers at most."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.ejection import ERRORS, FIRST_S, HEALTHY_S, LONGEST_S, MOST, TRIAL_S, Ejection

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
PEERS = 8


def fails(ejection: Ejection, node: str, now: float, times: int = ERRORS) -> None:
    for _ in range(times):
        ejection.sent(node, now)
        ejection.failed(node, now)


def is_out(ejection: Ejection, node: str, now: float, peers: int = PEERS) -> bool:
    return node in ejection.ejected(now, peers)


def length_s(ejection: Ejection, node: str, now: float) -> float:
    """How long the node, just ejected, is left alone, to half a second."""
    steps = 0
    while is_out(ejection, node, now + steps * 0.5):
        steps += 1
        assert steps < 1000
    return steps * 0.5


def test_so_many_errors_in_a_row_eject_and_one_less_does_not() -> None:
    ejection = Ejection()
    fails(ejection, "a", 1.0, ERRORS - 1)
    assert not is_out(ejection, "a", 1.0)
    ejection.failed("a", 1.0)
    assert ejection.ejected(1.0, PEERS) == {"a"}


def test_an_answer_between_them_begins_the_count_anew() -> None:
    ejection = Ejection()
    for now in range(20):
        fails(ejection, "a", now, ERRORS - 1)
        ejection.succeeded("a")
    assert not is_out(ejection, "a", 20.0)


def test_refusals_and_missed_deadlines_neither_count_nor_interrupt() -> None:
    ejection = Ejection()
    for _ in range(100):
        ejection.neither("a")
    assert not is_out(ejection, "a", 1.0)
    for _ in range(ERRORS):
        ejection.failed("a", 1.0)
        ejection.neither("a")
    assert is_out(ejection, "a", 1.0)


def test_errors_that_were_under_way_do_not_eject_again() -> None:
    ejection = Ejection()
    fails(ejection, "a", 1.0)
    for _ in range(100):
        ejection.failed("a", 1.5)
    assert length_s(ejection, "a", 1.0) == FIRST_S


def test_each_failed_trial_doubles_it_up_to_the_longest_for_ever() -> None:
    ejection, now = Ejection(), 1.0
    lengths: list[float] = []
    fails(ejection, "a", now)
    for _ in range(1100):  # 2.0 ** 1024 is no float
        lengths.append(length_s(ejection, "a", now) if len(lengths) < 8 else LONGEST_S)
        now += lengths[-1]
        fails(ejection, "a", now, 1)
    assert lengths[:8] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert length_s(ejection, "a", now) == LONGEST_S


def test_one_trial_at_a_time_is_let_through() -> None:
    ejection = Ejection()
    fails(ejection, "a", 1.0)
    half_open = 1.0 + FIRST_S
    assert not is_out(ejection, "a", half_open)
    ejection.sent("a", half_open)
    assert is_out(ejection, "a", half_open)
    assert is_out(ejection, "a", half_open + TRIAL_S / 2)
    ejection.neither("a")
    assert not is_out(ejection, "a", half_open + TRIAL_S / 2)


def test_a_trial_of_which_nothing_is_heard_does_not_last_for_ever() -> None:
    ejection = Ejection()
    fails(ejection, "a", 1.0)
    ejection.sent("a", 3.0)
    assert not is_out(ejection, "a", 3.0 + TRIAL_S)


def test_a_trial_that_succeeds_brings_it_back_at_once() -> None:
    ejection = Ejection()
    fails(ejection, "a", 1.0)
    ejection.sent("a", 3.0)
    ejection.succeeded("a")
    for now in (3.0, 3.1, 100.0):
        ejection.sent("a", now)
        assert not is_out(ejection, "a", now)


@pytest.mark.parametrize(
    ("healthy_s", "expected_s"), [(0.0, 8.0), (HEALTHY_S, 4.0), (2 * HEALTHY_S, 2.0), (100 * HEALTHY_S, 2.0)]
)
def test_health_takes_the_doublings_back_one_by_one(healthy_s: float, expected_s: float) -> None:
    ejection = Ejection()
    fails(ejection, "a", 0.0)
    fails(ejection, "a", 2.0, 1)  # the trial
    ejection.sent("a", 6.0)
    ejection.succeeded("a")
    fails(ejection, "a", 6.0 + healthy_s)
    assert length_s(ejection, "a", 6.0 + healthy_s) == expected_s


def test_being_ejected_is_no_health() -> None:
    ejection = Ejection()
    fails(ejection, "a", 0.0)
    fails(ejection, "a", 1000.0, 1)  # nobody asked for so long
    assert length_s(ejection, "a", 1000.0) == 2 * FIRST_S


@pytest.mark.parametrize(("peers", "most"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_at_most_half_of_the_peers_and_the_oldest_come_back_first(peers: int, most: int) -> None:
    ejection = Ejection()
    nodes = [f"n{i}" for i in range(peers)]
    for at, node in enumerate(nodes):
        fails(ejection, node, 1.0 + at * 0.1)
    assert ejection.ejected(1.9, peers) == set(nodes[peers - most :])


def test_the_oldest_comes_back_first_though_it_has_the_longest_to_go() -> None:
    ejection = Ejection()
    fails(ejection, "old", 0.0)
    fails(ejection, "old", 2.0, 1)
    fails(ejection, "old", 6.0, 1)  # until 14
    fails(ejection, "young", 7.0)  # until 9
    assert ejection.ejected(8.0, 2) == {"young"}
    assert ejection.ejected(10.0, 2) == {"old"}


def test_who_comes_back_early_is_tried_by_one_request_too() -> None:
    ejection = Ejection()
    for at, node in enumerate("abcd"):
        fails(ejection, node, 1.0 + at * 0.1)
    assert ejection.ejected(1.9, 4) == {"c", "d"}
    ejection.sent("a", 1.9)
    assert ejection.ejected(1.9, 4) == {"a", "d"}
    ejection.sent("b", 1.9)
    assert ejection.ejected(1.9, 4) == {"a", "b"}
    ejection.succeeded("b")
    assert not is_out(ejection, "b", 1.9, 4)


def test_failing_before_the_time_was_over_repeats_it_and_does_not_double_it() -> None:
    """Or an outage of a second, in which all are tried again and again, would leave half of them alone for a minute."""
    ejection = Ejection()
    fails(ejection, "a", 1.0)
    fails(ejection, "b", 1.0)
    for step in range(50):
        node = next(node for node in "ab" if not is_out(ejection, node, 1.0 + step * 0.01, 2))
        fails(ejection, node, 1.0 + step * 0.01, 1)
    assert length_s(ejection, "a", 1.5) <= FIRST_S
    assert length_s(ejection, "b", 1.5) <= FIRST_S


def test_nothing_is_kept_of_those_that_work_or_are_gone() -> None:
    ejection = Ejection()
    for number in range(1000):
        node = f"n{number}"
        fails(ejection, node, 0.0, 1 + number % ERRORS)
        if number % 2:
            ejection.forget(node)
        else:
            ejection.succeeded(node)
    ejection.ejected(1000.0, PEERS)
    assert not ejection._trouble
    assert ejection.ejected(1000.0, PEERS) is ejection.ejected(1001.0, PEERS)


steps = st.tuples(
    st.sampled_from(["ask", "fail", "answer", "neither", "forget", "wait"]),
    st.sampled_from("abcdef"),
    st.floats(0.0, 20.0),
)


@property_test
@given(st.lists(steps, max_size=120), st.integers(0, 12))
def test_whatever_happens(history: list[tuple[str, str, float]], peers: int) -> None:
    """Against a model that counts errors in a row: who is ejected failed, and who failed is left alone."""
    ejection, now = Ejection(), 0.0
    row: dict[str, int] = {}
    ejected_at: dict[str, float] = {}
    for what, node, value in history:
        if what == "wait":
            now += value
        elif what == "ask":
            ejection.sent(node, now)
        elif what == "fail":
            ejection.failed(node, now)
            row[node] = row.get(node, 0) + 1
            if row[node] == ERRORS:
                ejected_at[node] = now
        elif what == "neither":
            ejection.neither(node)
        else:
            row.pop(node, None)
            ejected_at.pop(node, None)
            ejection.succeeded(node) if what == "answer" else ejection.forget(node)
        out = ejection.ejected(now, peers)
        assert len(out) <= MOST * peers
        assert out <= set(ejected_at)
        assert ejection.ejected(now, peers) == out
        alone = {node for node, since in ejected_at.items() if now < since + FIRST_S}
        assert alone <= ejection.ejected(now, 2 * len("abcdef"))
        assert not ejection.ejected(now + LONGEST_S + TRIAL_S, 100)


@property_test
@given(st.integers(1, 12), st.integers(1, 300), st.randoms(use_true_random=False))
def test_where_everybody_fails_somebody_is_always_asked(peers: int, rounds: int, luck: object) -> None:
    ejection, now = Ejection(), 0.0
    nodes = [f"n{i}" for i in range(peers)]
    for _ in range(rounds):
        out = ejection.ejected(now, peers)
        free = [node for node in nodes if node not in out]
        assert 2 * len(free) >= peers
        node = luck.choice(free)  # type: ignore[attr-defined]
        ejection.sent(node, now)
        ejection.failed(node, now)
        now += 0.05
    for node in nodes:  # all work again: a trial each, and none is left alone for longer than it must
        ejection.succeeded(node)
    assert not ejection.ejected(now, peers)
