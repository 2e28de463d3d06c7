"""What a router learns of a node from its errors of prediction."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.residual import CLIP, FADE_S, LEARN, LOWEST_MS, PEAK_S, Residual


def learned(error_ms: float, times: int = 200, now: float = 100.0) -> Residual:
    residual = Residual()
    for _ in range(times):
        residual.learn(1000.0 + error_ms, 1000.0, 1e6, now)
    return residual


def test_nothing_is_known_at_first() -> None:
    residual = Residual()
    assert (residual.bias_ms(100.0), residual.sigma_ms(100.0), residual.peak_ms(100.0)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("error_ms", "bias_ms"), [(40.0, 40.0), (-15.0, -15.0), (-400.0, LOWEST_MS)])
def test_a_steady_error_becomes_the_bias_but_no_node_is_believed_to_be_much_faster(
    error_ms: float, bias_ms: float
) -> None:
    residual = learned(error_ms)
    assert residual.bias_ms(100.0) == pytest.approx(bias_ms, rel=0.001)
    assert residual.sigma_ms(100.0) == pytest.approx(abs(error_ms), rel=0.001)


def test_one_error_counts_a_twentieth_and_at_most_twice_what_was_given() -> None:
    residual = Residual()
    residual.learn(300.0, 100.0, 1000.0, 1.0)
    assert residual.bias_ms(1.0) == residual.sigma_ms(1.0) == pytest.approx(200.0 * LEARN)
    hung = Residual()
    hung.learn(1e9, 0.0, 50.0, 1.0)
    assert hung.bias_ms(1.0) == hung.sigma_ms(1.0) == pytest.approx(CLIP * 50.0 * LEARN)


def test_a_node_that_was_slow_is_tried_again() -> None:
    """The mean error and the spread fade, else a node that nobody asks would stay infeasible for ever."""
    residual = learned(300.0)
    for seconds in (1.0, FADE_S, 10 * FADE_S):
        left = exp(-seconds / FADE_S)
        assert residual.bias_ms(100.0 + seconds) == pytest.approx(300.0 * left, rel=0.001)
        assert residual.sigma_ms(100.0 + seconds) == pytest.approx(300.0 * left, rel=0.001)
    residual.learn(1000.0, 1000.0, 1e6, 100.0 + 10 * FADE_S)
    assert residual.sigma_ms(100.0 + 10 * FADE_S) < 0.1, "learning goes on from the faded value"


def test_a_peak_is_believed_at_once_and_fades() -> None:
    residual = Residual()
    residual.learn(10.0, 10.0, 100.0, 0.0)
    residual.learn(90.0, 10.0, 100.0, 1.0)
    assert residual.peak_ms(1.0) == 90.0
    assert residual.peak_ms(1.0 + PEAK_S) == pytest.approx(90.0 * exp(-1.0))
    residual.learn(10.0, 10.0, 100.0, 1.0 + PEAK_S)
    assert residual.peak_ms(1.0 + PEAK_S) == pytest.approx(90.0 * exp(-1.0) + 10.0 * (1.0 - exp(-1.0)))


@given(
    st.lists(
        st.tuples(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e8), st.floats(-1, 1e3)), min_size=1, max_size=20
    )
)
def test_no_history_leaves_the_bounds(history: list[tuple[float, float, float, float]]) -> None:
    residual, now, most = Residual(), 0.0, 0.0
    for seen_ms, predicted_ms, given_ms, pause in history:
        now, most = now + pause, max(most, CLIP * given_ms)
        residual.learn(seen_ms, predicted_ms, given_ms, now)
        assert LOWEST_MS <= residual.bias_ms(now) <= most
        assert 0.0 <= residual.sigma_ms(now) <= 1e9
        assert 0.0 <= residual.peak_ms(now) <= 1e9
