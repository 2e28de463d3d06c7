"""The threshold from which a small model answers alone: where it settles, what moves it and what must not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from mesh.calibration import LEAST, Calibration, lower_bound


def compare(calibration: Calibration, confidence: float, count: int, *, agreed: bool = True) -> None:
    """Answers of one confidence, all of them compared."""
    for _ in range(count):
        sure = calibration.sure(confidence)
        calibration.answered(sure=sure)
        calibration.compared(confidence, agreed=agreed, sure=sure)


@dataclass
class Settled:
    threshold: float
    agreement: float
    """The true one of the answers that are sure now."""
    unsure: float
    moves: int
    estimate: float


def settle(seed: int, *, target: float, audit: float, first: float, answers: int = 12_000) -> Settled:
    """A small model that is right the oftener the surer it is: of its answers with confidence c, 1 / (1 + exp(3.5 - 10
    c)) agree. Only what a door would compare is."""
    luck = np.random.default_rng(seed)
    confidence = luck.beta(3.0, 1.2, size=answers)
    truth = 1.0 / (1.0 + np.exp(3.5 - 10.0 * confidence))
    agreed, drawn = luck.random(answers) < truth, luck.random(answers) < audit
    calibration, moves = Calibration(first, target, audit), 0
    for at in range(answers):
        sure, before = calibration.sure(confidence[at]), calibration.threshold
        calibration.answered(sure=sure)
        if not sure or drawn[at]:
            calibration.compared(float(confidence[at]), agreed=bool(agreed[at]), sure=sure)
        moves += calibration.threshold != before
    above = confidence >= calibration.threshold
    assert calibration.agreement is not None
    return Settled(calibration.threshold, float(truth[above].mean()), 1 - above.mean(), moves, calibration.agreement)


@pytest.mark.parametrize("first", [0.2, 0.9], ids=["begun too low", "begun too high"])
@pytest.mark.parametrize(("target", "least"), [(0.95, 0.084), (0.98, 0.244)])
def test_the_target_is_reached_wherever_it_begins_and_not_by_always_asking(
    target: float, least: float, first: float
) -> None:
    """``least`` is the share of unsure answers of whoever knew the truth."""
    settled = [settle(seed, target=target, audit=0.1, first=first) for seed in range(12)]
    assert sum(s.agreement >= target for s in settled) >= 11
    assert min(s.agreement for s in settled) > target - 0.01
    assert sum(s.unsure for s in settled) / len(settled) < least + 0.15
    assert max(s.unsure for s in settled) < least + 0.3
    assert max(s.moves for s in settled) < 25
    assert all(abs(s.estimate - s.agreement) < 0.02 for s in settled)


def test_audits_stand_for_the_answers_that_were_not_audited() -> None:
    calibration = Calibration(0.5, None, 0.1)
    for number in range(4000):
        sure = number % 2 == 0  # half are sure and always right, half are not and always wrong
        calibration.answered(sure=sure)
        if not sure or number % 20 == 0:
            calibration.compared(0.9 if sure else 0.1, agreed=sure, sure=sure)
    assert calibration.agreement == 1.0
    calibration.threshold = 0.0
    assert calibration.agreement == pytest.approx(0.5, abs=0.03)  # 1 of 11 comparisons was right


def test_audits_that_were_dropped_are_stood_for_too() -> None:
    calibration = Calibration(0.5, None, 0.1)
    for number in range(8000):
        sure = number % 2 == 0
        calibration.answered(sure=sure)
        if not sure or number % 80 == 0:  # one of forty, in place of one of ten
            calibration.compared(0.9 if sure else 0.1, agreed=sure, sure=sure)
    calibration.threshold = 0.0
    assert calibration.agreement == pytest.approx(0.5, abs=0.05)


def test_nothing_is_concluded_from_too_few() -> None:
    assert Calibration(0.8, 0.5, 1.0).agreement is None
    calibration = Calibration(0.8, 0.5, 1.0)
    compare(calibration, 0.9, int(LEAST) - 1, agreed=False)
    assert (calibration.threshold, calibration.agreement) == (0.8, 0.0)
    compare(calibration, 0.9, 20, agreed=False)
    assert calibration.threshold > 0.8


def test_without_a_target_nothing_moves_it() -> None:
    calibration = Calibration(0.8, None, 1.0)
    compare(calibration, 0.9, 500, agreed=False)
    compare(calibration, 0.1, 500)
    assert (calibration.threshold, calibration.agreement) == (0.8, 0.0)


def test_what_was_always_right_lowers_it_to_what_was_seen() -> None:
    calibration = Calibration(0.8, 0.9, 1.0)
    compare(calibration, 0.42, 200)
    assert calibration.threshold <= 0.42
    compare(calibration, 0.3, 200, agreed=False)
    assert 0.3 < calibration.threshold <= 0.42


def test_a_target_out_of_reach_makes_nothing_sure_but_certainty() -> None:
    calibration = Calibration(0.2, 0.99, 1.0)
    for _ in range(60):
        for confidence in (0.3, 0.6, 0.9):
            compare(calibration, confidence, 5)
            compare(calibration, confidence, 2, agreed=False)
    assert calibration.threshold > 0.9
    assert not calibration.sure(0.9)


def test_a_threshold_that_is_good_enough_stays_through_a_mishap() -> None:
    calibration = Calibration(0.5, 0.9, 1.0)
    compare(calibration, 0.6, 300)
    compare(calibration, 0.4, 300, agreed=False)
    settled = calibration.threshold
    assert 0.4 < settled <= 0.6
    compare(calibration, 0.6, 12, agreed=False)
    assert calibration.threshold == settled
    compare(calibration, 0.6, 100, agreed=False)
    assert calibration.threshold > 0.6


def test_a_change_of_the_world_is_noticed_within_the_horizon() -> None:
    calibration = Calibration(0.5, 0.9, 1.0)
    compare(calibration, 0.6, 5000)
    assert calibration.sure(0.6)
    for number in range(3000):
        compare(calibration, 0.6, 1, agreed=number % 4 > 0)
    assert not calibration.sure(0.6)


def test_another_larger_model_begins_anew() -> None:
    calibration = Calibration(0.8, 0.9, 1.0)
    compare(calibration, 0.42, 200)
    threshold = calibration.threshold
    calibration.forget()
    assert (calibration.threshold, calibration.agreement) == (threshold, None)


@pytest.mark.parametrize("confidence", [-1.0, 0.0, 0.29, 1.0, 2.0])
def test_any_confidence_has_a_place(confidence: float) -> None:
    calibration = Calibration(0.0, 0.9, 1.0)
    compare(calibration, confidence, 30)
    assert calibration.agreement == 1.0


@pytest.mark.parametrize(
    ("right", "of", "bound"),
    [(0, 50, 0.0), (25, 50, 0.3664451), (49, 50, 0.8950456), (50, 50, 0.9286524), (990, 1000, 0.9816905)],
)
def test_the_bound_is_wilsons(right: int, of: int, bound: float) -> None:
    """The figures are those of SciPy's ``binomtest(right, of).proportion_ci(0.95, "wilson")``."""
    assert lower_bound(np.array([right / of]), np.array([of]))[0] == pytest.approx(bound, abs=2e-5)


def test_nothing_seen_proves_nothing() -> None:
    assert lower_bound(np.array([1.0]), np.array([0.0]))[0] < 1e-6
