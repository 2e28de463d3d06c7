"""What runs cost: curves through what was measured, how they follow what is measured anew, and the slowdown."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.latency import (
    LEARN,
    MARGIN,
    MAX_MARGIN,
    MAX_POINTS,
    MAX_SHAPES,
    OUTLIER,
    STALE,
    Curve,
    Latency,
    Shapes,
    Slowdown,
)

SMALL: Shapes = ((3, 10),)
LARGE: Shapes = ((3, 40),)


def known(*points: tuple[int, float], shapes: Shapes = SMALL) -> Latency:
    latency = Latency()
    latency.measured(shapes, points)
    return latency


@pytest.mark.parametrize(
    ("rows", "ms"),
    [(1, 5.0), (4, 8.0), (2, 6.0), (3, 7.0), (8, 12.0), (6, 10.0), (10, 14.0), (100, 104.0)],
)
def test_a_curve_goes_straight_between_its_points_and_on_beyond_them(rows: int, ms: float) -> None:
    assert Curve([(8, 12.0), (1, 5.0), (4, 8.0)]).at(rows) == pytest.approx(ms)


def test_of_a_single_point_every_row_costs_the_same() -> None:
    curve = Curve([(2, 10.0)])
    assert [curve.at(rows) for rows in (1, 2, 4)] == [5.0, 10.0, 20.0]


def test_noise_does_not_make_large_runs_free() -> None:
    curve = Curve([(1, 5.0), (2, 4.0)])
    assert curve.at(1000) >= 4.0


@given(
    points=st.dictionaries(st.integers(1, 64), st.floats(0.01, 1e4), min_size=1, max_size=8),
    rows=st.integers(1, 1000),
)
def test_a_curve_is_never_negative_and_stays_between_its_neighbours(points: dict[int, float], rows: int) -> None:
    at = Curve(points.items()).at(rows)
    assert at >= 0.0
    below, above = [n for n in points if n <= rows], [n for n in points if n >= rows]
    if below and above:
        two = points[max(below)], points[min(above)]
        assert min(two) * (1 - 1e-9) <= at <= max(two) * (1 + 1e-9)


@pytest.mark.parametrize("rows", [1, 4, 3, 6, 8])
def test_learning_comes_to_what_is_measured(rows: int) -> None:
    curve = Curve([(1, 5.0), (4, 8.0), (8, 12.0)])
    for _ in range(400):
        curve.learn(rows, 20.0)
    assert curve.at(rows) == pytest.approx(20.0, rel=0.01)


def test_one_run_moves_a_curve_by_a_little_and_an_outlier_not_by_more_than_a_slow_one() -> None:
    slow, stuck = Curve([(1, 10.0)]), Curve([(1, 10.0)])
    slow.learn(1, 10.0 * OUTLIER)
    stuck.learn(1, 1e6)
    assert slow.at(1) == stuck.at(1) == pytest.approx(10.0 * (1.0 + LEARN * (OUTLIER - 1.0)))


def test_a_run_between_two_points_moves_the_nearer_one_more() -> None:
    curve = Curve([(1, 10.0), (5, 10.0)])
    curve.learn(2, 20.0)
    assert curve.at(1) == pytest.approx(10.0 * (1.0 + LEARN * 0.75))
    curve.learn(5, 10.0)
    known = curve.at(5)
    curve.learn(2, 20.0)
    assert 1.0 < curve.at(5) / known < 1.0 + LEARN * 0.26


def test_points_that_no_run_came_near_keep_their_form() -> None:
    """Warmed up on a busy box: all points are too high by the same factor, and only single requests come at first."""
    curve = Curve([(1, 30.0), (4, 48.0), (8, 72.0)])
    for _ in range(300):
        curve.learn(1, 10.0)
    assert [curve.at(rows) for rows in (1, 4, 8)] == pytest.approx([10.0, 16.0, 24.0], rel=0.01)
    for _ in range(150):
        curve.learn(8, 60.0)
        curve.learn(1, 10.0)
    assert [curve.at(rows) for rows in (1, 8)] == pytest.approx([10.0, 60.0], rel=0.01)


def test_what_was_learned_long_ago_is_tried_again() -> None:
    curve = Curve([(1, 10.0), (8, 24.0)])
    for _ in range(100):
        curve.learn(8, 500.0)
    assert curve.at(8) > 400.0
    for _ in range(STALE):
        curve.learn(1, 10.0)
    assert curve.at(8) == pytest.approx(24.0, rel=0.01)


def test_larger_runs_than_any_are_remembered_but_not_without_end() -> None:
    curve = Curve([(1, 1.0), (2, 2.0)])
    for rows in range(3, 3 + 2 * MAX_POINTS):
        curve.learn(rows, float(rows) ** 2)
        assert curve.at(rows) == float(rows) ** 2
    assert len(curve._ms) <= MAX_POINTS
    assert curve.at(1) == 1.0


def test_nothing_is_expected_of_the_unknown() -> None:
    latency = Latency()
    assert latency.expected_ms(SMALL, 4) == 0.0
    assert latency.best_rows(SMALL, 8) == 8
    latency.learn(SMALL, 2, 10.0)
    assert latency.expected_ms(SMALL, 2) == 10.0


def test_unseen_shapes_cost_in_proportion_until_they_are_seen() -> None:
    latency = known((1, 5.0), (4, 8.0))
    assert latency.expected_ms(LARGE, 4) == pytest.approx(32.0)
    latency.learn(LARGE, 4, 48.0)
    assert latency.expected_ms(LARGE, 4) == pytest.approx(48.0)
    assert latency.expected_ms(LARGE, 1) == pytest.approx(30.0)  # of the same form
    assert latency.expected_ms(SMALL, 4) == 8.0


def test_the_slow_first_run_of_a_shape_is_soon_forgotten() -> None:
    latency = known((1, 5.0))
    latency.learn(LARGE, 1, 200.0)  # set-up for the shape
    for _ in range(19):
        latency.learn(LARGE, 1, 20.0)
    assert latency.expected_ms(LARGE, 1) == pytest.approx((200.0 + 19 * 20.0) / 20)


def test_the_mean_of_noisy_runs_is_learned() -> None:
    luck = random.Random(1)
    latency = known((1, 5.0))
    for _ in range(2000):
        latency.learn(SMALL, 1, 12.0 * luck.uniform(0.7, 1.3))
    assert latency.expected_ms(SMALL, 1) == pytest.approx(12.0, rel=0.1)


def test_shapes_are_bounded_and_what_the_warm_up_measured_stays() -> None:
    latency = known((1, 5.0))
    for width in range(100, 100 + 2 * MAX_SHAPES):
        latency.learn(((3, width),), 1, 1000.0)
    assert len(latency._curves) == MAX_SHAPES
    assert latency.expected_ms(SMALL, 1) == 5.0
    assert latency.expected_ms(((3, 99 + 2 * MAX_SHAPES),), 1) == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("points", "limit", "best"),
    [
        ([(1, 5.0), (2, 5.5), (4, 6.0), (8, 7.0)], 8, 8),
        ([(1, 5.0), (2, 5.5), (4, 6.0), (8, 7.0)], 5, 5),
        ([(1, 5.0), (2, 5.5), (4, 6.0), (8, 7.0)], 1, 1),
        ([(1, 5.0), (2, 10.0), (4, 20.0), (8, 40.0)], 8, 1),
        ([(1, 5.0), (2, 9.9), (4, 19.8), (8, 39.6)], 8, 1),  # 1 % is not worth the wait
        ([(1, 5.0), (2, 6.0), (4, 12.0), (8, 40.0)], 8, 2),
        ([(1, 5.0), (2, 10.0), (4, 12.0), (8, 24.0)], 8, 4),
    ],
)
def test_more_rows_run_together_only_where_it_pays(points: list[tuple[int, float]], limit: int, best: int) -> None:
    assert known(*points).best_rows(SMALL, limit) == best


def test_whether_it_pays_is_learned_too() -> None:
    latency = known((1, 5.0), (2, 5.5), (4, 6.0), (8, 7.0))
    assert latency.best_rows(SMALL, 8) == 8
    for _ in range(300):
        latency.learn(SMALL, 8, 80.0)
        latency.learn(SMALL, 4, 40.0)
        latency.learn(SMALL, 2, 12.0)
        latency.learn(SMALL, 1, 5.0)
    assert latency.best_rows(SMALL, 8) == 1


def test_the_slowdown_follows_the_device_and_comes_back() -> None:
    slowdown = Slowdown()
    assert slowdown.factor == 1.0
    for _ in range(25):
        slowdown.learn(25.0, 10.0)
    assert slowdown.factor == pytest.approx(2.5, rel=0.02)
    for _ in range(40):
        slowdown.learn(10.0, 10.0)
    assert slowdown.factor == pytest.approx(1.0, rel=0.02)


def test_a_single_hiccup_is_no_slowdown() -> None:
    slowdown = Slowdown()
    slowdown.learn(1e6, 10.0)
    assert slowdown.factor < 1.5


def test_what_was_not_expected_says_nothing_of_the_speed() -> None:
    slowdown = Slowdown()
    slowdown.learn(50.0, 0.0)
    assert slowdown.factor == 1.0


def test_the_margin_is_the_usual_error_within_bounds() -> None:
    luck, slowdown = random.Random(3), Slowdown()
    assert slowdown.margin == MARGIN
    for _ in range(500):
        slowdown.learn(10.0 * luck.choice((0.8, 1.2)), 10.0)
    assert slowdown.margin == pytest.approx(0.2, abs=0.06)
    for _ in range(500):
        slowdown.learn(10.0 * luck.choice((0.01, 10.0)), 10.0)
    assert slowdown.margin == MAX_MARGIN
    for _ in range(500):
        slowdown.learn(10.0, 10.0)
    assert slowdown.margin == MARGIN
