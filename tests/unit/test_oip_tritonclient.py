"""Against Triton's own client: what it sends is read, and what is answered it reads. No server is needed for either."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from mesh.oip.datatypes import DATATYPES, Array, bf16_to_float32
from mesh.oip.head import place_of
from mesh.oip.request import InferRequest, Limits, decode_request, encode_request
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor

TEXTS = np.array([["a", "äö"], ["", "longer text"]], dtype=object)


def sample(datatype: str) -> Array:
    if datatype == "BYTES":
        return TEXTS
    if datatype == "BF16":
        return np.array([[1.5, -2.0, 0.0]], dtype=ml_dtypes.bfloat16)
    if datatype == "BOOL":
        return np.array([[True, False, True]])
    dtype = DATATYPES[datatype].dtype
    bounds: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[bounds.min, 1, bounds.max]], dtype=dtype)


def an_input(name: str, array: Array, datatype: str, *, binary: bool = True) -> InferInput:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def decoded(*inputs: InferInput, **options: Any) -> InferRequest:
    body, header_length = InferenceServerClient.generate_request_body(list(inputs), **options)
    return decode_request("simple", "", body, header_length, Limits())


def values(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return bf16_to_float32(array) if tensor.datatype == "BF16" else array


def expected(datatype: str) -> Array:
    array = sample(datatype)
    if datatype == "BYTES":
        encoded = [text.encode() for text in array.reshape(-1)]
        array = np.array(encoded, dtype=object).reshape(array.shape)
    if datatype == "BF16":
        array = array.astype("f4")
    return array


WAYS = [(datatype, binary) for datatype in sorted(DATATYPES) for binary in (True, False)]
WAYS.remove(("BF16", False))  # which tritonclient has not


@pytest.mark.parametrize(("datatype", "binary"), WAYS)
def test_its_inputs_are_read(datatype: str, binary: bool) -> None:
    request = decoded(an_input("X", sample(datatype), datatype, binary=binary))
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("X", datatype, sample(datatype).shape)
    np.testing.assert_array_equal(values(tensor), expected(datatype))
    assert request.binary_default is True
    assert request.parameters == {}


def test_its_options_are_read() -> None:
    request = decoded(
        an_input("A", sample("INT32"), "INT32"),
        an_input("B", TEXTS, "BYTES"),
        an_input("C", sample("FP32"), "FP32", binary=False),
        outputs=[InferRequestedOutput("Y", binary_data=True), InferRequestedOutput("Z", binary_data=False)],
        request_id="r1",
        sequence_id="s",
        sequence_start=True,
        priority=2,
        timeout=5000,
        parameters={"custom": "x"},
    )
    assert [t.name for t in request.inputs] == ["A", "B", "C"]
    assert [(o.name, o.binary) for o in request.outputs] == [("Y", True), ("Z", False)]
    assert (request.id, request.priority, request.timeout_us) == ("r1", 2, 5000)
    sequence = {"sequence_id": "s", "sequence_start": True, "sequence_end": False}
    assert request.parameters == sequence | {"priority": 2, "timeout": 5000, "custom": "x"}


def test_classes_it_asks_for_are_left_to_who_answers() -> None:
    request = decoded(an_input("X", sample("INT32"), "INT32"), outputs=[InferRequestedOutput("Y", class_count=2)])
    assert request.outputs[0].parameters == {"classification": 2}


def test_it_names_what_lies_in_shared_memory() -> None:
    shared, output = InferInput("X", [1, 3], "INT32"), InferRequestedOutput("Y")
    shared.set_shared_memory("region", 12, offset=4)
    output.set_shared_memory("region", 12)
    request = decoded(shared, outputs=[output])
    assert place_of(request.inputs[0].parameters, "X") == ("region", 4, 12)
    assert (request.inputs[0].shape, request.inputs[0].nbytes) == ((1, 3), 0)
    assert place_of(request.outputs[0].parameters, "Y") == ("region", 0, 12)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_it_reads_answers(binary: bool) -> None:
    datatypes = sorted(DATATYPES if binary else set(DATATYPES) - {"BF16"})
    outputs = tuple(Tensor.from_numpy(f"Y_{d}", sample(d), d) for d in datatypes)
    asked = [InferRequestedOutput(t.name, binary_data=binary) for t in outputs]
    request = decoded(an_input("X", sample("INT32"), "INT32"), outputs=asked, request_id="r2")
    wire = encode_response(InferResponse("simple", "1", request.id, {}, outputs), request)
    result = InferenceServerClient.parse_response_body(wire.joined(), header_length=wire.header_length)
    head = result.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == ("simple", "1", "r2")
    for datatype in datatypes:
        array = result.as_numpy(f"Y_{datatype}")
        if datatype == "BYTES" and not binary:
            array = np.array([text.encode() for text in array.reshape(-1)], dtype=object).reshape(array.shape)
        np.testing.assert_array_equal(array.astype("f4") if datatype == "BF16" else array, expected(datatype))


def test_it_reads_empty_and_mixed_answers() -> None:
    empty, full = Tensor.from_numpy("E", np.zeros((0, 4), "f4")), Tensor.from_numpy("F", np.ones(2, "f4"))
    asked = [InferRequestedOutput("E"), InferRequestedOutput("F", binary_data=False)]
    request = decoded(an_input("X", sample("INT32"), "INT32"), outputs=asked)
    wire = encode_response(InferResponse("simple", "1", "", {}, (full, empty)), request)
    result = InferenceServerClient.parse_response_body(wire.joined(), header_length=wire.header_length)
    assert result.as_numpy("E").shape == (0, 4)
    assert result.as_numpy("F").tolist() == [1.0, 1.0]


def test_our_binary_body_is_byte_for_byte_what_it_sends_after_the_head() -> None:
    theirs = decoded(an_input("A", sample("FP16"), "FP16"), an_input("B", TEXTS, "BYTES"))
    ours = encode_request(
        InferRequest(
            "m", "", "", {}, tuple(Tensor(t.name, t.datatype, t.shape, t.data) for t in theirs.inputs), (), True, None
        )
    )
    wire = theirs.body()
    assert ours.joined()[ours.header_length :] == wire.joined()[wire.header_length :]
