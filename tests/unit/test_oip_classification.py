"""Triton's classification extension: the best values of an output as texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import InvalidRequest
from mesh.oip.classification import as_classes, classified, values_only
from mesh.oip.datatypes import DATATYPES
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor


def texts(array: Any, wanted: int, labels: tuple[str, ...] = (), datatype: str | None = None) -> tuple[Any, list[str]]:
    tensor = classified(Tensor.from_numpy("Y", np.asarray(array), datatype), wanted, labels)
    assert tensor.datatype == "BYTES"
    return tensor.shape, [text.decode() for text in tensor.elements()]


def test_one_dimension_rows_and_labels() -> None:
    values = np.array([0.1, 0.7, 0.2], np.float32)
    assert texts(values, 2, ("a", "b", "c")) == ((2,), ["0.700000:1:b", "0.200000:2:c"])
    assert texts(values, 2, ("a", "", "c")) == ((2,), ["0.700000:1", "0.200000:2:c"])
    assert texts(values[None], 9, ("a",)) == ((1, 3), ["0.700000:1", "0.200000:2", "0.100000:0:a"])
    rows = np.array([[[3, 1]], [[5, 9]]], np.int32)
    assert texts(rows, 1) == ((2, 1), ["3:0", "9:1"])


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in ("BYTES", "BF16")])
def test_every_datatype(datatype: str) -> None:
    shape, found = texts(np.array([0, 1, 1], DATATYPES[datatype].dtype), 2)
    assert shape == (2,)
    assert [text.split(":")[1] for text in found] == ["1", "2"]


def test_bf16_and_what_is_no_number() -> None:
    assert texts(np.array([1.0, 2.0], np.float32), 1, (), "BF16")[1] == ["2.000000:1"]
    assert [t.split(":")[1] for t in texts(np.array([np.nan, -1, 5], np.float32), 3)[1]] == ["2", "1", "0"]
    with pytest.raises(InvalidRequest, match="texts"):
        texts(np.array([b"a"], dtype=object), 1)


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), wanted=st.integers(1, 40))
def test_they_are_the_highest_in_order(values: list[float], wanted: int) -> None:
    array = np.array(values, np.float32)
    _, found = texts(array, wanted)
    got = [float(array[int(text.split(":")[1])]) for text in found]
    assert got == sorted(map(float, array), reverse=True)[:wanted]


def request(*outputs: RequestedOutput) -> InferRequest:
    return InferRequest("m", "", "", {}, (), outputs, False, None)


def test_values_are_asked_for_and_classes_answered() -> None:
    plain = request(RequestedOutput("Y", True, {}))
    assert values_only(plain) is plain
    asked = request(RequestedOutput("Y", False, {"classification": 1}), RequestedOutput("Z", False, {}))
    sent = values_only(asked)
    assert [(o.name, o.binary, o.parameters) for o in sent.outputs] == [("Y", True, {}), ("Z", False, {})]
    outputs = tuple(Tensor.from_numpy(name, np.array([[1.0, 2.0]], np.float32)) for name in "YZ")
    body = as_classes(encode_response(InferResponse("m", "1", "", {}, outputs), sent), asked, {"Y": ["a", "b"]})
    assert body.header_length is None
    answer = {t.name: t for t in decode_response(body.joined(), None).outputs}
    assert answer["Y"].elements() == [b"2.000000:1:b"]
    assert answer["Z"].numpy().tolist() == [[1.0, 2.0]]
    for wrong in (-1, True, "2", 1.5):
        with pytest.raises(InvalidRequest, match="classification"):
            values_only(request(RequestedOutput("Y", False, {"classification": wrong})))
