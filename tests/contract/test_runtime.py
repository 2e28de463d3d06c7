"""What every runtime promises (``hardware.runtime``), on a worker process and in process."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.backend import LoadOptions, RawTensor, TensorInfo
from hardware.errors import (
    BackendUnavailable,
    HardwareError,
    InvalidInput,
    ModelRefused,
    NotLoaded,
    WorkerDied,
)
from hardware.runtime import Runtime
from tests import onnx_models
from tests.contract.conftest import InlineWithInstances, WorkerWithInstances
from tests.contract.tensors import ENDLESS, floats, fp32, int64, load, pair

BITS = {
    "BOOL": b"\x01\x00\x01",
    "INT8": b"\x80\x7f\xff",
    "UINT8": b"\x00\x80\xff",
    "INT16": bytes(range(6)),
    "UINT16": bytes(range(250, 256)),
    "FP16": struct.pack("<4H", 0x3C00, 0x7C00, 0x7E01, 0x8000),  # one, infinity, a NaN with a payload, minus zero
    "BF16": struct.pack("<4H", 0x3F80, 0x7F80, 0x7FC1, 0x8000),
    "INT32": struct.pack("<2i", -(2**31), 2**31 - 1),
    "UINT32": struct.pack("<2I", 0, 2**32 - 1),
    "FP32": struct.pack("<3I", 0x7FC00123, 0x80000000, 0x00000001),
    "INT64": struct.pack("<2q", -(2**63), 2**63 - 1),
    "UINT64": struct.pack("<2Q", 0, 2**64 - 1),
    "FP64": struct.pack("<2Q", 0x7FF8000000000123, 0x8000000000000000),
    "BYTES": b"".join(struct.pack("<I", len(s)) + s for s in (b"", "grüß".encode(), b"nul\0inside")),
}
LENGTHS = {"BOOL": 3, "INT8": 3, "UINT8": 3, "INT16": 3, "UINT16": 3, "FP16": 4, "BF16": 4, "FP32": 3, "BYTES": 3}


@pytest.mark.parametrize("datatype", BITS)
async def test_every_datatype_comes_back_bit_for_bit(runtime: Runtime, tmp_path: Path, datatype: str) -> None:
    await load(runtime, tmp_path, onnx_models.identity(datatype))
    data = BITS[datatype]
    shape = (LENGTHS.get(datatype, 2),)
    (result,) = await runtime.run("m", [RawTensor("INPUT", datatype, shape, data)], [])
    assert result[:3] == ("OUTPUT", datatype, shape)
    assert bytes(result.whole) == data


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES"])
async def test_a_batch_of_nothing_gives_nothing(runtime: Runtime, tmp_path: Path, datatype: str) -> None:
    await load(runtime, tmp_path, onnx_models.identity(datatype, [-1, 2]))
    (result,) = await runtime.run("m", [RawTensor("INPUT", datatype, (0, 2), b"")], [])
    assert (result.shape, bytes(result.whole)) == ((0, 2), b"")


async def test_the_signature_names_types_free_dimensions_and_metadata(runtime: Runtime, tmp_path: Path) -> None:
    loaded = await load(runtime, tmp_path, onnx_models.simple(metadata={"labels": "a,b"}))
    assert loaded.signature.inputs == (TensorInfo("INPUT0", "INT32", (-1, 16)), TensorInfo("INPUT1", "INT32", (-1, 16)))
    assert [info.name for info in loaded.signature.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert loaded.signature.metadata == {"labels": "a,b"}
    assert loaded.platform == "onnxruntime_onnx"
    assert (loaded.requested, loaded.effective) == ("onnxruntime-cpu", "onnxruntime-cpu")
    assert loaded.load_ms > 0


async def test_free_dimensions_take_any_size(runtime: Runtime, tmp_path: Path) -> None:
    loaded = await load(runtime, tmp_path, onnx_models.free_dims())
    assert loaded.signature.inputs[0].shape == (-1, -1, -1)
    for shape in ((1, 2, 3), (4, 1, 1), (2, 0, 5)):
        (result,) = await runtime.run("m", [fp32("X", np.full(shape, 1.5))], [])
        np.testing.assert_array_equal(floats(result), np.full(shape, 3.0))


async def test_a_scalar_has_an_empty_shape(runtime: Runtime, tmp_path: Path) -> None:
    loaded = await load(runtime, tmp_path, onnx_models.scalar())
    assert loaded.signature.inputs[1].shape == ()
    (result,) = await runtime.run("m", [fp32("X", [1, 2]), fp32("K", 3)], [])
    np.testing.assert_array_equal(floats(result), [3, 6])


async def test_values_that_are_no_numbers_pass_through(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.not_a_number())
    (result,) = await runtime.run("m", [fp32("X", [-1, 0, 1])], [])
    np.testing.assert_array_equal(floats(result), [np.nan, -np.inf, 0])


async def test_only_the_outputs_asked_for_in_the_order_asked(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.simple())
    results = await runtime.run("m", pair(5), ["OUTPUT1", "OUTPUT0"])
    assert [(r.name, np.frombuffer(r.whole, dtype=np.int32)[0]) for r in results] == [("OUTPUT1", 4), ("OUTPUT0", 6)]
    (only,) = await runtime.run("m", pair(5), ["OUTPUT1"])
    assert only.name == "OUTPUT1"


def _changed(**change: Any) -> list[RawTensor]:
    first, second = pair()
    return [first._replace(**change), second]


WRONG: dict[str, list[RawTensor]] = {
    "missing": pair()[:1],
    "unknown": [*pair(), fp32("NO_SUCH", [1])],
    "twice": [*pair(), pair()[0]],
    "name": _changed(name="INPUT9"),
    "datatype": _changed(datatype="FP32"),
    "no datatype": _changed(datatype="FP7"),
    "dimension": _changed(shape=(1, 15), data=bytes(60)),
    "rank": _changed(shape=(16,)),
    "negative": _changed(shape=(-1, 16)),
    "huge": _changed(shape=(2**70, 16), data=b""),
    "short": _changed(data=bytes(63)),
    "long": _changed(data=bytes(65)),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_wrong_inputs_are_refused_and_the_next_run_works(runtime: Runtime, tmp_path: Path, wrong: str) -> None:
    await load(runtime, tmp_path, onnx_models.simple())
    with pytest.raises(InvalidInput):
        await runtime.run("m", WRONG[wrong], [])
    with pytest.raises(InvalidInput, match="no output 'NO_SUCH'"):
        await runtime.run("m", pair(), ["NO_SUCH"])
    results = await runtime.run("m", pair(1), [])
    assert np.frombuffer(results[0].whole, dtype=np.int32).tolist() == [2] * 16


STRINGS = {
    "cut length": (1, b"\x01\x00"),
    "cut string": (1, b"\x05\x00\x00\x00abc"),
    "too few": (2, b"\x01\x00\x00\x00a"),
    "too many": (1, b"\x01\x00\x00\x00a\x01\x00\x00\x00b"),
    "not UTF-8": (1, b"\x01\x00\x00\x00\xff"),
    "no room for so many": (2**31 - 1, b"\x01\x00\x00\x00a"),
}


@pytest.mark.parametrize("wrong", STRINGS)
async def test_strings_that_do_not_add_up_are_refused(runtime: Runtime, tmp_path: Path, wrong: str) -> None:
    await load(runtime, tmp_path, onnx_models.identity("BYTES"))
    count, data = STRINGS[wrong]
    with pytest.raises(InvalidInput):
        await runtime.run("m", [RawTensor("INPUT", "BYTES", (count,), data)], [])


async def test_an_input_that_fails_inside_the_model_fails_alone(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.gather())
    good, bad = [int64("I", [3, 0])], [int64("I", [4])]
    before, failed, after = await asyncio.gather(
        *(runtime.run("m", inputs, []) for inputs in (good, bad, good)), return_exceptions=True
    )
    assert isinstance(failed, HardwareError)
    assert "/" not in failed.text
    for results in (before, after):
        assert isinstance(results, list)
        assert floats(results[0]).tolist() == [40, 10]


async def test_a_hundred_at_once_keep_their_values_and_on_one_instance_their_order(
    runtime: Runtime, tmp_path: Path
) -> None:
    await load(runtime, tmp_path, onnx_models.simple())
    done: list[int] = []
    futures = [runtime.run("m", pair(n), ["OUTPUT0"]) for n in range(100)]
    for n, future in enumerate(futures):
        future.add_done_callback(lambda _, n=n: done.append(n))  # type: ignore[misc]
    answers = await asyncio.gather(*futures)
    assert [np.frombuffer(a.whole, dtype=np.int32).tolist() for (a,) in answers] == [[n + 1] * 16 for n in range(100)]
    if not isinstance(runtime, (WorkerWithInstances, InlineWithInstances)):
        assert done == list(range(100))


async def test_results_outlive_later_runs(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.simple())
    kept = [(await runtime.run("m", pair(n), ["OUTPUT0"]))[0] for n in range(20)]
    assert [np.frombuffer(tensor.whole, dtype=np.int32)[0] for tensor in kept] == list(range(1, 21))


async def test_cancelled_runs_leave_the_others_alone(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.simple())
    for _ in range(4):
        futures = [runtime.run("m", pair(n), ["OUTPUT0"]) for n in range(50)]
        for future in futures[::2]:
            future.cancel()
        answers = await asyncio.gather(*futures[1::2])
        assert [np.frombuffer(a.whole, dtype=np.int32)[0] for (a,) in answers] == list(range(2, 52, 2))


async def test_a_tensor_of_many_megabytes(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.identity("FP32"))
    values = np.arange(3 * 1024 * 1024, dtype=np.float32)
    (result,) = await runtime.run("m", [fp32("INPUT", values)], [])
    np.testing.assert_array_equal(floats(result), values)


async def test_data_may_be_any_flat_bytes(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.add())
    values = np.arange(16, dtype=np.float32)
    unaligned = memoryview(b"x" + values.tobytes())[1:]
    for data in (values.tobytes(), bytearray(values.tobytes()), unaligned, values.data):
        (result,) = await runtime.run("m", [RawTensor("X", "FP32", (1, 16), data)], [])
        np.testing.assert_array_equal(floats(result)[0], values * 2)


async def test_two_models_do_not_mix(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.add(), "add")
    await load(runtime, tmp_path, onnx_models.pool(), "pool")
    image = (np.arange(3 * 224 * 224) % 7).astype(np.float32).reshape(1, 3, 224, 224)  # sums without rounding
    sums, means = await asyncio.gather(
        runtime.run("add", [fp32("X", np.ones((1, 16)))], []), runtime.run("pool", [fp32("X", image)], [])
    )
    np.testing.assert_array_equal(floats(sums[0]), np.full((1, 16), 2))
    np.testing.assert_allclose(floats(means[0]).ravel(), image.mean(axis=(2, 3)).ravel(), rtol=1e-6)


async def test_unknown_keys_and_keys_in_use(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(NotLoaded):
        await runtime.run("m", pair(), [])
    with pytest.raises(NotLoaded):
        await runtime.unload("m")
    await load(runtime, tmp_path, onnx_models.simple())
    with pytest.raises(ModelRefused, match="loaded already"):
        await load(runtime, tmp_path, onnx_models.simple())
    last = [runtime.run("m", pair(n), []) for n in range(10)]
    await runtime.unload("m")
    assert len(await asyncio.gather(*last)) == 10
    with pytest.raises(NotLoaded):
        await runtime.run("m", pair(), [])
    await load(runtime, tmp_path, onnx_models.add())
    assert await runtime.run("m", [fp32("X", np.ones((1, 16)))], [])


async def test_files_that_are_no_models_are_refused_without_their_path(runtime: Runtime, tmp_path: Path) -> None:
    model = onnx_models.simple()
    files = {"garbage": b"\x00\xff" * 100, "empty": b"", "truncated": model[:-9], "text": b"hello world"}
    for name, content in files.items():
        with pytest.raises(ModelRefused) as caught:
            await load(runtime, tmp_path, content, name)
        assert str(tmp_path) not in caught.value.text
    with pytest.raises(ModelRefused, match="No such file"):
        await runtime.load("m", str(tmp_path / "missing.onnx"), LoadOptions())
    with pytest.raises(ModelRefused, match="not a regular file"):
        await runtime.load("m", str(tmp_path), LoadOptions())
    with pytest.raises(ModelRefused, match="float8"):
        await load(runtime, tmp_path, onnx_models.float8(), "float8")
    with pytest.raises(ModelRefused, match="more than the 64 allowed"):
        await load(runtime, tmp_path, model, max_model_bytes=64)


async def test_a_gpu_that_is_not_there_is_reported_or_refused(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="would run on the CPU"):
        await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-cuda", allow_cpu=False)
    with pytest.raises(BackendUnavailable, match="no backend"):
        await load(runtime, tmp_path, onnx_models.simple(), backend="abacus")
    loaded = await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-cuda")
    assert (loaded.requested, loaded.effective) == ("onnxruntime-cuda", "onnxruntime-cpu")


async def test_closing_ends_what_runs_and_may_be_repeated(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.loop())
    assert runtime.alive
    deaths: list[str] = []
    runtime.on_death = deaths.append
    endless = [runtime.run("m", [int64("N", ENDLESS)], []) for _ in range(6)]
    await asyncio.wait_for(asyncio.gather(runtime.close(), runtime.close()), 60)
    assert not runtime.alive
    for future in endless:
        with pytest.raises(WorkerDied):
            await future
    await runtime.close()
    with pytest.raises(NotLoaded, match="closed"):
        await runtime.run("m", [int64("N", 1)], [])
    with pytest.raises(NotLoaded, match="closed"):
        await runtime.load("m", str(tmp_path / "m.onnx"), LoadOptions())
    assert deaths == []


async def test_a_cancelled_load_leaves_nothing_behind(runtime: Runtime, tmp_path: Path) -> None:
    task = asyncio.ensure_future(load(runtime, tmp_path, onnx_models.simple()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await load(runtime, tmp_path, onnx_models.simple())
    assert await runtime.run("m", pair(), [])
