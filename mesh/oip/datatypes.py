"""The datatypes of the Open Inference Protocol: their sizes, their numpy types, and bfloat16, which numpy lacks.

Source: the OIP specification, "Tensor Data Types", and Triton's BF16. Not here: tensors, JSON.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mesh.errors import InvalidRequest

Array = np.ndarray[Any, Any]


class Datatype(NamedTuple):
    """``item_bytes`` is 0 for BYTES, whose elements carry their own length. ``dtype`` is little-endian."""

    item_bytes: int
    dtype: np.dtype[Any]


DATATYPES: dict[str, Datatype] = {
    "BOOL": Datatype(1, np.dtype("?")),
    "UINT8": Datatype(1, np.dtype("<u1")),
    "UINT16": Datatype(2, np.dtype("<u2")),
    "UINT32": Datatype(4, np.dtype("<u4")),
    "UINT64": Datatype(8, np.dtype("<u8")),
    "INT8": Datatype(1, np.dtype("<i1")),
    "INT16": Datatype(2, np.dtype("<i2")),
    "INT32": Datatype(4, np.dtype("<i4")),
    "INT64": Datatype(8, np.dtype("<i8")),
    "FP16": Datatype(2, np.dtype("<f2")),
    "FP32": Datatype(4, np.dtype("<f4")),
    "FP64": Datatype(8, np.dtype("<f8")),
    "BF16": Datatype(2, np.dtype("<u2")),
    "BYTES": Datatype(0, np.dtype(object)),
}
"""Every datatype by its OIP name. BF16 travels in numpy as the raw bits, in ``uint16``."""

_BY_DTYPE = {datatype.dtype: name for name, datatype in DATATYPES.items() if name not in ("BF16", "BYTES")}

_BF16_QUIET = np.uint32(0x0040)
"""The bit that makes a bfloat16 NaN quiet, and that keeps it a NaN whatever was cut off its payload."""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """OIP name of a numpy type, of any byte order; texts and objects are BYTES. Raises ``InvalidRequest`` for the rest.

    ``ml_dtypes.bfloat16`` is known by its name, so that it need not be installed.
    """
    if dtype.kind in "OSUT":
        return "BYTES"
    if dtype.name == "bfloat16":
        return "BF16"
    name = _BY_DTYPE.get(dtype.newbyteorder("<"))
    if name is None:
        raise InvalidRequest(f"the protocol has no datatype for numpy's {dtype.name}")
    return name


def bf16_to_float32(array: Array) -> Array:
    """Exact ``float32`` values of raw bfloat16 bits (``uint16``, any shape)."""
    return np.asarray(array.astype("<u4") << np.uint32(16)).view("<f4")


def float32_to_bf16(array: Array) -> Array:
    """Raw bfloat16 bits of ``float32`` values (any shape), rounded to nearest even; NaN stays NaN with its sign."""
    bits = np.asarray(array, dtype="<f4", order="C").view("<u4")
    high = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (high & np.uint32(1))) >> np.uint32(16)
    return np.asarray(np.where(np.isnan(array), high | _BF16_QUIET, rounded), dtype="<u2")
