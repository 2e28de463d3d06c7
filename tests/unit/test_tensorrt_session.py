"""The TensorRT session over the fakes: values, profiles, contexts, shapes of data, and every failure at every call."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pytest
from onnx import helper

from hardware.backend import Interrupt, RawTensor
from hardware.errors import (
    DeviceOutOfMemory,
    InvalidInput,
    ModelRefused,
    NotLoaded,
    RunFailed,
)
from hardware.fakes.cudart import FakeCudart
from hardware.fakes.trt_engine import ACTIVATION_BYTES
from tests import onnx_models
from tests.fake_plans import array, check_simple, open_on, plan, simple, simple_inputs

T = TypeVar("T")


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


def _identity(datatype: str) -> bytes:
    ranges = {"INPUT": [(0,), (4,), (100_000,)]}
    return plan(onnx_models.identity(datatype), [("INPUT", datatype, (-1,))], [("OUTPUT", datatype, (-1,))], ranges)


def _non_zero() -> bytes:
    """Y INT64 [1, ?]: the indices where X FP32 [n] is not zero; Z FP32 [n] is X doubled."""
    model = onnx_models.build(
        [helper.make_node("NonZero", ["X"], ["Y"]), helper.make_node("Add", ["X", "X"], ["Z"])],
        [onnx_models.value("X", "FP32", [-1])],
        [onnx_models.value("Y", "INT64", [1, -1]), onnx_models.value("Z", "FP32", [-1])],
    )
    outputs = [("Y", "INT64", (1, -1)), ("Z", "FP32", (-1,))]
    return plan(model, [("X", "FP32", (-1,))], outputs, {"X": [(1,), (8,), (4096,)]})


def _reshape() -> bytes:
    """Y is X FP32 [n] in the shape that S INT64 [2] says: a shape tensor."""
    model = onnx_models.build(
        [helper.make_node("Reshape", ["X", "S"], ["Y"])],
        [onnx_models.value("X", "FP32", [-1]), onnx_models.value("S", "INT64", [2])],
        [onnx_models.value("Y", "FP32", [-1, -1])],
    )
    profile: dict[str, list[Any]] = {"X": [(1,), (8,), (64,)], "S values": [[1, 1], [2, 4], [8, 8]]}
    inputs = [("X", "FP32", (-1,)), ("S", "INT64", (2,))]
    return plan(model, inputs, [("Y", "FP32", (-1, -1))], profile, shape_inputs=["S"])


def test_what_a_load_says(cuda: FakeCudart) -> None:
    data = simple((1, 4), (1, 8))
    session = open_on(cuda, data, instances=3)
    loaded = session.loaded
    assert (loaded.requested, loaded.effective, loaded.platform) == ("tensorrt", "tensorrt-fake", "tensorrt_plan")
    assert [(t.name, t.datatype, t.shape) for t in loaded.signature.inputs] == [
        ("INPUT0", "INT32", (-1, 16)),
        ("INPUT1", "INT32", (-1, 16)),
    ]
    assert loaded.batch_limit == 8
    assert loaded.device_bytes == 3 * ACTIVATION_BYTES + len(data)
    session.close()


def test_an_engine_without_a_free_batch_has_no_batch_limit(cuda: FakeCudart) -> None:
    session = open_on(cuda, plan(onnx_models.add(), [("X", "FP32", (1, 16))], [("Y", "FP32", (1, 16))]))
    assert session.loaded.batch_limit is None
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    for _ in range(2):
        np.testing.assert_array_equal(array(session.run([RawTensor("X", "FP32", (1, 16), x.tobytes())], [])[0]), x + x)
    session.close()


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_values_at_every_size(cuda: FakeCudart, *, graphs: bool, integrated: bool) -> None:
    cuda.integrated = integrated
    session = open_on(cuda, simple((1, 4), (5, 8)), cuda_graphs=graphs)
    for turn, rows in enumerate((1, 4, 8, 8, 8, 5, 1, 1, 1, 3, 8, 8, 4, 4, 4)):
        check_simple(session, rows, turn)
    assert ("cudaMemcpyAsync" in cuda.calls) is not integrated
    session.close()
    session.close()
    assert cuda.live() == {}
    assert cuda.used_bytes == 0


def test_outputs_come_in_the_order_asked_for_and_nothing_else_is_copied(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple())
    tensors, first, second = simple_inputs(2)
    swapped = session.run(tensors[::-1], ["OUTPUT1", "OUTPUT0"])
    assert [tensor.name for tensor in swapped] == ["OUTPUT1", "OUTPUT0"]
    np.testing.assert_array_equal(array(swapped[0]), first - second)
    before = Counter(cuda.calls)["cudaMemcpyAsync"]
    (only,) = session.run(tensors, ["OUTPUT1"])
    np.testing.assert_array_equal(array(only), first - second)
    assert Counter(cuda.calls)["cudaMemcpyAsync"] - before == 3
    session.close()


def test_a_batch_in_pieces_is_as_good_as_one_in_one_piece(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple())
    tensors, first, second = simple_inputs(3)
    whole = memoryview(tensors[0].whole)
    pieces = tensors[0]._replace(data=(whole[:64], b"", bytearray(whole[64:])))
    total, _ = session.run([pieces, tensors[1]], [])
    np.testing.assert_array_equal(array(total), first + second)
    session.close()


def test_results_belong_to_the_caller(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple())
    tensors, first, second = simple_inputs(2, seed=1)
    total, _ = session.run(tensors, [])
    check_simple(session, 2, seed=2)
    session.close()
    np.testing.assert_array_equal(array(total), first + second)


@pytest.mark.parametrize("rows", [0, 9, 2**31 - 1])
def test_a_shape_outside_every_profile_is_refused_by_name_before_it_costs_anything(cuda: FakeCudart, rows: int) -> None:
    session = open_on(cuda, simple((1, 2), (4, 8)))
    tensors, _, _ = simple_inputs(1)
    cuda.calls.clear()
    wrong = [tensor._replace(shape=(rows, 16), data=b"\0" * 64 * min(rows, 9)) for tensor in tensors]
    pattern = r"'INPUT0' has shape \[\d, 16\]; the engine takes \[1, 16\] to \[2, 16\] or \[4, 16\] to \[8, 16\]"
    with pytest.raises(InvalidInput, match=pattern if rows < 10 else "is 137438953408 bytes, not 576"):
        session.run(wrong, [])
    assert cuda.calls == []
    session.close()


def test_shapes_that_fit_one_by_one_but_not_together(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple((1, 8)))
    (first, _), (_, second) = simple_inputs(2)[0], simple_inputs(3)[0]
    with pytest.raises(InvalidInput, match="do not go together"):
        session.run([first, second], [])
    for rows in (2, 3):
        check_simple(session, rows)
    session.close()


def test_inputs_of_two_profiles_at_once(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple((1, 2), (4, 8)))
    (first, _), (_, second) = simple_inputs(2)[0], simple_inputs(4)[0]
    with pytest.raises(InvalidInput, match="no profile of the engine takes these shapes together"):
        session.run([first, second], [])
    session.close()


def test_an_input_that_stays_as_it_was_in_another_profile(cuda: FakeCudart) -> None:
    """TensorRT forgets every shape when the profile changes."""
    free = [(name, "FP32", (-1,)) for name in "ABXY"]
    model = onnx_models.build(
        [helper.make_node("Add", ["A", "A"], ["X"]), helper.make_node("Add", ["B", "B"], ["Y"])],
        [onnx_models.value("A", "FP32", [-1]), onnx_models.value("B", "FP32", [-1])],
        [onnx_models.value("X", "FP32", [-1]), onnx_models.value("Y", "FP32", [-1])],
    )
    small, large = [(1,), (2,), (4,)], [(5,), (6,), (8,)]
    session = open_on(cuda, plan(model, free[:2], free[2:], {"A": small, "B": small}, {"A": small, "B": large}))
    for length in (3, 6, 4, 8):
        given = {"A": np.arange(2, dtype=np.float32), "B": np.arange(length, dtype=np.float32)}
        results = session.run([RawTensor(n, "FP32", a.shape, a.tobytes()) for n, a in given.items()], [])
        for result, values in zip(results, given.values(), strict=True):
            np.testing.assert_array_equal(array(result), values * 2)
    session.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"datatype": "FP32"}, "is INT32, not FP32"),
        ({"shape": (16,)}, r"has shape \[-1, 16\]"),
        ({"data": b""}, "is 64 bytes, not 0"),
        ({"name": "other"}, "'INPUT0' is missing"),
    ],
)
def test_wrong_inputs(cuda: FakeCudart, change: dict[str, Any], text: str) -> None:
    session = open_on(cuda, simple())
    tensors, _, _ = simple_inputs(1)
    with pytest.raises(InvalidInput, match=text):
        session.run([tensors[0]._replace(**change), tensors[1]], [])
    with pytest.raises(InvalidInput, match="no output 'nothing'"):
        session.run(tensors, ["nothing"])
    session.close()


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT8", "UINT8", "BOOL", "INT32", "INT64", "FP32"])
def test_bytes_of_every_datatype_come_through_as_they_are(cuda: FakeCudart, datatype: str) -> None:
    session = open_on(cuda, _identity(datatype))
    width = {"FP16": 2, "BF16": 2, "INT32": 4, "FP32": 4, "INT64": 8}.get(datatype, 1)
    for count in (3, 0, 1, 70_000):
        values = np.random.default_rng(count).integers(0, 2, count * width, dtype=np.uint8)
        (result,) = session.run([RawTensor("INPUT", datatype, (count,), values.tobytes())], [])
        assert (result.datatype, result.shape, bytes(result.whole)) == (datatype, (count,), values.tobytes())
    session.close()
    assert cuda.live() == {}


@pytest.mark.parametrize("datatype", ["FP8", "INT4"])
def test_a_type_the_protocol_lacks_is_refused(cuda: FakeCudart, datatype: str) -> None:
    data = plan(onnx_models.float8(), [("X", datatype, (-1,))], [("Y", "FP32", (-1,))], {"X": [(1,), (1,), (1,)]})
    with pytest.raises(ModelRefused, match=f"'X' is {datatype}"):
        open_on(cuda, data)
    assert cuda.live() == {}


def test_outputs_whose_shape_depends_on_data(cuda: FakeCudart) -> None:
    session = open_on(cuda, _non_zero(), cuda_graphs=True)
    for x in ([0, 1, 0, 2], [0, 0, 0, 0], [5], list(range(4000)), [0, 1, 0, 2], [1, 1, 1, 1], [3, 0, 0, 0]):
        values = np.array(x, np.float32)
        found, doubled = session.run([RawTensor("X", "FP32", values.shape, values.tobytes())], [])
        np.testing.assert_array_equal(array(found), np.nonzero(values))
        np.testing.assert_array_equal(array(doubled), values * 2)
        (alone,) = session.run([RawTensor("X", "FP32", values.shape, values.tobytes())], ["Y"])
        np.testing.assert_array_equal(array(alone), np.nonzero(values))
    assert "cudaStreamBeginCapture" not in cuda.calls, "such a run cannot be captured"
    session.close()
    assert cuda.live() == {}


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaHostAlloc"])
def test_no_memory_for_an_output_whose_shape_depends_on_data(cuda: FakeCudart, name: str) -> None:
    session = open_on(cuda, _non_zero())
    small, large = (RawTensor("X", "FP32", (n,), np.ones(n, np.float32).tobytes()) for n in (2, 4000))
    session.run([small], [])
    cuda.faults.on(name, 3, 2)  # X grows, then Z, then TensorRT asks for Y
    with pytest.raises(DeviceOutOfMemory, match=name):
        session.run([large], [])
    cuda.faults.on("execute_async_v3", 1, 1)
    with pytest.raises(RunFailed) as raised:
        session.run([large], [])
    assert type(raised.value) is RunFailed, "not for want of memory, as the run before"
    (found, _) = session.run([large], [])
    assert found.shape == (1, 4000)
    session.close()
    assert cuda.live() == {}


def test_shape_tensors(cuda: FakeCudart) -> None:
    session = open_on(cuda, _reshape(), cuda_graphs=True)
    for shape in ((2, 4), (4, 2), (8, 1), (2, 4), (2, 4), (2, 4)):
        x = np.random.default_rng(1).random(8, np.float32)
        inputs = [RawTensor("X", "FP32", (8,), x.tobytes()), RawTensor("S", "INT64", (2,), np.array(shape).tobytes())]
        (y,) = session.run(inputs, [])
        np.testing.assert_array_equal(array(y), x.reshape(shape))
    with pytest.raises(InvalidInput, match=r"'S' has values \[9, 1\]; the engine takes \[1, 1\] to \[8, 8\]"):
        session.run([inputs[0], inputs[1]._replace(data=np.array([9, 1]).tobytes())], [])
    with pytest.raises(InvalidInput, match="do not go together"):
        session.run([inputs[0], inputs[1]._replace(data=np.array([3, 3]).tobytes())], [])
    assert "cudaStreamBeginCapture" not in cuda.calls, "a graph would keep the shape it was captured with"
    session.close()
    assert cuda.live() == {}


def test_a_scalar_input(cuda: FakeCudart) -> None:
    inputs, outputs = [("X", "FP32", (-1,)), ("K", "FP32", ())], [("Y", "FP32", (-1,))]
    session = open_on(cuda, plan(onnx_models.scalar(), inputs, outputs, {"X": [(1,), (4,), (8,)]}))
    x = RawTensor("X", "FP32", (3,), np.array([1, 2, 3], np.float32).tobytes())
    (y,) = session.run([x, RawTensor("K", "FP32", (), np.float32(2).tobytes())], [])
    assert array(y).tolist() == [2, 4, 6]
    with pytest.raises(InvalidInput, match="'K' has shape"):
        session.run([x, RawTensor("K", "FP32", (1,), np.float32(2).tobytes())], [])
    session.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_many_threads_over_fewer_instances(cuda: FakeCudart, *, graphs: bool) -> None:
    """The fake raises if two threads meet in one context."""
    session = open_on(cuda, simple((1, 4), (1, 8)), instances=3, cuda_graphs=graphs)

    def runs(thread: int) -> None:
        for turn in range(60):
            check_simple(session, 1 + (thread + turn) % 8, seed=1000 * thread + turn)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(runs, range(4)))
    assert Counter(cuda.calls)["cudaStreamCreateWithFlags"] == 3
    session.close()
    assert cuda.live() == {}


def test_close_waits_for_the_run_in_progress(cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_on(cuda, simple())
    check_simple(session, 4)
    monkeypatch.setenv("FAKE_TRT_RUN_S", "0.3")
    with ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        monkeypatch.setattr(session._cuda, "use", started.set)
        run = pool.submit(check_simple, session, 4)
        assert started.wait(30)
        session.close()
        assert run.done() or run.result(30) is None
        run.result(30)
    with pytest.raises(NotLoaded, match="closed"):
        check_simple(session, 4)
    assert cuda.live() == {}


def test_an_interrupt_before_the_start(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple())
    interrupt = Interrupt()
    interrupt.set()
    with pytest.raises(RunFailed, match="interrupted"):
        session.run(simple_inputs(1)[0], [], interrupt)
    assert "execute_async_v3" not in cuda.calls
    check_simple(session, 1)
    session.close()
