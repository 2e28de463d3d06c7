from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest

from mesh.errors import InvalidRequest
from mesh.oip.tensor import Tensor, check_elements, pack_elements


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def test_numpy_shares_the_memory_and_cannot_write_to_it() -> None:
    body = bytearray(range(24))
    array = Tensor("x", "INT32", (2, 3), memoryview(body)).numpy()
    body[0:4] = struct.pack("<i", 77)
    assert array[0, 0] == 77
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_numpy_takes_any_alignment() -> None:
    raw = b"x" + np.arange(3, dtype="<f8").tobytes()
    np.testing.assert_array_equal(Tensor("x", "FP64", (3,), memoryview(raw)[1:]).numpy(), [0.0, 1.0, 2.0])


def test_numpy_of_nothing_and_of_one() -> None:
    assert Tensor("x", "FP32", (0, 4), b"").numpy().shape == (0, 4)
    assert Tensor("x", "BYTES", (2, 0), b"").numpy().shape == (2, 0)
    assert Tensor("x", "INT8", (), b"\x05").numpy() == 5


def test_numpy_refuses_data_that_is_not_the_shape() -> None:
    with pytest.raises(InvalidRequest, match="tensor 'x': expected 8 bytes, got 4"):
        Tensor("x", "FP32", (2,), bytes(4)).numpy()
    with pytest.raises(InvalidRequest, match="invalid datatype 'FP8'"):
        Tensor("x", "FP8", (2,), bytes(2)).numpy()


def test_from_numpy_shares_contiguous_memory_only() -> None:
    array = np.arange(6, dtype="<i2").reshape(2, 3)
    tensor = Tensor.from_numpy("x", array)
    assert (tensor.datatype, tensor.shape, tensor.nbytes) == ("INT16", (2, 3), 12)
    array[0, 0] = 9
    assert tensor.numpy()[0, 0] == 9
    for other in (array.T, array[:, ::2], array.astype(">i2"), np.asfortranarray(array)):
        np.testing.assert_array_equal(Tensor.from_numpy("x", other).numpy(), other)
    assert bytes(Tensor.from_numpy("x", np.array(258, ">u2")).data) == b"\x02\x01"


def test_from_numpy_makes_bytes_of_texts() -> None:
    for array in (
        np.array([["ä", b"b"], [bytearray(b""), "d"]], dtype=object),
        np.array([["ä", "b"], ["", "d"]]),
        np.array([["ä".encode(), b"b"], [b"", b"d"]]),
    ):
        tensor = Tensor.from_numpy("x", array)
        assert (tensor.datatype, tensor.shape, tensor.data) == ("BYTES", (2, 2), packed("ä".encode(), b"b", b"", b"d"))
        assert tensor.numpy().tolist() == [["ä".encode(), b"b"], [b"", b"d"]]


def test_from_numpy_takes_bfloat16_in_three_forms() -> None:
    exact = np.array([1.0, -2.5], "f4")
    forms = {
        "raw": Tensor.from_numpy("x", np.array([0x3F80, 0xC020], "u2"), "BF16"),
        "float32": Tensor.from_numpy("x", exact, "BF16"),
        "ml_dtypes": Tensor.from_numpy("x", exact.astype(ml_dtypes.bfloat16)),
    }
    for form, tensor in forms.items():
        assert (tensor.datatype, bytes(tensor.data)) == ("BF16", b"\x80\x3f\x20\xc0"), form
        assert tensor.numpy().dtype == np.dtype("<u2")


def test_from_numpy_refuses_other_types_than_asked_for() -> None:
    with pytest.raises(InvalidRequest, match="got numpy's float32, expected FP16"):
        Tensor.from_numpy("x", np.zeros(2, "f4"), "FP16")
    with pytest.raises(InvalidRequest, match="expected BF16"):
        Tensor.from_numpy("x", np.zeros(2, "f8"), "BF16")
    with pytest.raises(InvalidRequest, match="must be bytes or str, got int"):
        Tensor.from_numpy("x", np.array([1, "a"], dtype=object))
    with pytest.raises(InvalidRequest, match="no UTF-8 form"):
        Tensor.from_numpy("x", np.array(["\ud800"], dtype=object))


def test_from_value() -> None:
    assert Tensor.from_value("x", "INT8", (2, 2), 3.0).numpy().tolist() == [[3, 3], [3, 3]]
    assert bytes(Tensor.from_value("x", "BF16", (1,), 1.0).data) == b"\x80\x3f"
    assert Tensor.from_value("x", "BOOL", (), 1.0).numpy().dtype == np.dtype(bool)
    with pytest.raises(InvalidRequest, match="BYTES cannot hold the number"):
        Tensor.from_value("x", "BYTES", (1,), 1.0)


@pytest.mark.parametrize(
    "elements",
    [[], [b""], [b"a", b"bc"], [b"abc"] * 100, [b""] * 100, [b"a" * 300, b""]],
    ids=["none", "empty", "two", "uniform", "all empty", "long and empty"],
)
def test_elements_walk_what_was_packed(elements: list[bytes]) -> None:
    data = pack_elements(elements, "x")
    assert data == packed(*elements)
    check_elements(data, len(elements), "x")
    assert Tensor("x", "BYTES", (len(elements),), data).elements() == elements
    for wrong in {len(elements) - 1, len(elements) + 1} - {-1}:
        with pytest.raises(InvalidRequest):
            check_elements(data, wrong, "x")


@pytest.mark.parametrize(
    ("data", "count", "text"),
    [
        (b"", 1, "expected 1 string elements, got 0 bytes"),
        (packed(b"abc")[:-1], 1, "incomplete string at element 0: expected 3 bytes, got 2"),
        (packed(b"a", b"b") + b"\0\0\0", 2, "got 3 bytes after the last"),
        (packed(b"abcdefgh", b"")[:-2], 2, "expected 2 string elements, got 1"),
        (b"\xff\xff\xff\xff" * 2, 2, "incomplete string at element 0: expected 4294967295 bytes, got 4"),
        (packed(b"a"), 0, "expected 0 string elements, got 5 bytes after the last"),
        (packed(b"abcd", b"abcd")[:8] * 2, 10**15, "too few for their lengths"),
    ],
)
def test_elements_that_are_not_there(data: bytes, count: int, text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^input 'x': .*{text}"):
        check_elements(data, count, "input 'x'")
