"""Hedging by property: the other place keeps its time, and no window sees more second tries than its share."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.estimator import Estimate
from mesh.hedging import LEAST_MS, SHARE, SPAN_S, Hedges, after_ms

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
figures = st.floats(0.0, 1e6)


@property_test
@given(st.builds(Estimate, figures, figures, figures, st.floats(-20.0, 1e6), figures), figures, figures)
def test_what_is_due_leaves_the_other_place_its_time(predicted: Estimate, left_ms: float, other_ms: float) -> None:
    due_ms = after_ms(predicted, left_ms, other_ms)
    if due_ms is not None:
        assert due_ms >= max(LEAST_MS, predicted.total_ms)
        assert other_ms <= left_ms - due_ms


@pytest.mark.parametrize(("left_ms", "due"), [(29.9, False), (30.0, True), (0.0, False), (-5.0, False)])
def test_due_up_to_the_last_moment_from_which_the_other_is_in_time(left_ms: float, due: bool) -> None:
    assert (after_ms(Estimate(0.0, 0.0, 20.0), left_ms, 10.0) is not None) == due


@pytest.mark.parametrize("other_ms", [0.0, inf])
def test_never_due_without_another_place(other_ms: float) -> None:
    assert after_ms(Estimate(0.0, 0.0, 20.0), 1e9, other_ms) is None


@property_test
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20), st.floats(0.0, 3.0)), max_size=30))
def test_never_more_than_its_share_of_any_window(history: list[tuple[int, int, float]]) -> None:
    """The window moves on by tenths: what was spent in nine of them is surely in it."""
    hedges, now = Hedges(), 50.0
    requests: list[tuple[float, int]] = []
    spent: list[float] = []
    for came, wanted, passed in history:
        now += passed
        requests.append((now, came))
        for _ in range(came):
            hedges.note_request(now)
        granted = sum(hedges.may(now) for _ in range(wanted))
        spent += [now] * granted
        if granted:
            asked = sum(count for at, count in requests if at > now - SPAN_S)
            assert sum(at > now - SPAN_S * 0.9 for at in spent) <= max(1, SHARE * asked)
