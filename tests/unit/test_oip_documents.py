from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mesh.errors import ProtocolError
from mesh.oip.documents import (
    decode_error,
    decode_model_metadata,
    decode_model_ready,
    decode_server_metadata,
    encode_error,
    encode_model_metadata,
    encode_model_ready,
    encode_server_metadata,
)
from mesh.values import ModelMetadata, TensorSpec

METADATA = ModelMetadata(
    "simple", ("1", "2"), "onnxruntime_onnx", (TensorSpec("X", "FP32", (-1, 16)),), (TensorSpec("Y", "BYTES", ()),)
)


def test_server_metadata() -> None:
    body = encode_server_metadata("inference-mesh", "0.1", ["binary_tensor_data"])
    assert json.loads(body) == {"name": "inference-mesh", "version": "0.1", "extensions": ["binary_tensor_data"]}
    found = decode_server_metadata(body)
    assert (found.name, found.version, found.extensions) == ("inference-mesh", "0.1", ("binary_tensor_data",))


def test_model_metadata() -> None:
    body = encode_model_metadata(METADATA)
    assert json.loads(body) == {
        "name": "simple",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 16]}],
        "outputs": [{"name": "Y", "datatype": "BYTES", "shape": []}],
    }
    assert decode_model_metadata(body) == METADATA


def test_model_metadata_with_parameters_and_of_a_server_that_says_less() -> None:
    full = ModelMetadata("m", (), "", (), (), {"effective_backend": "cpu"})
    assert json.loads(encode_model_metadata(full))["parameters"] == {"effective_backend": "cpu"}
    assert decode_model_metadata(encode_model_metadata(full)).parameters == {"effective_backend": "cpu"}
    assert decode_model_metadata(b'{"name":"m","extra":{}}') == ModelMetadata("m", (), "", (), ())


@pytest.mark.parametrize("ready", [True, False])
def test_model_ready(ready: bool) -> None:
    body = encode_model_ready("m", ready)
    assert json.loads(body) == {"name": "m", "ready": ready}
    assert decode_model_ready(body) is ready


@pytest.mark.parametrize("text", ["no such model", "ä\n\0", "lone \ud800", ""])
def test_error(text: str) -> None:
    body = encode_error(text)
    assert list(json.loads(body)) == ["error"]
    assert decode_error(body) == text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("body", [b"", b"<html>502", b'{"error":1}', b"[" * 100_000, b'"\xff"', b"{}"])
@pytest.mark.parametrize("decode", [decode_server_metadata, decode_model_metadata, decode_model_ready])
def test_nonsense(decode: Callable[[bytes], Any], body: bytes) -> None:
    with pytest.raises(ProtocolError, match="the answer is not"):
        decode(body)
    assert decode_error(body) == ""
