"""Raw tensors as numpy arrays and back, bit for bit, without copying where the bytes allow it.

Not here: checking against a signature (``backend``), running (``onnx_backend``).
"""

from __future__ import annotations

import ctypes
import struct
from math import prod
from typing import Any

import numpy as np

from hardware.backend import ITEM_BYTES, RawTensor, TensorInfo
from hardware.errors import InvalidInput, RunFailed

FROM_ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(uint8)": "UINT8",
    "tensor(int16)": "INT16",
    "tensor(uint16)": "UINT16",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(int32)": "INT32",
    "tensor(uint32)": "UINT32",
    "tensor(float)": "FP32",
    "tensor(int64)": "INT64",
    "tensor(uint64)": "UINT64",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""OIP datatype of an ONNX type; types that are missing have none."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "UINT8": np.dtype("<u1"),
    "INT16": np.dtype("<i2"),
    "UINT16": np.dtype("<u2"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has none: the bits are carried
    "INT32": np.dtype("<i4"),
    "UINT32": np.dtype("<u4"),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "UINT64": np.dtype("<u8"),
    "FP64": np.dtype("<f8"),
}
_LENGTH = struct.Struct("<I")


def from_raw(tensor: RawTensor) -> np.ndarray[Any, Any]:
    """View the tensor's bytes as an array; copies only BYTES, pieces, and data not aligned to its own elements.

    The size must have been checked. Raises ``InvalidInput`` for BYTES that are not what ``shape`` says, or not UTF-8.
    """
    if tensor.datatype == "BYTES":
        strings = _decode_bytes(tensor)
        return np.array(strings, dtype=object).reshape(tensor.shape)
    array: np.ndarray[Any, Any] = np.ndarray(tensor.shape, _DTYPES[tensor.datatype], tensor.whole)
    return array if array.flags.aligned else array.copy()


def to_raw(info: TensorInfo, array: Any) -> RawTensor:
    """``info`` names the tensor; the result shares the memory of ``array``."""
    if not isinstance(array, np.ndarray):
        raise RunFailed(f"output '{info.name}' is not a tensor")
    if info.datatype == "BYTES":
        return RawTensor(info.name, "BYTES", array.shape, _encode_bytes(array))
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return RawTensor(info.name, info.datatype, array.shape, array.data.cast("B") if array.size else b"")


def from_address(name: str, datatype: str, shape: tuple[int, ...], address: int) -> RawTensor:
    """Copy a tensor numpy has no type for out of the runtime's memory."""
    nbytes = prod(shape) * ITEM_BYTES[datatype]
    return RawTensor(name, datatype, shape, ctypes.string_at(address, nbytes) if nbytes else b"")


def _decode_bytes(tensor: RawTensor) -> list[str]:
    data = memoryview(tensor.whole)
    count, at, end = prod(tensor.shape), 0, data.nbytes
    if count * 4 > end:
        raise InvalidInput(f"input '{tensor.name}' holds fewer than {count} strings")
    strings = []
    for _ in range(count):
        if at + 4 > end:
            raise InvalidInput(f"input '{tensor.name}' holds fewer than {count} strings")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if length > end - at:
            raise InvalidInput(f"a string of input '{tensor.name}' is longer than its data")
        try:
            strings.append(str(data[at : at + length], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidInput(f"a string of input '{tensor.name}' is not UTF-8") from None
        at += length
    if at != end:
        raise InvalidInput(f"input '{tensor.name}' has {end - at} bytes after its last string")
    return strings


def _encode_bytes(array: np.ndarray[Any, Any]) -> bytes:
    parts = []
    for item in array.reshape(-1):
        encoded = item.encode() if isinstance(item, str) else bytes(item)
        parts.append(_LENGTH.pack(len(encoded)))
        parts.append(encoded)
    return b"".join(parts)
