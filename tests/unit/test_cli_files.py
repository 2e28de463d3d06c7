"""Inputs of ``mesh infer``: JSON and files become exactly the tensor that was meant, or an error that names them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mesh.cli.files import is_file, tensor_from_file, tensor_from_json
from mesh.errors import InvalidRequest, MeshError
from mesh.oip.tensor import Tensor
from mesh.values import TensorSpec

IMAGE = (1, 3, 32, 48)


def spec(datatype: str = "FP32", *shape: int) -> TensorSpec:
    return TensorSpec("X", datatype, shape or (-1,))


def put(folder: Path, content: bytes) -> Path:
    path = folder / "input"
    path.write_bytes(content)
    return path


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(mode: str, size: tuple[int, int], colour: Any, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("FP32", [[1, 2.5]], [[1.0, 2.5]]),
        ("FP16", 3, 3.0),
        ("INT64", [2**62, -1], [2**62, -1]),
        ("UINT64", [2**63], [2**63]),
        ("UINT8", [0, 255], [0, 255]),
        ("BOOL", [True, 0], [True, False]),
        ("INT32", [], []),
        ("INT32", [2.0], [2]),
        ("BYTES", ["é", ""], ["é".encode(), b""]),
        ("BF16", [1.0, -2.0], [0x3F80, 0xC000]),
    ],
)
def test_json_of_the_declared_datatype(datatype: str, value: Any, expected: Any) -> None:
    tensor = tensor_from_json(spec(datatype), value)
    assert tensor.datatype == datatype
    assert tensor.numpy().tolist() == expected


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT64", [1.5]),
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT32", [2**40]),
        ("UINT64", [2**64]),
        ("BOOL", [2]),
        ("FP32", ["1.5"]),
        ("FP32", [[1], [2, 3]]),
        ("FP32", {"a": 1}),
        ("FP32", None),
        ("FP32", [None]),
        ("BYTES", [1]),
    ],
)
def test_json_that_would_have_to_be_bent_is_refused(datatype: str, value: Any) -> None:
    with pytest.raises(InvalidRequest):
        tensor_from_json(spec(datatype), value)


def test_an_array_in_a_file(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for stored in (array, np.asfortranarray(array), array.astype(">f4")):
        tensor = tensor_from_file(spec(), put(tmp_path, npy(stored)))
        assert tensor.numpy().tolist() == array.tolist()
    texts = tensor_from_file(spec("BYTES"), put(tmp_path, npy(np.array(["a", "bc"]))))
    assert texts.numpy().tolist() == [b"a", b"bc"]


@pytest.mark.parametrize(
    "content",
    [
        npy(np.zeros(3, dtype=np.int64)),
        npy(np.zeros(3, dtype=np.float32))[:-1],
        npy(np.zeros(3, dtype=np.float32))[:30],
        npy(np.zeros(3, dtype=np.float32)).replace(b"(3,)", b"(3_)"),
        npy(np.zeros(1000, dtype=np.float32)).replace(b"(1000,)", b"(9**9,)"),
        b"\x93NUMPY",
    ],
    ids=["datatype", "cut", "cut head", "head", "vast", "magic only"],
)
def test_an_array_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"--input X: .*input"):
        tensor_from_file(spec(), put(tmp_path, content))


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="allow_pickle"):
        tensor_from_file(spec("BYTES"), put(tmp_path, file.getvalue()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_an_image_is_scaled_to_the_declared_size(tmp_path: Path, form: str) -> None:
    path = put(tmp_path, picture("RGB", (100, 50), (255, 255, 255), form))
    first, last = tensor_from_file(spec("FP32", *IMAGE), path), tensor_from_file(spec("FP32", 1, 32, 48, 3), path)
    assert (first.shape, last.shape) == (IMAGE, (1, 32, 48, 3))
    assert first.numpy() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("datatype", "value"), [("UINT8", 51), ("FP32", 0.2), ("FP64", 0.2), ("INT32", 51)])
def test_pixels_are_scaled_for_floats_only(tmp_path: Path, datatype: str, value: float) -> None:
    path = put(tmp_path, picture("L", (32, 32), 51))
    for shape in ((1, 1, 32, 32), (1, 32, 32, 3)):
        assert tensor_from_file(spec(datatype, *shape), path).numpy() == pytest.approx(value)


def test_an_image_for_a_bf16_input(tmp_path: Path) -> None:
    tensor = tensor_from_file(spec("BF16", 1, 1, 8, 8), put(tmp_path, picture("L", (8, 8), 255)))
    assert set(tensor.numpy().reshape(-1).tolist()) == {0x3F80}


def test_free_sizes_are_those_of_the_image_in_multiples_of_32(tmp_path: Path) -> None:
    path = put(tmp_path, picture("RGBA", (100, 10), (1, 2, 3, 4)))
    assert tensor_from_file(spec("FP32", -1, 3, -1, -1), path).shape == (1, 3, 32, 96)


@pytest.mark.parametrize(
    ("declared", "content"),
    [
        (spec("FP32", *IMAGE), b"\x89PNG and then nothing"),
        (spec("FP32", *IMAGE), picture("L", (8, 8), 0)[:40]),
        (spec("FP32", 1, 7, 8, 9), picture("L", (8, 8), 0)),
        (spec("FP32", 1, 8), picture("L", (8, 8), 0)),
        (spec("FP32"), b"plain text"),
        (spec("UINT8", 4, 4), b"three"),
    ],
    ids=["no image", "cut", "no channels", "two dimensions", "text", "size"],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, declared: TensorSpec, content: bytes) -> None:
    with pytest.raises(MeshError, match="--input X: "):
        tensor_from_file(declared, put(tmp_path, content))


def test_other_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    path = put(tmp_path, b"\x00\xff any")
    assert tensor_from_file(spec("BYTES", -1, 1), path).numpy().tolist() == [[b"\x00\xff any"]]
    raw: Tensor = tensor_from_file(spec("UINT8", 1, -1), path)
    assert (raw.shape, bytes(raw.data)) == ((1, 6), b"\x00\xff any")
    assert tensor_from_file(spec("UINT8", 2, 3), path).shape == (2, 3)


def test_what_no_file_could_be_called_is_none() -> None:
    assert not is_file("[" + "1," * 5_000 + "1]")
    assert not is_file("a\x00b")
    assert not is_file("")
    assert not is_file("/")
