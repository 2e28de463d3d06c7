"""Tiny ONNX models, generated: each does one thing whose right answer a test can state.

Every function returns the bytes of a model file; :func:`save` puts them where a test wants them. Opset 17, so that the
oldest ONNX Runtime supported reads them. Not here: models with trained weights (``make models`` fetches those).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as Proto
from onnx import helper, numpy_helper

OIP_TO_ONNX = {
    "BOOL": Proto.BOOL,
    "INT8": Proto.INT8,
    "UINT8": Proto.UINT8,
    "INT16": Proto.INT16,
    "UINT16": Proto.UINT16,
    "FP16": Proto.FLOAT16,
    "BF16": Proto.BFLOAT16,
    "INT32": Proto.INT32,
    "UINT32": Proto.UINT32,
    "FP32": Proto.FLOAT,
    "INT64": Proto.INT64,
    "UINT64": Proto.UINT64,
    "FP64": Proto.DOUBLE,
    "BYTES": Proto.STRING,
}

Dims = Sequence[int | str]


def save(model: bytes, path: Path) -> Path:
    """Write a model file, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    return path


def value(name: str, datatype: str, dims: Dims) -> Any:
    """A graph input or output; -1 becomes a free dimension."""
    shape = [None if dim == -1 else dim for dim in dims]
    return helper.make_tensor_value_info(name, OIP_TO_ONNX[datatype], shape)


def build(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    weights: Sequence[Any] = (),
    metadata: dict[str, str] | None = None,
    domains: Sequence[str] = (),
) -> bytes:
    """Serialize a model without checking it: tests need wrong ones too."""
    graph = helper.make_graph(list(nodes), "model", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def simple(*, metadata: dict[str, str] | None = None) -> bytes:
    """Triton's ``simple``: INT32 [-1, 16] twice; OUTPUT0 is the sum, OUTPUT1 the difference."""
    return build(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [value("INPUT0", "INT32", [-1, 16]), value("INPUT1", "INT32", [-1, 16])],
        [value("OUTPUT0", "INT32", [-1, 16]), value("OUTPUT1", "INT32", [-1, 16])],
        metadata=metadata,
    )


def identity(datatype: str, dims: Dims = (-1,)) -> bytes:
    """INPUT comes back as OUTPUT, bit for bit."""
    return build(
        [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])],
        [value("INPUT", datatype, dims)],
        [value("OUTPUT", datatype, dims)],
    )


def add() -> bytes:
    """X + X for FP32 [1, 16]: 64 bytes in, 64 bytes out."""
    return build(
        [helper.make_node("Add", ["X", "X"], ["Y"])],
        [value("X", "FP32", [1, 16])],
        [value("Y", "FP32", [1, 16])],
    )


def pool() -> bytes:
    """The mean of each channel of FP32 [1, 3, 224, 224]: 602,112 bytes in, 12 out."""
    return build(
        [helper.make_node("GlobalAveragePool", ["X"], ["Y"])],
        [value("X", "FP32", [1, 3, 224, 224])],
        [value("Y", "FP32", [1, 3, 1, 1])],
    )


def free_dims() -> bytes:
    """FP32 [batch, ?, width] doubled: one named free dimension, one unnamed, one named again."""
    dims: Dims = ["batch", -1, "width"]
    return build(
        [helper.make_node("Add", ["X", "X"], ["Y"])],
        [value("X", "FP32", dims)],
        [value("Y", "FP32", dims)],
    )


def scalar() -> bytes:
    """FP32 X [n] times the scalar FP32 K []."""
    return build(
        [helper.make_node("Mul", ["X", "K"], ["Y"])],
        [value("X", "FP32", [-1]), value("K", "FP32", [])],
        [value("Y", "FP32", [-1])],
    )


def not_a_number() -> bytes:
    """log(X) for FP32 [n]: NaN below zero, minus infinity at zero."""
    return build([helper.make_node("Log", ["X"], ["Y"])], [value("X", "FP32", [-1])], [value("Y", "FP32", [-1])])


def gather() -> bytes:
    """The elements of FP32 [4] (10, 20, 30, 40) at INT64 indices [n]; an index outside fails while the model runs."""
    table = numpy_helper.from_array(np.array([10, 20, 30, 40], dtype=np.float32), "table")
    return build(
        [helper.make_node("Gather", ["table", "I"], ["Y"])],
        [value("I", "INT64", [-1])],
        [value("Y", "FP32", [-1])],
        weights=[table],
    )


def classifier(scale: float = 1.0, *, shift: int = 0) -> bytes:
    """FP32 X [batch, 3] as logits times ``scale``, of classes moved on by ``shift``: FP32 ``probabilities`` [batch, 3]
    and the best class, INT64 ``label`` [batch]."""
    moved = scale * np.roll(np.eye(3, dtype=np.float32), shift, axis=1)
    return build(
        [
            helper.make_node("MatMul", ["X", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        [value("X", "FP32", [-1, 3])],
        [value("probabilities", "FP32", [-1, 3]), value("label", "INT64", [-1])],
        weights=[numpy_helper.from_array(moved.astype(np.float32), "weights")],
    )


def loop() -> bytes:
    """Counts INT64 N [] down by a Loop of N rounds and returns N as Y: takes time in proportion to N, about 1 us each.

    With N = 2**62 it never ends; loading it takes no time at all.
    """
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "body",
        [value("round", "INT64", []), value("go", "BOOL", []), value("sum", "INT64", [])],
        [value("go_on", "BOOL", []), value("next", "INT64", [])],
        [numpy_helper.from_array(np.array(1, dtype=np.int64), "one")],
    )
    weights = [
        numpy_helper.from_array(np.array(True), "true"),
        numpy_helper.from_array(np.array(0, dtype=np.int64), "zero"),
    ]
    return build(
        [helper.make_node("Loop", ["N", "true", "zero"], ["Y"], body=body)],
        [value("N", "INT64", [])],
        [value("Y", "INT64", [])],
        weights=weights,
    )


def memory_bomb() -> bytes:
    """INT64 N [2] to FP32 zeros Z of that shape and their sum Y: a small request for as much memory as N says."""
    return build(
        [helper.make_node("ConstantOfShape", ["N"], ["Z"]), helper.make_node("ReduceSum", ["Z"], ["Y"], keepdims=0)],
        [value("N", "INT64", [2])],
        [value("Y", "FP32", []), value("Z", "FP32", [-1, -1])],
    )


def float8() -> bytes:
    """An identity on a type the protocol has no name for."""
    dims = [None]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["X"], ["Y"])],
        "model",
        [helper.make_tensor_value_info("X", Proto.FLOAT8E4M3FN, dims)],
        [helper.make_tensor_value_info("Y", Proto.FLOAT8E4M3FN, dims)],
    )
    opsets = [helper.make_opsetid("", 19)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def external_tensor(location: str) -> onnx.TensorProto:
    """Four FP32 weights that say they are kept in another file."""
    tensor = helper.make_tensor("w", Proto.FLOAT, [4], np.zeros(4, dtype=np.float32))
    tensor.ClearField("float_data")
    tensor.data_location = Proto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def running_sum() -> bytes:
    """OUTPUT and STATE_OUT are INPUT + STATE, INT64 of shape [-1,1]: fed back, the sum of all inputs so far."""
    nodes = [helper.make_node("Add", ["INPUT", "STATE"], [output]) for output in ("OUTPUT", "STATE_OUT")]
    inputs = [value(name, "INT64", (-1, 1)) for name in ("INPUT", "STATE")]
    return build(nodes, inputs, [value(name, "INT64", (-1, 1)) for name in ("OUTPUT", "STATE_OUT")])
