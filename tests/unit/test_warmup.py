"""The inference that makes an instance READY: inputs it makes up, inputs it is told, and what it refuses to try.

Not here: whether requests may run together (``test_proof``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edge.model_config import BatchingConfig, ModelConfig, WarmupInput
from edge.warmup import warm_up
from hardware.backend import Loaded, RawTensor, Signature, TensorInfo
from hardware.errors import ModelRefused, RunFailed
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from tests import onnx_models
from tests.contract.tensors import load
from tests.virtual import in_virtual_time


@pytest.fixture
async def runtime() -> AsyncIterator[InlineRuntime]:
    async with InlineRuntime() as runtime:
        yield runtime


def told(name: str, *shape: int, value: float | str = 0.0) -> ModelConfig:
    return ModelConfig(warmup={name: WarmupInput(shape=shape, value=value)})


@pytest.mark.parametrize(
    "model",
    [
        onnx_models.simple(),
        onnx_models.free_dims(),
        onnx_models.scalar(),
        onnx_models.loop(),
        onnx_models.pool(),
        *(onnx_models.identity(datatype, (-1, 3)) for datatype in onnx_models.OIP_TO_ONNX),
    ],
)
async def test_a_model_is_warmed_up_with_what_it_declares(runtime: InlineRuntime, tmp_path: Path, model: bytes) -> None:
    loaded = await load(runtime, tmp_path, model)
    warmed = await warm_up(runtime, "m", loaded, ModelConfig())
    assert warmed.service_ms > 0.0
    answer = await runtime.run("m", warmed.inputs, ())  # what the watchdog asks
    assert [tensor.name for tensor in answer] == [info.name for info in loaded.signature.outputs]


async def test_free_sizes_are_tried_until_one_runs(runtime: InlineRuntime, tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    weight = numpy_helper.from_array(np.ones((224, 2), dtype="f4"), "W")
    value = onnx_models.value
    model = onnx_models.build([node], [value("X", "FP32", [-1, -1])], [value("Y", "FP32", [-1, 2])], weights=[weight])
    loaded = await load(runtime, tmp_path, model)
    warmed = await warm_up(runtime, "m", loaded, ModelConfig())
    assert [tensor.shape for tensor in warmed.inputs] == [(1, 224)]


@pytest.mark.parametrize("value", [0.0, 3.7, 2.0, -1])
async def test_a_declared_input_is_taken(runtime: InlineRuntime, tmp_path: Path, value: float) -> None:
    loaded = await load(runtime, tmp_path, onnx_models.identity("FP32"))
    warmed = await warm_up(runtime, "m", loaded, told("INPUT", 5, value=value))
    assert [tensor.shape for tensor in warmed.inputs] == [(5,)]
    assert np.frombuffer(warmed.inputs[0].whole, "<f4").tolist() == pytest.approx([value] * 5)


async def test_a_text_is_for_bytes_only(runtime: InlineRuntime, tmp_path: Path) -> None:
    texts = await load(runtime, tmp_path, onnx_models.identity("BYTES"), key="texts")
    warmed = await warm_up(runtime, "texts", texts, told("INPUT", 2, value="warm"))
    assert bytes(warmed.inputs[0].whole) == b"\x04\0\0\0warm" * 2
    numbers = await load(runtime, tmp_path, onnx_models.identity("FP32"), key="numbers")
    with pytest.raises(ModelRefused, match="text"):
        await warm_up(runtime, "numbers", numbers, told("INPUT", 2, value="warm"))


async def test_what_fails_says_what_to_declare(runtime: InlineRuntime, tmp_path: Path) -> None:
    loaded = await load(runtime, tmp_path, onnx_models.simple())
    for config in (told("INPUT0", 1, 15), told("INPUT0", 16), told("INPUT0", 10**6, 10**6)):
        with pytest.raises(RunFailed, match=r"declare \[warmup\] in model.toml"):
            await warm_up(runtime, "m", loaded, config)
    with pytest.raises(ModelRefused, match="'NOPE', which is not an input"):
        await warm_up(runtime, "m", loaded, told("NOPE", 1))


class Slow:
    """A runtime on which each row takes ``row_s``; it gives back its input."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s
        self.rows: list[int] = []

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: object) -> asyncio.Future[list[RawTensor]]:
        (tensor,) = inputs
        self.rows.append(tensor.shape[0])
        future: asyncio.Future[list[RawTensor]] = asyncio.get_running_loop().create_future()
        answer = [RawTensor("Y", tensor.datatype, tensor.shape, bytes(tensor.whole))]
        asyncio.get_running_loop().call_later(self.row_s * tensor.shape[0], future.set_result, answer)
        return future


ROWS = Signature((TensorInfo("X", "FP32", (-1, 4)),), (TensorInfo("Y", "FP32", (-1, 4)),))


@pytest.mark.parametrize(
    ("row_s", "declared", "rows", "most"),
    [
        (0.0001, 0, None, 1),  # proven, measured, and found not to pay
        (20.0, 0, [1, 1, 1], 1),  # no time for a proof
        (140.0, 0, [1], 1),
        (20.0, 8, [1, 1, 1, 1, 1, 2], 8),  # 4 rows at once would take too long to try
        (140.0, 8, [1], 8),
    ],
)
@in_virtual_time
async def test_a_slow_model_is_warm_in_time_for_what_is_not_needed_is_left_out(
    row_s: float, declared: int, rows: list[int] | None, most: int
) -> None:
    slow, started = Slow(row_s), asyncio.get_running_loop().time()
    loaded = Loaded(ROWS, "onnxruntime-cpu", "onnxruntime-cpu", "onnxruntime_onnx", 0.0)
    config = ModelConfig(batching=BatchingConfig(max_rows=declared))
    warmed = await warm_up(cast("Runtime", slow), "m", loaded, config, limit_s=300.0)
    assert rows is None or slow.rows == rows
    assert asyncio.get_running_loop().time() - started <= 150.0
    assert warmed.batching.max_rows == most
    assert warmed.service_ms == pytest.approx(row_s * 1e3)
