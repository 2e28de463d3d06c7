"""Writes small ONNX files: as much of the format as the acceptance models need, without a library to do it.

Opset 17, so that the oldest ONNX Runtime and TensorRT supported read them. Field numbers:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Not here: the models (``made``), reading (``onnx_graph``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardware.protobuf import BYTES, VARINT

IR_VERSION, OPSET = 8, 17
_TYPES = {"FP32": 1, "INT64": 7, "BOOL": 9}
_NUMBERS = {"float32": 1, "int64": 7, "bool": 9}
_INT, _GRAPH, _INTS = 2, 5, 7

Shape = tuple[int, ...]


class Graph(bytes):
    """A serialized ``GraphProto``, so that an attribute can tell it from a number."""


def value(name: str, datatype: str, shape: Shape) -> bytes:
    """A ``ValueInfoProto``; -1 is the free dimension "rows"."""
    dims = b"".join(_bytes(1, _text(2, "rows") if dim == -1 else _number(1, dim)) for dim in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _TYPES[datatype]) + _bytes(2, dims)))


def weight(name: str, array: np.ndarray[Any, Any]) -> bytes:
    """A ``TensorProto``."""
    dims = b"".join(_number(1, dim) for dim in array.shape)
    return dims + _number(2, _NUMBERS[array.dtype.name]) + _text(8, name) + _bytes(9, array.tobytes())


def node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, int | Sequence[int] | Graph] | None = None,
) -> bytes:
    """A ``NodeProto``, named after its first output."""
    parts = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs]
    parts += [_text(3, f"{operator}_{outputs[0]}"), _text(4, operator)]
    parts += [_bytes(5, _attribute(name, given)) for name, given in (attributes or {}).items()]
    return b"".join(parts)


def graph(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], weights: Sequence[bytes] = ()
) -> Graph:
    parts = [_bytes(1, part) for part in nodes] + [_text(2, "acceptance")]
    parts += [_bytes(5, part) for part in weights]
    parts += [_bytes(11, part) for part in inputs] + [_bytes(12, part) for part in outputs]
    return Graph(b"".join(parts))


def model(main: Graph) -> bytes:
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "inference-mesh") + _bytes(7, main) + _bytes(8, opset)


def write_hollow(path: Path, rows: int) -> None:
    """A file of ``rows`` * 4 KiB that takes no disk: i [1] INT64 chooses row y [1, 1024] of zeros."""
    width, item_bytes = 1024, 4
    size = rows * width * item_bytes
    head = _number(1, rows) + _number(1, width) + _number(2, _TYPES["FP32"]) + _text(8, "w")
    head += _varint(9 << 3 | BYTES) + _varint(size)
    nodes = _bytes(1, node("Gather", ["w", "i"], ["y"])) + _text(2, "acceptance")
    tail = _bytes(11, value("i", "INT64", (1,))) + _bytes(12, value("y", "FP32", (1, width)))
    tensor = _varint(5 << 3 | BYTES) + _varint(len(head) + size) + head
    opset = _text(1, "") + _number(2, OPSET)
    with path.open("wb") as file:
        file.write(_number(1, IR_VERSION) + _bytes(8, opset))
        file.write(_varint(7 << 3 | BYTES) + _varint(len(nodes) + len(tensor) + size + len(tail)) + nodes + tensor)
        file.seek(size, 1)
        file.write(tail)


def _attribute(name: str, given: int | Sequence[int] | Graph) -> bytes:
    if isinstance(given, Graph):
        return _text(1, name) + _bytes(6, given) + _number(20, _GRAPH)
    if isinstance(given, int):
        return _text(1, name) + _number(3, given) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, item) for item in given) + _number(20, _INTS)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(number)


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
