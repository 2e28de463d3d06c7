"""The retry budget: refused is free, a death pays for what it took along, the rest stays under a tenth."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh import errors
from mesh.retry import RetryBudget

property_test = settings(deadline=None, max_examples=80, database=None, suppress_health_check=[HealthCheck.too_slow])
TREE = [cls("x") for cls in (*errors.BY_CODE.values(), errors.NodeUnreachable)]
REFUSED = [error for error in TREE if error.refused]
FINAL = [error for error in TREE if not error.retryable]
COUNTED = [error for error in TREE if error.retryable and not error.refused]


def a_busy_budget(requests: int, now: float = 100.0) -> RetryBudget:
    budget = RetryBudget()
    for _ in range(requests):
        budget.note_request(now)
    return budget


def granted(budget: RetryBudget, error: errors.MeshError, times: int, now: float) -> int:
    return sum(budget.may_retry(error, now) for _ in range(times))


@pytest.mark.parametrize("error", FINAL, ids=lambda e: e.code)
def test_what_is_not_retryable_is_never_retried(error: errors.MeshError) -> None:
    budget = a_busy_budget(1000)
    budget.note_lost(100, 100.0)
    assert not budget.may_retry(error, 100.0)


@pytest.mark.parametrize("error", REFUSED, ids=lambda e: type(e).__name__)
def test_refused_never_draws(error: errors.MeshError) -> None:
    budget = a_busy_budget(100)
    assert granted(budget, error, 500, 100.0) == 500
    assert granted(budget, errors.InstanceLost("x"), 500, 100.0) == 10


@pytest.mark.parametrize("error", COUNTED, ids=lambda e: e.code)
def test_other_failures_are_retried_for_a_tenth_of_the_requests(error: errors.MeshError) -> None:
    assert granted(a_busy_budget(200), error, 200, 100.0) == 20


def test_a_quiet_client_may_retry_once_per_window() -> None:
    budget = RetryBudget(window_s=10.0)
    error = errors.InstanceLost("x")
    budget.note_request(5.0)
    assert granted(budget, error, 5, 5.0) == 1
    assert granted(budget, error, 5, 14.0) == 0
    assert granted(budget, error, 5, 15.5) == 1


def test_requests_stop_counting_when_the_window_has_passed() -> None:
    budget = a_busy_budget(1000, now=100.0)
    assert granted(budget, errors.ProtocolError("x"), 1000, 112.0) == 1


def test_a_killed_node_with_a_hundred_in_flight_may_retry_all_hundred() -> None:
    budget = a_busy_budget(100)
    budget.note_lost(100, 100.0, "n1")
    assert granted(budget, errors.NodeLost("x"), 100, 100.0) == 100
    # The bucket is empty; what remains is the ordinary tenth.
    assert granted(budget, errors.NodeLost("x"), 100, 100.0) == 10


def test_a_death_noted_once_per_lost_request_pays_no_more_than_once() -> None:
    budget, asked = RetryBudget(), 0
    for in_flight in range(100, 0, -1):
        budget.note_lost(in_flight, 100.0, "n1")
        asked += budget.may_retry(errors.NodeLost("x"), 100.0)
    assert asked == 100
    assert granted(budget, errors.NodeLost("x"), 50, 100.0) == 1


def test_two_deaths_at_once_each_pay() -> None:
    budget = RetryBudget()
    budget.note_lost(30, 100.0, "n1")
    budget.note_lost(20, 100.0, "n2")
    assert granted(budget, errors.NodeLost("x"), 100, 100.0) == 51


def test_what_died_with_a_node_pays_for_no_other_failure_and_lapses() -> None:
    budget = RetryBudget(window_s=10.0)
    budget.note_lost(100, 100.0, "n1")
    assert granted(budget, errors.Unavailable("x"), 50, 100.0) == 1
    assert granted(budget, errors.NodeLost("x"), 3, 109.9) == 3
    assert granted(budget, errors.NodeLost("x"), 50, 110.1) == 1
    budget.note_lost(2, 111.0, "n1")
    assert granted(budget, errors.NodeLost("x"), 50, 111.0) == 2


def test_a_lapsed_bucket_does_not_hide_the_next_death() -> None:
    budget = RetryBudget(window_s=10.0)
    budget.note_lost(100, 100.0, "n1")
    budget.note_lost(2, 120.0, "n1")
    assert granted(budget, errors.NodeLost("x"), 50, 120.0) == 3


@property_test
@given(st.integers(0, 2**32), st.floats(0.5, 400.0), st.floats(0.05, 1.0))
def test_under_overload_retries_stay_under_a_tenth(seed: int, rate: float, failing: float) -> None:
    """However requests come and fail, retries of any ten seconds stay within the ratio, or the one of the minimum."""
    luck, budget = Random(seed), RetryBudget(ratio=0.10, window_s=10.0)
    now, requests, retries = 1000.0, [], []
    for _ in range(600):
        now += luck.expovariate(rate)
        requests.append(now)
        budget.note_request(now)
        if luck.random() < failing and budget.may_retry(luck.choice(COUNTED), now):
            retries.append(now)
    for end in retries:
        # The window moves in steps of a second, so nine seconds back are covered whole, ten at most.
        tried = sum(end - 9.0 < at <= end for at in retries)
        assert tried <= max(1, 0.10 * sum(end - 10.0 <= at <= end for at in requests) + 1e-9)


@property_test
@given(st.lists(st.tuples(st.sampled_from(["request", "retry", "free"]), st.floats(0.0, 3.0)), max_size=60))
def test_free_retries_change_nothing_for_the_others(story: list[tuple[str, float]]) -> None:
    plain, mixed, now = RetryBudget(), RetryBudget(), 50.0
    for kind, pause in story:
        now += pause
        if kind == "request":
            plain.note_request(now)
            mixed.note_request(now)
        elif kind == "free":
            assert mixed.may_retry(errors.Overloaded("x"), now)
        else:
            error = errors.InstanceLost("x")
            assert plain.may_retry(error, now) == mixed.may_retry(error, now)


@pytest.mark.parametrize("error", TREE, ids=lambda e: e.code)
def test_a_ratio_of_nothing_retries_only_what_was_refused(error: errors.MeshError) -> None:
    budget = RetryBudget(ratio=0.0)
    budget.note_request(100.0)
    budget.note_lost(10, 100.0, "n1")
    assert granted(budget, error, 5, 100.0) == (5 if error.retryable and error.refused else 0)
