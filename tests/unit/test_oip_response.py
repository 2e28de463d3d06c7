from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mesh.errors import InferenceFailed, InvalidRequest, ProtocolError
from mesh.oip.request import InferRequest, RequestedOutput, WireBody
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor

ONES = Tensor.from_numpy("Y", np.ones((1, 4), "<f4"))
TEXTS = Tensor.from_numpy("T", np.array(["a", "äö"]))


def ask(*outputs: RequestedOutput, binary: bool = True) -> InferRequest:
    return InferRequest("m", "", "", {}, (), outputs, binary, None)


def answer(*outputs: Tensor, **fields: Any) -> InferResponse:
    given: dict[str, Any] = {"model": "m", "version": "3", "id": "", "parameters": {}, "outputs": outputs}
    return InferResponse(**(given | fields))


def head(body: WireBody) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(body.joined()[: body.header_length])
    return document


def test_binary_response() -> None:
    for _ in range(2):  # made, then from the cache
        body = encode_response(answer(ONES, TEXTS), ask())
        assert head(body) == {
            "model_name": "m",
            "model_version": "3",
            "outputs": [
                {"name": "Y", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}},
                {"name": "T", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 13}},
            ],
        }
        assert body.parts[1] is ONES.data
        assert body.joined()[body.header_length :] == bytes(ONES.data) + bytes(TEXTS.data)


def test_json_response_has_no_header_length_and_flat_data() -> None:
    body = encode_response(answer(ONES, TEXTS), ask(binary=False))
    assert body.header_length is None
    assert [o["data"] for o in head(body)["outputs"]] == [[1.0] * 4, ["a", "äö"]]


def test_id_and_parameters_are_echoed() -> None:
    body = encode_response(answer(ONES, id="7", parameters={"k": 1}), ask())
    assert (head(body)["id"], head(body)["parameters"]) == ("7", {"k": 1})
    assert "id" not in head(encode_response(answer(ONES), ask()))


def test_outputs_come_in_the_order_and_form_they_were_requested() -> None:
    asked = ask(RequestedOutput("T", False, {}), RequestedOutput("Y", True, {}))
    body = encode_response(answer(ONES, TEXTS), asked)
    first, second = head(body)["outputs"]
    assert (first["name"], first["data"]) == ("T", ["a", "äö"])
    assert second["parameters"] == {"binary_data_size": 16}
    assert body.joined()[body.header_length :] == bytes(ONES.data)
    only = encode_response(answer(ONES, TEXTS), ask(RequestedOutput("T", True, {})))
    assert [o["name"] for o in head(only)["outputs"]] == ["T"]


def test_the_cache_tells_versions_shapes_and_sizes_apart() -> None:
    short, long = (Tensor.from_numpy("T", np.array([t])) for t in ("a", "ab"))
    for _ in range(2):
        sizes = [head(encode_response(answer(t), ask()))["outputs"][0]["parameters"] for t in (short, long)]
        assert sizes == [{"binary_data_size": 5}, {"binary_data_size": 6}]
        shapes = [Tensor("Y", "FP32", s, ONES.data) for s in ((4,), (2, 2))]
        assert [head(encode_response(answer(t), ask()))["outputs"][0]["shape"] for t in shapes] == [[4], [2, 2]]
        assert [head(encode_response(answer(ONES, version=v), ask()))["model_version"] for v in "12"] == ["1", "2"]
        marked = Tensor("Y", "FP32", (4,), ONES.data, {"x": True})
        assert head(encode_response(answer(marked), ask()))["outputs"][0]["parameters"]["x"] is True


def test_an_output_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(InferenceFailed, match="model 'm' answered without 'Z'"):
        encode_response(answer(ONES), ask(RequestedOutput("Z", True, {})))


@pytest.mark.parametrize("binary", [True, False])
def test_an_output_of_another_size_than_its_shape_is_never_sent(binary: bool) -> None:
    with pytest.raises(InferenceFailed, match=r"output 'Y': expected 20 bytes, got 16"):
        encode_response(answer(Tensor("Y", "FP32", (5,), ONES.data)), ask(binary=binary))


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_carry_is_refused_with_advice(datatype: str, value: float) -> None:
    tensor = Tensor.from_value("Y", datatype, (2,), value)
    with pytest.raises(InvalidRequest, match=r"output 'Y' holds NaN or Infinity.*binary_data"):
        encode_response(answer(tensor), ask(binary=False))
    assert encode_response(answer(tensor), ask()).header_length is not None


def test_bytes_that_are_no_text_are_refused_with_advice() -> None:
    tensor = Tensor.from_numpy("Y", np.array([b"\xff"], dtype=object))
    with pytest.raises(InvalidRequest, match=r"output 'Y' holds bytes that are not UTF-8.*binary_data"):
        encode_response(answer(tensor), ask(binary=False))


@pytest.mark.parametrize("binary", [True, False])
def test_decode_reads_what_encode_wrote(binary: bool) -> None:
    sent = answer(ONES, TEXTS, id="9", parameters={"a": 1, "b": "x"})
    body = encode_response(sent, ask(binary=binary))
    assert decode_response(body.joined(), body.header_length) == sent


def test_decode_shares_the_memory_of_the_body() -> None:
    body = encode_response(answer(ONES), ask())
    buffer = bytearray(body.joined())
    array = decode_response(buffer, body.header_length).outputs[0].numpy()
    buffer[-16:] = bytes(16)
    assert array.sum() == 0.0


def test_a_response_without_outputs() -> None:
    body = encode_response(answer(), ask())
    assert decode_response(body.joined(), body.header_length) == answer()


@pytest.mark.parametrize(
    ("body", "header_length"),
    [
        (b"", None),
        (b"<html>", None),
        (b"[]", None),
        (b'{"error":"no"}', None),
        (b'{"model_name":"m"}', None),
        (b'{"model_name":1,"outputs":[]}', None),
        (b'{"model_name":"m","outputs":[{"name":"Y","datatype":"FP32","shape":[2]}]}', None),
        (b'{"model_name":"m","outputs":[{"name":"Y","datatype":"FP32","shape":[2],"data":[1]}]}', None),
        (b'{"model_name":"m","outputs":[]}', 0),
        (b'{"model_name":"m","outputs":[]}', -5),
        (b'{"model_name":"m","outputs":[]}', 5),
        (b'{"model_name":"m","outputs":[]}', 500),
        (b'{"model_name":"m","outputs":[]}x', 31),
    ],
)
def test_decode_of_nonsense(body: bytes, header_length: int | None) -> None:
    with pytest.raises(ProtocolError, match="not an inference response"):
        decode_response(body, header_length)
