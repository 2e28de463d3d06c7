"""Raw tensors as numpy arrays and back, bit for bit, without copying where the bytes allow it.

Not here: checking against a signature (``backend``), running (``onnx_backend``).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
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

    The size must have been checked. BYTES become ``str``. Raises ``InvalidInput`` for BYTES that are not what ``shape``
    says, or not UTF-8.
    """
    if tensor.datatype == "BYTES":
        return _objects(_decoded(tensor), tensor.shape)
    array: np.ndarray[Any, Any] = np.ndarray(tensor.shape, _DTYPES[tensor.datatype], tensor.whole)
    return array if array.flags.aligned else array.copy()


def owned(tensor: RawTensor) -> np.ndarray[Any, Any]:
    """As :func:`from_raw`, with memory of its own; BYTES stay ``bytes``, which need not be text."""
    return _objects(_strings(tensor), tensor.shape) if tensor.datatype == "BYTES" else from_raw(tensor).copy()


def is_of(array: np.ndarray[Any, Any], datatype: str) -> bool:
    """Whether an array's elements are what the protocol's datatype is in numpy."""
    if datatype != "BYTES":
        return bool(array.dtype == _DTYPES[datatype])
    return array.dtype.kind in "SU" or (
        array.dtype.kind == "O" and all(isinstance(item, (bytes, str)) for item in array.flat)
    )


def _objects(items: Sequence[object], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


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


def _decoded(tensor: RawTensor) -> list[str]:
    try:
        return [str(item, "utf-8") for item in _strings(tensor)]
    except UnicodeDecodeError:
        raise InvalidInput(f"a string of input '{tensor.name}' is not UTF-8") from None


def _strings(tensor: RawTensor) -> list[bytes]:
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
        strings.append(bytes(data[at : at + length]))
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
