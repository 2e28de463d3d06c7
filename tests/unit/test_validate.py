"""What of an ONNX file is refused before any runtime sees it, on files made for the purpose."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hardware.errors import ModelRefused
from hardware.validate import MAX_DEPTH, check_bytes, check_model
from tests import onnx_models
from tests.onnx_models import build, external_tensor, value

X, Y = value("X", "FP32", [4]), value("Y", "FP32", [4])
LIMIT = 1024 * 1024

GOOD = {
    "simple": onnx_models.simple(metadata={"labels": "a"}),
    "identity": onnx_models.identity("BYTES"),
    "pool": onnx_models.pool(),
    "subgraph": onnx_models.loop(),
    "weights": onnx_models.gather(),
    "com.microsoft": build([helper.make_node("Gelu", ["X"], ["Y"], domain="com.microsoft")], [X], [Y]),
    "unused domain": build([helper.make_node("Abs", ["X"], ["Y"])], [X], [Y], domains=["com.acme"]),
}


def _nested(depth: int, leaf: onnx.NodeProto) -> bytes:
    """``leaf`` inside ``depth`` graphs."""
    node = leaf
    for _ in range(depth):
        graph = helper.make_graph([node], "g", [], [value("Y", "FP32", [4])])
        node = helper.make_node("If", ["C"], ["Y"], then_branch=graph, else_branch=graph if depth < 8 else None)
    return build([node], [value("C", "BOOL", [])], [Y])


def _function(node: onnx.NodeProto, *, call: str = "double") -> bytes:
    """A model that brings the function ``com.acme.double`` along, and calls ``call`` of that domain."""
    model = onnx.ModelProto.FromString(build([helper.make_node(call, ["X"], ["Y"], domain="com.acme")], [X], [Y]))
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("com.acme", "double", ["a"], ["b"], [node], opsets))
    return bytes(model.SerializeToString())


def _external(place: Callable[[onnx.ModelProto, onnx.TensorProto], None], location: str = "../secret") -> bytes:
    model = onnx.ModelProto.FromString(build([helper.make_node("Abs", ["X"], ["Y"])], [X], [Y]))
    place(model, external_tensor(location))
    return bytes(model.SerializeToString())


def _in_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.add(dims=[4]).indices.CopyFrom(tensor)


def _in_training(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.training_info.add().algorithm.initializer.append(tensor)


def _without_flag(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


def _without_location(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    tensor.ClearField("external_data")
    model.graph.initializer.append(tensor)


def _constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["Y"], value=tensor)


OUTSIDE = external_tensor("/etc/passwd")
SPARSE = onnx.SparseTensorProto(dims=[4], values=OUTSIDE)
CUSTOM = helper.make_node("Steal", ["X"], ["Y"], domain="com.acme")
CONTEXT = helper.make_node("EPContext", ["X"], ["Y"], domain="com.microsoft", ep_cache_context="trt.engine")

EVIL = {
    "initializer, parent": (_external(lambda m, t: m.graph.initializer.append(t)), "other files"),
    "initializer, absolute": (_external(lambda m, t: m.graph.initializer.append(t), "/etc/passwd"), "other files"),
    "initializer, plain": (_external(lambda m, t: m.graph.initializer.append(t), "weights.bin"), "other files"),
    "address in memory": (
        _external(lambda m, t: m.graph.initializer.append(t), "*/_ORT_MEM_ADDR_/*"),
        "other files",
    ),
    "without the flag": (_external(_without_flag), "other files"),
    "without a location": (_external(_without_location), "other files"),
    "sparse initializer": (_external(_in_sparse), "other files"),
    "training graph": (_external(_in_training), "other files"),
    "attribute": (build([_constant(OUTSIDE)], [], [Y]), "other files"),
    "tensors attribute": (build([helper.make_node("Abs", ["X"], ["Y"], list=[OUTSIDE])], [X], [Y]), "other files"),
    "sparse attribute": (
        build([helper.make_node("Constant", [], ["Y"], sparse_value=SPARSE)], [], [Y]),
        "other files",
    ),
    "in a subgraph": (_nested(3, _constant(OUTSIDE)), "other files"),
    "in a function": (_function(_constant(OUTSIDE)), "other files"),
    "custom operator": (build([CUSTOM], [X], [Y]), "com.acme.Steal"),
    "custom operator in a subgraph": (_nested(2, CUSTOM), "com.acme.Steal"),
    "custom operator in a function": (_function(CUSTOM), "com.acme.Steal"),
    "function that is not there": (_function(helper.make_node("Abs", ["a"], ["b"]), call="triple"), "com.acme.triple"),
    "compiled code": (build([CONTEXT], [X], [Y]), "EPContext"),
    "nested too deep": (_nested(MAX_DEPTH + 1, helper.make_node("Abs", ["X"], ["Y"])), "nested"),
    "no graph": (bytes(onnx.ModelProto(ir_version=8).SerializeToString()), "no graph"),
    "group": (b"\x0b\x0c", "wire type 3"),
    "field zero": (b"\x00\x00", "number 0"),
    "endless number": (b"\x08" + b"\xff" * 11, "64 bits"),
    "cut number": (b"\x08\xff", "cut off"),
    "cut field": (b"\x3a\x05\x00", "longer"),
    "cut fixed field": (b"\x09\x00", "cut off"),
}


@pytest.mark.parametrize("name", GOOD)
def test_plain_models_pass(name: str, tmp_path: Path) -> None:
    check_model(str(onnx_models.save(GOOD[name], tmp_path / "model.onnx")), LIMIT)


def test_operators_of_functions_in_the_file_pass() -> None:
    check_bytes(memoryview(_function(helper.make_node("Add", ["a", "a"], ["b"]))))


@pytest.mark.parametrize("name", EVIL)
def test_what_reaches_outside_the_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model, reason = EVIL[name]
    with pytest.raises(ModelRefused, match=reason):
        check_model(str(onnx_models.save(model, tmp_path / "model.onnx")), LIMIT)


def test_only_regular_files_within_the_limit_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ModelRefused, match="not a regular file"):
            check_model(str(path), LIMIT)
    large = numpy_helper.from_array(np.zeros(LIMIT, dtype=np.uint8), "w")
    path = onnx_models.save(build([], [], [], weights=[large]), tmp_path / "large.onnx")
    with pytest.raises(ModelRefused, match="more than"):
        check_model(str(path), LIMIT)
    check_model(str(path), 2 * LIMIT)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_judged_and_nothing_else_is_raised(data: bytes) -> None:
    with contextlib.suppress(ModelRefused):
        check_bytes(memoryview(data))


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=0, max_value=255))
@settings(deadline=None)
def test_a_changed_byte_never_hides_external_data(at: int, byte: int) -> None:
    """Whatever a parser still takes for a model with external data is refused here."""
    model = bytearray(EVIL["in a subgraph"][0])
    model[at % len(model)] = byte
    try:
        parsed = onnx.ModelProto.FromString(bytes(model))
    except Exception:
        return
    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(parsed.graph)):
        return
    with pytest.raises(ModelRefused):
        check_bytes(memoryview(bytes(model)))


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            if attribute.HasField("g"):
                found += _tensors(attribute.g)
    return found


def test_the_backend_turns_telemetry_off_before_it_imports_the_runtime() -> None:
    script = (
        "import os, sys\n"
        "import hardware.sessions, hardware.worker_runtime, hardware.inline_runtime\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "import hardware.onnx_backend\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
