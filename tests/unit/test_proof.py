"""Whether the first dimension is a batch: real models that treat rows apart, and real ones that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edge.model_config import BatchingConfig, ModelConfig, WarmupInput
from edge.proof import OTHERS, other_values, same_answers
from edge.served import Warmed
from edge.warmup import AUTOMATIC_ROWS, warm_up
from hardware.backend import ITEM_BYTES, Loaded, LoadOptions, RawTensor, Signature, TensorInfo
from hardware.errors import DeviceFault, HardwareError, ModelRefused, RunFailed
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from tests import onnx_models
from tests.contract.tensors import load
from tests.virtual import VirtualRuntime, in_virtual_time


@pytest.fixture
async def runtime() -> AsyncIterator[InlineRuntime]:
    async with InlineRuntime() as runtime:
        yield runtime


def model(
    *nodes: Any, weights: dict[str, Any] | None = None, datatype: str = "FP32", inside: tuple[int, ...] = (4,),
    outside: tuple[int, ...] | None = None,
) -> bytes:  # fmt: skip
    """From X [rows, 4] to Y [rows, ...]."""
    value = onnx_models.value
    given = [numpy_helper.from_array(np.array(array), name) for name, array in (weights or {}).items()]
    shape = [-1, *(inside if outside is None else outside)]
    return onnx_models.build(nodes, [value("X", datatype, [-1, *inside])], [value("Y", datatype, shape)], weights=given)


def node(kind: str, *inputs: str, output: str = "Y", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], **attributes)


def indices(**values: int) -> dict[str, Any]:
    return {name: np.array([value], "i8") for name, value in values.items()}


def rows_apart() -> bytes:
    """A layer of a network with weights that cost more than the rows do, and a softmax of each row."""
    weights = {
        "W": (np.arange(4 * 512, dtype="f4").reshape(4, 512) % 7 - 3),
        "V": (np.arange(2048, dtype="f4").reshape(512, 4) % 5 - 2) / 512,
    }
    nodes = [node("MatMul", "X", "W", output="A"), node("Relu", "A", output="B"), node("MatMul", "B", "V", output="C")]
    return model(*nodes, node("Softmax", "C", axis=-1), weights=weights)


MIXED = {
    "a softmax over the rows": model(node("Softmax", "X", axis=0)),
    "running sums": model(node("CumSum", "X", "axis"), weights={"axis": np.int64(0)}),
    "running sums from behind": model(node("CumSum", "X", "axis", reverse=1), weights={"axis": np.int64(0)}),
    "the rows' mean taken off": model(
        node("ReduceMean", "X", output="M", axes=[0], keepdims=1), node("Sub", "X", "M")
    ),
    "the mean of the rows": model(node("ReduceMean", "X", axes=[0], keepdims=1)),
    "rows in reverse": model(
        node("Slice", "X", "start", "end", "axes", "steps"),
        weights=indices(start=-1, end=-(2**40), axes=0, steps=-1),
    ),
    "a row and the one two before it": model(
        node("Pad", "X", "pads", output="P"),
        node("Slice", "P", "start", "end", "axes", output="Q"),
        node("Add", "X", "Q"),
        weights={"pads": np.array([2, 0, 0, 0], "i8")} | indices(start=0, end=-2, axes=0),
    ),
    "shares of the largest of all": model(
        node("ReduceMax", "X", output="M", keepdims=1), node("Add", "M", "e", output="N"), node("Div", "X", "N"),
        weights={"e": np.array([[1.0]], "f4")},
    ),
    "divided by the number of rows": model(
        node("Shape", "X", output="S", start=0, end=1), node("Cast", "S", output="F", to=1), node("Div", "X", "F")
    ),
    "nothing to see": model(node("Sub", "X", "X")),
    "texts": onnx_models.identity("BYTES", (-1, 1)),
    "half precision no array has": onnx_models.identity("BF16", (-1, 2)),
    "a fixed first dimension": onnx_models.add(),
    "pictures divided by 255 of which the mean is taken off": onnx_models.build(
        [
            node("Cast", "X", output="F", to=1),
            node("ReduceMean", "F", output="M", axes=[0], keepdims=1),
            node("Sub", "F", "M", output="D"),
            node("Mul", "D", "small", output="E"),
            node("Add", "E", "one"),
        ],
        [onnx_models.value("X", "UINT8", [-1, 8])],
        [onnx_models.value("Y", "FP32", [-1, 8])],
        weights=[numpy_helper.from_array(np.array(v, "f4"), n) for n, v in (("small", 1e-5), ("one", 1.0))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
async def test_what_mixes_rows_or_shows_nothing_is_never_batched(
    runtime: InlineRuntime, tmp_path: Path, name: str
) -> None:
    loaded = await load(runtime, tmp_path, MIXED[name])
    config = ModelConfig(warmup={"INPUT": WarmupInput(shape=(1, 1), value="a")} if name == "texts" else {})
    warmed = await warm_up(runtime, "m", loaded, config)
    assert warmed.batching.max_rows == 1
    assert [rows for rows, _ in warmed.points] == [1]
    assert warmed.shapes == tuple(tensor.shape for tensor in warmed.inputs)


@pytest.mark.parametrize("name", ["running sums", "running sums from behind"])
async def test_two_rows_are_looked_at_both_ways_round(runtime: InlineRuntime, tmp_path: Path, name: str) -> None:
    """Where an engine takes no more than two: zeros before a row add nothing to it."""
    loaded = replace(await load(runtime, tmp_path, MIXED[name]), batch_limit=2)
    assert (await warm_up(runtime, "m", loaded, ModelConfig())).batching.max_rows == 1


@pytest.mark.parametrize(
    "proven",
    [
        rows_apart(),
        onnx_models.simple(),
        onnx_models.free_dims(),
        *(onnx_models.identity(datatype, (-1, 3)) for datatype in ITEM_BYTES if datatype not in ("BF16",)),
        onnx_models.gather(),
    ],
)
async def test_what_keeps_rows_apart_is_proven(runtime: InlineRuntime, tmp_path: Path, proven: bytes) -> None:
    loaded = await load(runtime, tmp_path, proven)
    warmed = await warm_up(runtime, "m", loaded, ModelConfig())
    assert [rows for rows, _ in warmed.points][:2] == [1, 2]  # what follows was worth to be measured


async def test_a_batch_that_pays_is_found_and_its_limit_is_what_pays(runtime: InlineRuntime, tmp_path: Path) -> None:
    loaded = await load(runtime, tmp_path, rows_apart())
    warmed = await warm_up(runtime, "m", loaded, ModelConfig(batching=BatchingConfig(delay_ms=3.0)))
    batching = warmed.batching
    assert 1 <= batching.max_rows <= AUTOMATIC_ROWS
    assert batching.delay_ms == (3.0 if batching.max_rows > 1 else 0.0)
    assert batching.max_rows in [rows for rows, _ in warmed.points]


class Simulated(VirtualRuntime):
    """A runtime in virtual time: each row of Y is that of X, or a failure from so many rows on."""

    def __init__(self, fails_at: int = 1 << 30, error: HardwareError | None = None) -> None:
        super().__init__(lambda rows: 10.0 + rows)
        self._fails_at = fails_at
        self._error = error

    def answer(self, inputs: Sequence[RawTensor]) -> list[RawTensor]:
        (tensor,) = inputs
        if tensor.shape[0] >= self._fails_at and self._error is not None:
            raise self._error
        return [RawTensor("Y", "UINT8", tensor.shape, tensor.whole)]


async def simulated_warm_up(simulated: Simulated, loaded: Loaded, config: ModelConfig) -> Warmed:
    return await warm_up(cast("Runtime", simulated), "m", loaded, config)


def loaded(batch_limit: int | None = None, rows: int = -1) -> Loaded:
    signature = Signature((TensorInfo("X", "UINT8", (rows, 2)),), (TensorInfo("Y", "UINT8", (rows, 2)),))
    options = LoadOptions()
    return Loaded(signature, options.backend, options.backend, "simulated", 0.0, batch_limit=batch_limit)


@pytest.mark.parametrize(("limit", "rows"), [(None, AUTOMATIC_ROWS), (5, 5), (2, 2), (1, 1), (100, AUTOMATIC_ROWS)])
@in_virtual_time
async def test_an_engine_bounds_the_rows(limit: int | None, rows: int) -> None:
    warmed = await simulated_warm_up(Simulated(), loaded(limit), ModelConfig())
    assert warmed.batching.max_rows == rows
    assert warmed.points[-1][0] == rows


@pytest.mark.parametrize(("limit", "rows"), [(None, 48), (5, 5)])
@in_virtual_time
async def test_a_declared_size_is_taken_and_measured(limit: int | None, rows: int) -> None:
    config = ModelConfig(batching=BatchingConfig(max_rows=48, delay_ms=2.0))
    warmed = await simulated_warm_up(Simulated(), loaded(limit), config)
    assert (warmed.batching.max_rows, warmed.batching.delay_ms) == (rows, 2.0)
    assert dict(warmed.points) == pytest.approx(
        {n: 10.0 + n for n in (1, 2, 4, 8, 16, 32, 48) if n <= rows} | {rows: 10.0 + rows}
    )


@in_virtual_time
async def test_declared_not_to_be_batched_it_is_not() -> None:
    warmed = await simulated_warm_up(Simulated(), loaded(), ModelConfig(batching=BatchingConfig(max_rows=1)))
    assert warmed.batching.max_rows == 1


@in_virtual_time
async def test_too_many_rows_for_the_device_only_bound_what_was_not_declared() -> None:
    simulated = Simulated(8, RunFailed("no memory for so many"))
    warmed = await simulated_warm_up(simulated, loaded(), ModelConfig())
    assert warmed.batching.max_rows == 4
    declared = ModelConfig(batching=BatchingConfig(max_rows=16))
    with pytest.raises(ModelRefused, match=r"model.toml declares batching, but 8 rows fail: no memory for so many"):
        await simulated_warm_up(simulated, loaded(), declared)


@pytest.mark.parametrize("rows", [2, 4, 8])
@in_virtual_time
async def test_a_fault_of_the_device_is_never_taken_for_a_limit(rows: int) -> None:
    simulated = Simulated(rows, DeviceFault("an illegal memory access"))
    for config in (ModelConfig(), ModelConfig(batching=BatchingConfig(max_rows=16))):
        with pytest.raises(DeviceFault):
            await simulated_warm_up(simulated, loaded(), config)


async def test_declared_batching_that_fails_is_refused_by_name(runtime: InlineRuntime, tmp_path: Path) -> None:
    declared = ModelConfig(batching=BatchingConfig(max_rows=4))
    for key, wrong, why in (
        ("fixed", onnx_models.add(), r"2 rows fail: input 'X' has shape"),
        ("one for all", MIXED["the mean of the rows"], r"2 rows fail: output 'Y' has shape \[1, 4\] for a batch of 2"),
    ):
        found = await load(runtime, tmp_path, wrong, key=key)
        with pytest.raises(ModelRefused, match=f"declares batching, but {why}"):
            await warm_up(runtime, key, found, declared)
    found = await load(runtime, tmp_path, onnx_models.simple(), key="rows")
    shapes = {name: WarmupInput(shape=(3, 16)) for name in ("INPUT0", "INPUT1")}
    with pytest.raises(ModelRefused, match="do not have one row each"):
        await warm_up(runtime, "rows", found, ModelConfig(batching=BatchingConfig(max_rows=4), warmup=shapes))


def numbers(*values: float) -> list[RawTensor]:
    return [RawTensor("Y", "FP32", (1, len(values)), np.array(values, "<f4").tobytes())]


def whole(value: int) -> list[RawTensor]:
    return [RawTensor("Y", "INT32", (1, 1), np.array([value], "<i4").tobytes())]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("alone", "together", "same"),
    [
        ([numbers(1, 2), numbers(3, 4)], [numbers(1, 2), numbers(3, 4)], True),
        ([numbers(1, 2), numbers(3, 4)], [numbers(1.0005, 2), numbers(3, 4)], True),  # rounding of another kernel
        ([numbers(1, 2), numbers(3, 4)], [numbers(1.01, 2), numbers(3, 4)], False),
        ([numbers(1, 2), numbers(1, 2)], [numbers(1, 2), numbers(1, 2)], False),  # shows nothing
        ([numbers(1, 2), numbers(1.0001, 2)], [numbers(1, 2), numbers(1.0001, 2)], True),
        ([numbers(1, 2), numbers(1.0001, 2)], [numbers(1.00005, 2), numbers(1.00005, 2)], False),  # their mean
        ([numbers(NAN, 2), numbers(3, 4)], [numbers(NAN, 2), numbers(3, 4)], True),
        ([numbers(NAN, 2), numbers(3, 4)], [numbers(1, 2), numbers(3, 4)], False),
        ([numbers(1, 2), numbers(3, 4)], [numbers(NAN, 2), numbers(3, 4)], False),
        ([numbers(INF, 2), numbers(3, 4)], [numbers(INF, 2), numbers(3, 4)], True),
        ([numbers(INF, 2), numbers(3, 4)], [numbers(-INF, 2), numbers(3, 4)], False),
        ([numbers(0, 0), numbers(3, 4)], [numbers(0, 0), numbers(3, 4)], True),
        ([whole(1), whole(9)], [whole(1), whole(9)], True),
        ([whole(1), whole(9)], [whole(1), whole(8)], False),
        ([numbers(1, 2), numbers(3, 4)], [numbers(1, 2, 3), numbers(3, 4)], False),
        ([numbers(), numbers()], [numbers(), numbers()], False),
        ([[], []], [[], []], False),
    ],
)  # fmt: skip
def test_answers_are_the_same_but_for_rounding(
    alone: list[list[RawTensor]], together: list[list[RawTensor]], same: bool
) -> None:
    assert same_answers(alone, together) is same


def test_other_values_are_of_the_same_kind_and_each_time_the_same() -> None:
    inputs = [
        RawTensor("F", "FP16", (1, 64), bytes(128)),
        RawTensor("I", "INT64", (1, 64), bytes(512)),
        RawTensor("P", "UINT8", (1, 64), bytes(64)),
        RawTensor("T", "BYTES", (1, 1), b"\x01\0\0\0a"),
    ]
    requests = other_values(inputs, OTHERS)
    assert requests == other_values(inputs, OTHERS)
    for request in requests:
        assert [(t.name, t.datatype, t.shape, t.nbytes) for t in request] == [
            (t.name, t.datatype, t.shape, t.nbytes) for t in inputs
        ]
        assert set(np.frombuffer(bytes(request[1].whole), "<i8")) == {0, 1}
        assert max(bytes(request[2].whole)) > 127
        assert request[3] == inputs[3]
    assert len({bytes(request[0].whole) for request in requests}) == OTHERS
