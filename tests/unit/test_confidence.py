"""How sure a classifier is, read off every type its scores may have, and what is no score at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mesh.confidence import KINDS, judge, labels, unfit
from mesh.errors import ModelRejected
from mesh.oip.tensor import Tensor

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
TYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}


def tensor(values: np.ndarray, datatype: str = "FP64") -> Tensor:
    if datatype == "BF16":
        return Tensor.from_numpy("p", values.astype("<f4"), "BF16")
    return Tensor.from_numpy("p", values.astype(TYPES[datatype]))


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_every_floating_point_type_says_the_same(datatype: str) -> None:
    judged = {kind: judge(tensor(P, datatype), kind, softmax=False) for kind in KINDS}
    entropy = -(0.1 * math.log(0.1) + 0.6 * math.log(0.6) + 0.3 * math.log(0.3))
    assert judged["max"] == pytest.approx(0.6, abs=3e-3)
    assert judged["margin"] == pytest.approx(0.3, abs=3e-3)
    assert judged["entropy"] == pytest.approx(1 - entropy / math.log(3), abs=3e-3)
    assert labels(tensor(P, datatype)).tolist() == [0, 1]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_judged_as_the_probabilities_they_mean(kind: str, datatype: str) -> None:
    logits = tensor(np.log(P) + 5.0, datatype)
    expected = judge(tensor(P), kind, softmax=False)
    found = judge(logits, kind, softmax=True)
    assert found == pytest.approx(expected, abs=2e-2)
    assert labels(logits).tolist() == [0, 1]


@given(arrays(np.float64, (4, 5), elements=st.floats(-1e4, 1e4)), st.sampled_from(KINDS))
def test_confidence_is_a_share_and_that_of_the_least_sure_row(logits: np.ndarray, kind: str) -> None:
    together = judge(tensor(logits), kind, softmax=True)
    alone = [judge(tensor(row[None]), kind, softmax=True) for row in logits]
    assert 0.0 <= together <= 1.0
    assert together == pytest.approx(min(alone), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_certainty_is_one_and_ignorance_the_least(kind: str) -> None:
    certain, ignorant = np.array([[0.0, 1.0, 0.0, 0.0]]), np.full((1, 4), 0.25)
    assert judge(tensor(certain), kind, softmax=False) == pytest.approx(1.0)
    assert judge(tensor(ignorant), kind, softmax=False) == pytest.approx(0.25 if kind == "max" else 0.0)
    assert judge(tensor(np.array([1e5, 0.0]), "FP32"), kind, softmax=True) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_a_number_is_not_sure(kind: str) -> None:
    for bad in ([0.9, math.nan, 0.1], [math.inf, math.inf, 0.0]):
        softmax = math.inf in bad
        assert judge(tensor(np.array([[0.9, 0.05, 0.05], bad])), kind, softmax=softmax) == 0.0


def test_no_rows_are_sure_and_rows_may_have_any_shape() -> None:
    assert judge(tensor(np.zeros((0, 3))), "max", softmax=False) == 1.0
    assert judge(tensor(P[0]), "max", softmax=False) == 0.7
    assert labels(tensor(np.broadcast_to(P, (4, 2, 3)))).tolist() == [0, 1] * 4


def test_what_is_no_score_is_refused_by_name() -> None:
    with pytest.raises(ModelRejected, match=r"output 'p' is INT64, confidence is read off FP16"):
        judge(Tensor.from_numpy("p", np.zeros((1, 3), dtype=np.int64)), "max", softmax=False)
    with pytest.raises(ModelRejected, match=r"output 'p' has 1 classes on its last axis"):
        judge(tensor(np.zeros((3, 1))), "max", softmax=False)
    with pytest.raises(ModelRejected, match=r"output 'p' has 0 classes"):
        labels(tensor(np.array(1.0)))
    with pytest.raises(ModelRejected, match=r"does not hold probabilities: declare softmax"):
        judge(tensor(np.array([[3.0, -1.0]])), "max", softmax=False)
    with pytest.raises(ModelRejected, match=r"cannot be read: .*expected 8 bytes, got 4"):
        judge(Tensor("p", "FP32", (2,), b"\0" * 4), "max", softmax=False)


def test_what_a_model_declares_is_judged_before_it_runs() -> None:
    assert unfit("FP32", (-1, 1000)) == unfit("FP16", (-1, -1)) == unfit("BF16", ()) == ""
    assert unfit("BYTES", (-1, 3)) == "is BYTES, confidence is read off FP16, BF16, FP32, FP64"
    assert unfit("FP32", (-1, 1)) == "has 1 classes on its last axis, confidence needs two"
