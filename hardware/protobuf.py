"""Reads protobuf's wire format: enough to walk a file that must not reach a full parser yet.

https://protobuf.dev/programming-guides/encoding. Raises ``Malformed`` on anything that is not well-formed, groups
included, and never reads outside the buffer or allocates for what it skips. Not here: what the fields mean
(``validate``).
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | memoryview


class Malformed(ValueError):
    """The bytes are not protobuf."""


def fields(data: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Yield ``(number, wire type, value)``; a BYTES value is a view of ``data``, fixed values are skipped over as 0."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Malformed("a field has number 0")
        if wire == BYTES:
            length, at = _varint(data, at)
            if length > end - at:
                raise Malformed("a field is longer than what holds it")
            yield number, wire, data[at : at + length]
            at += length
        elif wire == VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
            if at > end:
                raise Malformed("a number is cut off")
            yield number, wire, 0
        else:
            raise Malformed(f"a field has wire type {wire}")


def text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a name is not UTF-8") from None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Malformed("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise Malformed("a number is longer than 64 bits")
