"""What an ONNX file says of its own inputs, outputs and operators, read without a runtime.

Lean on ``validate`` first: this reads files that were judged. Field numbers:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Not here: shapes that must be inferred, weights, subgraphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hardware.backend import TensorInfo
from hardware.protobuf import BYTES, VARINT, fields, text

_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_NODE_NAME, _NODE_OP_TYPE = 3, 4
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_DIMENSION, _DIMENSION_VALUE, _DIMENSION_NAME = 1, 1, 2
_NAME_TAG, _UNUSED_TAG = _DIMENSION_NAME << 3 | BYTES, 15 << 3 | BYTES
_NEGATIVE = 1 << 63

DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""OIP names of ``TensorProto.DataType``."""


@dataclass(frozen=True, slots=True)
class Operator:
    op_type: str
    name: str


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """``inputs`` are those a caller gives. A type the protocol has no name for is an empty datatype."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: tuple[Operator, ...]


def read_graph(model: memoryview) -> OnnxGraph:
    """The main graph of a model file; raises ``Malformed``."""
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    operators: list[Operator] = []
    weights: set[str] = set()
    for graph in _parts(model, _MODEL_GRAPH):
        for number, wire, part in fields(graph):
            if wire != BYTES or not isinstance(part, memoryview):
                continue
            if number == _INPUT:
                inputs.append(_value(part))
            elif number == _OUTPUT:
                outputs.append(_value(part))
            elif number == _NODE:
                operators.append(Operator(_text(part, _NODE_OP_TYPE), _text(part, _NODE_NAME)))
            elif number == _INITIALIZER:
                weights.add(_text(part, _TENSOR_NAME))
    given = tuple(info for info in inputs if info.name not in weights)
    return OnnxGraph(given, tuple(outputs), tuple(operators))


def untie(model: bytes) -> bytes:
    """The model without those names of input dimensions that have no letter, such as "?"; raises ``Malformed``.

    Dimensions of one name are equal, says ONNX, and some exporters call whatever they do not know "?".
    """
    copy = bytearray(model)
    for graph in _parts(memoryview(copy), _MODEL_GRAPH):
        for value in _parts(graph, _INPUT):
            for dimension in _dimensions(value):
                names = _parts(dimension, _DIMENSION_NAME)
                if names and dimension[0] == _NAME_TAG and not any(map(str.isalpha, text(names[0]))):
                    dimension[0] = _UNUSED_TAG  # a field of a number that ONNX does not know is skipped
    return bytes(copy)


def _value(part: memoryview) -> TensorInfo:
    element = 0
    for type_ in _parts(part, _VALUE_TYPE):
        for tensor in _parts(type_, _TYPE_TENSOR):
            element = _number(tensor, _TENSOR_TYPE, 0)
    shape = tuple(map(_dimension, _dimensions(part)))
    return TensorInfo(_text(part, _VALUE_NAME), DATATYPES.get(element, ""), shape)


def _dimensions(value: memoryview) -> Iterator[memoryview]:
    for type_ in _parts(value, _VALUE_TYPE):
        for tensor in _parts(type_, _TYPE_TENSOR):
            for shape in _parts(tensor, _TENSOR_SHAPE):
                yield from _parts(shape, _DIMENSION)


def _dimension(part: memoryview) -> int:
    value = _number(part, _DIMENSION_VALUE, -1)
    return value if value < _NEGATIVE else -1  # some exporters write a free dimension as -1


def _parts(data: memoryview, wanted: int) -> list[memoryview]:
    return [part for number, _, part in fields(data) if number == wanted and isinstance(part, memoryview)]


def _text(data: memoryview, wanted: int) -> str:
    found = _parts(data, wanted)
    return text(found[-1]) if found else ""


def _number(data: memoryview, wanted: int, default: int) -> int:
    found = [v for number, wire, v in fields(data) if number == wanted and wire == VARINT and isinstance(v, int)]
    return found[-1] if found else default
