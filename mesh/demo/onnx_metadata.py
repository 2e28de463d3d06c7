"""Read the ``metadata_props`` of an ONNX model without a runtime: a walk over the top level of its protobuf.

Only what the fetch needs from bytes whose digest was already right. Not here: validation of models from strangers
(the agent's store does that with the ``onnx`` package), graphs, tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

METADATA_PROPS = 14
"""Field of ``ModelProto`` that holds ``StringStringEntryProto`` messages (onnx.proto)."""
KEY, VALUE = 1, 2
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def read_metadata(model: bytes) -> dict[str, str]:
    """Metadata of a serialised ``ModelProto``. Raises ``ValueError`` where the bytes are not protobuf."""
    found: dict[str, str] = {}
    for number, value in _fields(memoryview(model)):
        if number == METADATA_PROPS:
            entry = {n: bytes(v).decode() for n, v in _fields(value)}
            found[entry.get(KEY, "")] = entry.get(VALUE, "")
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message, as (number, payload); others are stepped over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(message, at)
        elif kind == LENGTH:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a protobuf field reaches past its message")
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"protobuf wire type {kind} is unknown")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a protobuf number reaches past its message")
