"""A named tensor as raw bytes, and as numpy: the value requests and responses are made of.

The raw form is OIP's binary form: little-endian, row-major, no padding; an element of BYTES is its length as uint32
and then its bytes. Not here: JSON (``json_data``), heads (``head``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import msgspec
import numpy as np

from mesh.errors import InvalidRequest
from mesh.oip.datatypes import DATATYPES, Array, datatype_of, float32_to_bf16
from mesh.oip.wire import Buffer, buffer_bytes, quoted

_LENGTH = struct.Struct("<I")
_LENGTH_BYTES = _LENGTH.size


class Tensor(msgspec.Struct):
    """``data`` may share the memory of the body it came in; it is never written to."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    parameters: dict[str, Any] = {}

    @property
    def nbytes(self) -> int:
        return buffer_bytes(self.data)

    def numpy(self) -> Array:
        """A read-only array of ``shape`` on the same memory, which may be unaligned; BF16 as the bits in ``uint16``.

        BYTES are copied, to an object array of ``bytes``. Raises ``InvalidRequest`` if data and shape disagree.
        """
        if self.datatype == "BYTES":
            elements = self.elements()
            array: Array = np.empty(len(elements), dtype=object)
            array[:] = elements
        else:
            item_bytes, dtype = _known(self.datatype, self.name)
            expected = prod(self.shape) * item_bytes
            if self.nbytes != expected:
                raise InvalidRequest(f"tensor {quoted(self.name)}: expected {expected} bytes, got {self.nbytes}")
            array = np.frombuffer(self.data, dtype=dtype)
        array = array.reshape(self.shape)
        array.flags.writeable = False
        return array

    def elements(self) -> list[bytes]:
        """The elements of a BYTES tensor, row-major. Raises ``InvalidRequest`` if they are not what ``shape`` says."""
        view = memoryview(self.data).cast("B")
        spans = _spans(view, prod(self.shape), f"tensor {quoted(self.name)}")
        return [bytes(view[start:end]) for start, end in spans]

    @classmethod
    def from_numpy(cls, name: str, array: Array, datatype: str | None = None) -> Tensor:
        """Shares the array's memory where it is contiguous and little-endian already.

        Objects and texts become BYTES (``str`` as UTF-8). "BF16" takes raw bits (``uint16``) or ``float32``. Raises
        ``InvalidRequest`` for types the protocol has no name for, or another ``datatype`` than the array's.
        """
        array = np.asarray(array)
        actual = datatype_of(array.dtype)
        if datatype is not None and datatype != actual:
            if datatype != "BF16" or actual not in ("UINT16", "FP32"):
                raise InvalidRequest(f"tensor {quoted(name)}: got numpy's {array.dtype.name}, expected {datatype}")
            if actual == "FP32":
                array = float32_to_bf16(array)
            actual = "BF16"
        if actual == "BYTES":
            return cls(name, actual, array.shape, pack_elements(array.reshape(-1).tolist(), f"tensor {quoted(name)}"))
        if array.dtype.name == "bfloat16":
            array = np.asarray(array, order="C").view("<u2")
        return cls(name, actual, array.shape, raw_bytes(array.astype(DATATYPES[actual].dtype, copy=False)))

    @classmethod
    def from_value(cls, name: str, datatype: str, shape: tuple[int, ...], value: float) -> Tensor:
        """Every element is ``value``, cut to a whole number for integers. Not for BYTES."""
        if datatype == "BYTES":
            raise InvalidRequest(f"tensor {quoted(name)}: BYTES cannot hold the number {value}")
        if datatype == "BF16":
            return cls.from_numpy(name, np.full(shape, value, dtype="<f4"), "BF16")
        return cls.from_numpy(name, np.full(shape, value).astype(_known(datatype, name)[1]))


def raw_bytes(array: Array) -> Buffer:
    """The bytes of a little-endian array, row-major, on the same memory if that is contiguous."""
    if array.size == 0:
        return b""  # a memoryview with a zero in its shape cannot be cast
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def pack_elements(elements: Iterable[Any], what: str) -> bytes:
    """Raw BYTES of ``bytes`` and ``str`` elements. Raises ``InvalidRequest`` for others."""
    parts: list[Buffer] = []
    for element in elements:
        if isinstance(element, str):
            try:
                encoded: Buffer = element.encode()
            except UnicodeEncodeError:
                raise InvalidRequest(f"{what}: a string has no UTF-8 form") from None
        elif isinstance(element, (bytes, bytearray, memoryview)):
            encoded = element
        else:
            raise InvalidRequest(f"{what}: elements of BYTES must be bytes or str, got {type(element).__name__}")
        parts += (_LENGTH.pack(buffer_bytes(encoded)), encoded)
    return b"".join(parts)


def check_elements(data: Buffer, count: int, what: str) -> None:
    """Walk raw BYTES without copying them. Raises ``InvalidRequest`` unless it holds exactly ``count`` elements."""
    view = memoryview(data).cast("B")
    if not _uniform(view, count) and not _whole(view, count):
        for _ in _spans(view, count, what):  # which raises, and says where
            pass


def _uniform(view: memoryview, count: int) -> bool:
    """Whether all elements have one length, which numpy tells much faster than a walk."""
    if count == 0 or view.nbytes % count or view.nbytes // count < _LENGTH_BYTES:
        return False
    stride = view.nbytes // count
    lengths = np.ascontiguousarray(np.frombuffer(view, np.uint8).reshape(count, stride)[:, :_LENGTH_BYTES]).view("<u4")
    return bool((lengths == stride - _LENGTH_BYTES).all())


def _whole(view: memoryview, count: int) -> bool:
    """Whether ``count`` elements end where ``view`` does: the walk without a text for what is wrong."""
    at, unpack = 0, _LENGTH.unpack_from
    try:
        for _ in range(count):
            at += _LENGTH_BYTES + unpack(view, at)[0]
    except struct.error:  # a length that is not there: the element before it, or the count, was wrong
        return False
    return at == view.nbytes


def _spans(view: memoryview, count: int, what: str) -> Iterator[tuple[int, int]]:
    """Start and end of each element in ``view``."""
    at, end = 0, view.nbytes
    if count * _LENGTH_BYTES > end:
        raise InvalidRequest(f"{what}: expected {count} string elements, got {end} bytes, too few for their lengths")
    for index in range(count):
        if end - at < _LENGTH_BYTES:
            raise InvalidRequest(f"{what}: expected {count} string elements, got {index}")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH_BYTES
        if length > end - at:
            raise InvalidRequest(
                f"{what}: incomplete string at element {index}: expected {length} bytes, got {end - at}"
            )
        yield at, at + length
        at += length
    if at != end:
        raise InvalidRequest(f"{what}: expected {count} string elements, got {end - at} bytes after the last")


def _known(datatype: str, name: str) -> tuple[int, np.dtype[Any]]:
    found = DATATYPES.get(datatype)
    if found is None:
        raise InvalidRequest(f"tensor {quoted(name)}: invalid datatype {quoted(datatype)}")
    return found
