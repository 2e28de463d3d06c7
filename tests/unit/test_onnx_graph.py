"""The reader of ONNX graphs against the onnx package, on generated and on real models."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from hardware.backend import TensorInfo
from hardware.onnx_graph import Operator, read_graph, untie
from hardware.protobuf import Malformed
from tests import onnx_models

ROOT = Path(__file__).resolve().parent.parent.parent
OIP = {number: name for name, number in onnx_models.OIP_TO_ONNX.items()}

GENERATED = {
    "simple": onnx_models.simple(),
    "free_dims": onnx_models.free_dims(),
    "scalar": onnx_models.scalar(),
    "gather": onnx_models.gather(),
    "loop": onnx_models.loop(),
    "double": onnx_models.identity("FP64", (2, -1)),
}


def infos(values: object) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            value.name,
            OIP[value.type.tensor_type.elem_type],
            tuple(
                max(dim.dim_value, -1) if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
            ),
        )
        for value in values  # type: ignore[attr-defined]
    )


def check(data: bytes) -> None:
    expected = onnx.load_model_from_string(data).graph
    found = read_graph(memoryview(data))
    weights = {weight.name for weight in expected.initializer}
    assert found.inputs == infos([value for value in expected.input if value.name not in weights])
    assert found.outputs == infos(expected.output)
    assert found.operators == tuple(Operator(node.op_type, node.name) for node in expected.node)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_models_read_as_onnx_reads_them(name: str) -> None:
    check(GENERATED[name])


@pytest.mark.models
def test_real_models_read_as_onnx_reads_them() -> None:
    for path in sorted((ROOT / "models").glob("*/*/model.onnx")):
        check(path.read_bytes())


def test_a_weight_that_is_listed_as_an_input_is_none() -> None:
    weight = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(helper.make_tensor("w", 1, [1], [2.0])), "w")
    model = onnx_models.build(
        [helper.make_node("Mul", ["x", "w"], ["y"], name="scale")],
        [onnx_models.value("x", "FP32", [1]), onnx_models.value("w", "FP32", [1])],
        [onnx_models.value("y", "FP32", [1])],
        weights=[weight],
    )
    check(model)
    assert [info.name for info in read_graph(memoryview(model)).inputs] == ["x"]


def test_names_that_say_nothing_are_taken_away() -> None:
    """Only those of inputs: what ties two dimensions on purpose stays."""
    dims: list[str | int | None] = ["?", "batch", "?", 3, None, "-1"]
    model = onnx_models.build(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", 1, dims)],
        [helper.make_tensor_value_info("y", 1, dims)],
    )
    untied = untie(model)
    given_, same = onnx.load_model_from_string(untied).graph, onnx.load_model_from_string(model).graph
    assert [dim.dim_param for dim in given_.input[0].type.tensor_type.shape.dim] == ["", "batch", "", "", "", ""]
    assert given_.input[0].type.tensor_type.shape.dim[3].dim_value == 3
    assert given_.output == same.output
    assert given_.node == same.node
    assert read_graph(memoryview(untied)) == read_graph(memoryview(model))


@given(st.binary(max_size=64), st.integers(0, 500))
def test_no_bytes_do_worse_than_malformed(noise: bytes, at: int) -> None:
    data = onnx_models.simple()
    for damaged in (noise, data[:at] + noise + data[at:]):
        with contextlib.suppress(Malformed):
            read_graph(memoryview(damaged))
        with contextlib.suppress(Malformed):
            untie(damaged)
