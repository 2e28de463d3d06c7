from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mesh.errors import InvalidRequest
from mesh.oip.datatypes import DATATYPES, bf16_to_float32, datatype_of, float32_to_bf16


def test_the_table_agrees_with_numpy() -> None:
    assert len(DATATYPES) == 14
    for name, (item_bytes, dtype) in DATATYPES.items():
        if name == "BYTES":
            assert item_bytes == 0
        else:
            assert dtype.itemsize == item_bytes


@pytest.mark.parametrize("name", [name for name in DATATYPES if name not in ("BF16", "BYTES")])
def test_every_numpy_type_has_its_name_in_both_byte_orders(name: str) -> None:
    dtype = DATATYPES[name].dtype
    assert datatype_of(dtype) == name
    assert datatype_of(dtype.newbyteorder(">")) == name


def test_texts_and_objects_are_bytes_and_bfloat16_is_known_by_name() -> None:
    assert [datatype_of(np.dtype(t)) for t in ("O", "S3", "U3")] == ["BYTES"] * 3
    assert datatype_of(np.dtype(ml_dtypes.bfloat16)) == "BF16"


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "V4", "i4,i4"])
def test_types_the_protocol_has_no_name_for(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match="no datatype for numpy's"):
        datatype_of(np.dtype(dtype))


def test_every_bfloat16_is_exact_in_float32_and_back() -> None:
    bits = np.arange(1 << 16, dtype="<u2")
    values = bf16_to_float32(bits)
    np.testing.assert_array_equal(values, bits.view(ml_dtypes.bfloat16).astype("f4"))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(float32_to_bf16(values)[number], bits[number])


def test_rounding_to_bfloat16_is_that_of_ml_dtypes() -> None:
    words = np.random.default_rng(7).integers(0, 1 << 32, 200_000, dtype="u4")
    halfway = (np.arange(1 << 16, dtype="u4") << 16) | 0x8000
    edges = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 1, 0xFFFFFFFF], dtype="u4")
    values = np.concatenate([words, halfway, halfway - 1, halfway + 1, edges]).view("f4")
    ours = float32_to_bf16(values)
    number = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # signalling NaNs among the random words
        theirs = values.astype(ml_dtypes.bfloat16).view("u2")
    np.testing.assert_array_equal(ours[number], theirs[number])
    assert np.isnan(bf16_to_float32(ours[~number])).all()
    np.testing.assert_array_equal(ours[~number] >> 15, values[~number].view("u4") >> 31)


def test_bfloat16_keeps_the_shape_of_scalars_and_slices() -> None:
    assert float32_to_bf16(np.float32(1.0)).shape == ()
    assert bf16_to_float32(np.array(0x3F80, "<u2")) == 1.0
    sliced = np.arange(12, dtype="f4").reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(bf16_to_float32(float32_to_bf16(sliced)), sliced)
