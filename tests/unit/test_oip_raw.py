"""Bodies that are nothing but the value of a model's one input."""

from __future__ import annotations

import numpy as np
import pytest

from mesh.errors import InvalidRequest
from mesh.oip.raw import raw_request
from mesh.values import ModelMetadata, ModelRef, TensorSpec

REF = ModelRef("m", "1")


def model(*inputs: TensorSpec) -> ModelMetadata:
    return ModelMetadata("m", ("1",), "", inputs, ())


@pytest.mark.parametrize(
    ("shape", "count", "wanted"),
    [
        ((-1, 16), 16, (1, 16)),
        ((2, 3), 6, (2, 3)),
        ((-1, -1), 5, (1, 5)),
        ((-1, 3, -1), 12, (1, 3, 4)),
        ((-1,), 7, (7,)),
        ((-1,), 1, (1,)),
        ((), 1, ()),
        ((4, -1), 8, (4, 2)),
    ],
)
def test_the_body_is_one_row(shape: tuple[int, ...], count: int, wanted: tuple[int, ...]) -> None:
    values = np.arange(count, dtype=np.float32)
    request = raw_request(REF, model(TensorSpec("X", "FP32", shape)), values.tobytes())
    (tensor,) = request.inputs
    assert (request.model, request.version, request.binary_default) == ("m", "1", True)
    assert (tensor.name, tensor.shape) == ("X", wanted)
    assert tensor.numpy().ravel().tolist() == values.tolist()


def test_bytes_are_one_element() -> None:
    for shape in ((-1,), (1,), (-1, 1), ()):
        request = raw_request(REF, model(TensorSpec("X", "BYTES", shape)), b"a \xff jpeg", binary=False)
        assert request.inputs[0].elements() == [b"a \xff jpeg"]
        assert not request.binary_default
    with pytest.raises(InvalidRequest):
        raw_request(REF, model(TensorSpec("X", "BYTES", (-1, 2))), b"x")


@pytest.mark.parametrize(
    ("inputs", "nbytes", "text"),
    [
        ((), 4, "one input"),
        ((TensorSpec("X", "FP32", (1,)), TensorSpec("Y", "FP32", (1,))), 4, "one input"),
        ((TensorSpec("X", "FP32", (-1, 16)),), 63, "no elements of FP32"),
        ((TensorSpec("X", "FP32", (-1, 16)),), 128, "32 elements"),
        ((TensorSpec("X", "FP32", (-1, 16)),), 0, "0 elements"),
        ((TensorSpec("X", "FP32", (-1, 3, -1)),), 16, "a multiple of 3"),
        ((TensorSpec("X", "FP32", (-1, -1, -1)),), 16, "more than one free dimension"),
    ],
)
def test_what_fits_no_shape_is_refused(inputs: tuple[TensorSpec, ...], nbytes: int, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        raw_request(REF, model(*inputs), bytes(nbytes))
