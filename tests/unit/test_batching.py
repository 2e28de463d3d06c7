"""The goodput window: which requests run next, which are dropped for them, and that nothing better was overlooked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.batching import MOVE, Cost, Entry, Plan, fill_up, first_feasible, plan

ROUNDING = 1e-9


def affine(fixed_ms: float, row_ms: float) -> Cost:
    return lambda rows: fixed_ms + row_ms * rows


def queue(*left_ms: float, rows: int = 1) -> list[Entry]:
    return [Entry(left, rows) for left in left_ms]


lefts = st.floats(-50.0, 500.0)
entries = st.lists(st.builds(Entry, lefts, st.integers(1, 6)), min_size=1, max_size=40).map(sorted)
limits = st.integers(1, 16)


@st.composite
def rising(draw: st.DrawFn) -> Cost:
    """Any cost that does not fall with more rows."""
    steps = draw(st.lists(st.floats(0.0, 20.0), min_size=300, max_size=300)) if draw(st.booleans()) else [1.0] * 300
    total, costs = draw(st.floats(0.5, 50.0)), [0.0]
    for step in steps:
        costs.append(total)
        total += step
    return lambda rows: costs[rows]


@st.composite
def paying(draw: st.DrawFn) -> Cost:
    """A cost of which a row's share does not rise with more rows, as up to ``best_rows`` it does not."""
    fixed_ms, row_ms, power = draw(st.floats(0.0, 60.0)), draw(st.floats(0.01, 20.0)), draw(st.floats(0.1, 1.0))
    return lambda rows: fixed_ms + row_ms * rows**power


def goodput(chosen: Sequence[Entry], cost: Cost) -> float:
    rows = sum(entry.rows for entry in chosen)
    return rows / cost(rows)


def fits(chosen: Sequence[Entry], limit: int, cost: Cost) -> bool:
    rows = sum(entry.rows for entry in chosen)
    return (len(chosen) == 1 or rows <= limit) and cost(rows) <= min(entry.left_ms for entry in chosen)


def longest(waiting: Sequence[Entry], start: int, limit: int, cost: Cost) -> Sequence[Entry]:
    """The largest run from ``start`` on in which nobody is late; empty where the first would be, alone."""
    best: Sequence[Entry] = ()
    for end in range(start + 1, len(waiting) + 1):
        if not fits(waiting[start:end], limit, cost):
            break
        best = waiting[start:end]
    return best


def greedy_is_in_time(waiting: Sequence[Entry], limit: int, cost: Cost) -> bool:
    """Whether runs as large as their first deadline allows, one after the other, answer all."""
    now = 0.0
    waiting = list(waiting)
    while waiting:
        later = [Entry(entry.left_ms - now, entry.rows) for entry in waiting]
        chosen = longest(later, 0, limit, cost)
        if not chosen:
            return False
        now += cost(sum(entry.rows for entry in chosen))
        del waiting[: len(chosen)]
    return True


def test_a_lone_request_runs() -> None:
    assert plan(queue(100.0), 8, affine(4.0, 1.0)) == Plan(0, 1)


def test_all_that_fits_the_first_deadline_runs_together() -> None:
    assert plan(queue(100.0, 110.0, 120.0), 8, affine(4.0, 1.0)) == Plan(0, 3)
    assert plan(queue(6.0, 110.0, 120.0), 8, affine(4.0, 1.0)) == Plan(0, 2)
    assert plan(queue(100.0, 110.0, 120.0), 2, affine(4.0, 1.0)) == Plan(0, 2)


def test_a_head_that_cannot_be_in_time_is_dropped() -> None:
    assert plan(queue(4.9, 50.0, 60.0), 8, affine(4.0, 1.0)) == Plan(1, 2)


def test_a_tight_head_is_given_up_where_that_answers_more() -> None:
    tight, roomy = [5.0] * 2, [20.0] * 30
    assert plan(queue(*tight, *roomy), 8, affine(4.0, 1.0)) == Plan(2, 8)


def test_a_tight_head_is_served_where_the_others_can_wait_for_it() -> None:
    assert plan(queue(5.0, *[20.0] * 8), 8, affine(4.0, 1.0)) == Plan(0, 1)  # 5 ms, and 12 for the eight behind it


def test_a_window_that_is_hardly_better_is_not_worth_a_request() -> None:
    def nearly_linear(rows: int) -> float:
        return 10.0 * math.pow(rows, 0.99)

    def better_by_a_tenth(rows: int) -> float:
        return 10.0 * math.pow(rows, 0.85)

    assert plan(queue(10.0, *[40.0] * 8), 2, nearly_linear) == Plan(0, 1)  # two rows gain less than 2 %
    assert plan(queue(10.0, *[40.0] * 8), 2, better_by_a_tenth) == Plan(1, 2)


def test_where_none_can_be_in_time_the_last_runs_and_shows_what_a_run_takes() -> None:
    assert plan(queue(1.0, 2.0, 3.0), 8, affine(100.0, 1.0)) == Plan(2, 1)


def test_a_request_larger_than_a_run_may_be_runs_alone() -> None:
    waiting = [Entry(100.0, 20), Entry(100.0, 1)]
    assert plan(waiting, 8, affine(4.0, 1.0)) == Plan(0, 1)
    assert plan(waiting[::-1], 8, affine(4.0, 1.0)) == Plan(0, 1)


def test_a_cost_of_nothing_known_is_no_reason_to_drop() -> None:
    assert plan(queue(1.0, 1.0, 1.0), 8, lambda rows: 0.0 if rows < 2 else 1e-9) == Plan(0, 3)


@given(waiting=entries, limit=limits, cost=rising())
def test_every_plan_is_one_that_can_be_carried_out(waiting: list[Entry], limit: int, cost: Cost) -> None:
    drop, run = plan(waiting, limit, cost)
    assert run >= 1
    assert 0 <= drop <= drop + run <= len(waiting)
    chosen = waiting[drop : drop + run]
    if any(entry.left_ms >= cost(entry.rows) for entry in waiting):
        assert fits(chosen, limit, cost)
    else:
        assert (drop, run) == (len(waiting) - 1, 1)
    assert plan(list(waiting), limit, cost) == (drop, run)


@given(waiting=entries, limit=limits, cost=rising())
def test_nothing_is_dropped_while_all_can_be_in_time(waiting: list[Entry], limit: int, cost: Cost) -> None:
    if greedy_is_in_time(waiting, limit, cost):
        chosen = longest(waiting, 0, limit, cost)
        assert plan(waiting, limit, cost) == Plan(0, len(chosen))


@given(waiting=entries, limit=limits, cost=rising())
def test_who_is_dropped_is_late_or_makes_room_for_more(waiting: list[Entry], limit: int, cost: Cost) -> None:
    drop, run = plan(waiting, limit, cost)
    first = first_feasible(waiting, cost)
    if first < len(waiting):
        assert drop >= first
        from_the_head = goodput(longest(waiting, first, limit, cost), cost)
        chosen = goodput(waiting[drop : drop + run], cost)
        assert chosen >= from_the_head if drop == first else chosen > MOVE * from_the_head * (1.0 - ROUNDING)


@st.composite
def crowded(draw: st.DrawFn) -> tuple[list[Entry], int, Cost]:
    """Single rows whose deadlines are near what runs take, so that each further row counts."""
    cost, limit = draw(paying()), draw(limits)
    sizes = draw(
        st.lists(st.tuples(st.integers(1, limit + 2), st.sampled_from([0.9, 1.0, 1.3])), min_size=1, max_size=60)
    )
    return sorted([Entry(cost(rows) * share, 1) for rows, share in sizes]), limit, cost


@given(crowd=crowded())
@example(crowd=(queue(*[5.0] * 2, *[20.0] * 30), 8, affine(4.0, 1.0)))
def test_no_start_that_was_not_looked_at_is_better(crowd: tuple[list[Entry], int, Cost]) -> None:
    """Only some starts are compared; a scan over all of them finds none that answers more than the 2 % more."""
    waiting, limit, cost = crowd
    first = first_feasible(waiting, cost)
    if first == len(waiting) or greedy_is_in_time(waiting[first:], limit, cost):
        return
    drop, run = plan(waiting, limit, cost)
    windows = [longest(waiting, start, limit, cost) for start in range(first, len(waiting))]
    best = max(goodput(window, cost) for window in windows if window)
    assert goodput(waiting[drop : drop + run], cost) >= best / MOVE * (1.0 - ROUNDING)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (queue(50.0, 50.0, 50.0), 3),
        (queue(50.0, 6.9, 50.0), 1),  # three rows take 7 ms
        (queue(*[50.0] * 20), 6),  # no more than eight rows
        (queue(4.0), 0),
        ([], 0),
    ],
)
def test_others_ride_along_where_nobody_is_late_for_it(others: list[Entry], expected: int) -> None:
    assert fill_up(2, 50.0, others, 8, affine(4.0, 1.0)) == expected


@given(rows=st.integers(1, 8), left=lefts, others=st.lists(st.builds(Entry, lefts, st.integers(1, 6))), cost=rising())
def test_riding_along_makes_nobody_late(
    rows: int, left: float, others: list[Entry], cost: Callable[[int], float]
) -> None:
    count = fill_up(rows, left, others, 16, cost)
    assert count == 0 or fits([Entry(left, rows), *others[:count]], 16, cost)
