"""Builds by a real TensorRT: TensorRT-RTX parses, optimises and compiles without a GPU. Engines are not run here.

Not here: what no real builder does on command (``test_engine_build``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hardware import engine_cache
from hardware.backend import EngineOptions, ShapeRange
from hardware.engine_build import BuildLimits, build_engine
from hardware.errors import BackendUnavailable, EngineNotBuilt
from tests import onnx_models
from tests.engine_requests import Cache, rows

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "models"
AMPERE = (8, 6)
HAS_GPU = any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvmap"))
SQUEEZENET = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", compute_capability=AMPERE)


def fixed() -> bytes:
    """A small convolution over FP32 [1, 3, 32, 32]."""
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), dtype=np.float32), "w")
    return onnx_models.build(
        [helper.make_node("Conv", ["X", "w"], ["c"]), helper.make_node("Relu", ["c"], ["Y"])],
        [onnx_models.value("X", "FP32", [1, 3, 32, 32])],
        [onnx_models.value("Y", "FP32", [1, 8, 30, 30])],
        weights=[weight],
    )


async def test_an_engine_is_built_and_found_by_the_next_process(cache: Cache) -> None:
    built, shares = await cache.build_told(SQUEEZENET)
    assert (built.backend, built.cached) == ("tensorrt-rtx", False)
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert built.plan_bytes > 1_000_000
    assert await cache.build(SQUEEZENET) == replace(built, cached=True)
    assert len(engine_cache.read(Path(built.entry), cache.key_file)) == built.plan_bytes


@pytest.mark.models
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("magika", EngineOptions(profiles=rows("bytes", 16, 2048))),
        ("orientation", EngineOptions(profiles=rows("x", 4, 3, 224, 224))),
        ("ocr_cls", EngineOptions(profiles=rows("x", 4, 3, 48, 192))),  # calls height and width both "?"
        (
            "silero_vad",
            EngineOptions(
                profiles=(
                    (
                        ShapeRange("input", (1, 576), (1, 576), (8, 576)),
                        ShapeRange("state", (2, 1, 128), (2, 1, 128), (2, 8, 128)),
                    ),
                )
            ),
        ),
    ],
    ids=["magika", "orientation", "ocr_cls", "silero_vad"],
)
async def test_real_models_build(model: str, options: EngineOptions, cache: Cache) -> None:
    built, shares = await cache.build_told(MODELS / model / "1" / "model.onnx", options)
    assert built.plan_bytes > 1_000_000
    assert len(set(shares)) > 2


async def test_two_profiles_make_one_engine(cache: Cache) -> None:
    small, large = (
        tuple(ShapeRange(name, (low, 16), (high, 16), (high, 16)) for name in ("INPUT0", "INPUT1"))
        for low, high in ((1, 8), (9, 64))
    )
    both = await cache.build(onnx_models.simple(), EngineOptions(profiles=(small, large)))
    one = await cache.build(onnx_models.simple(), EngineOptions(profiles=(small,)))
    assert both.key != one.key
    assert both.plan_bytes > one.plan_bytes


async def test_a_cancelled_build_ends_and_leaves_nothing(cache: Cache) -> None:
    """Cancelled while TensorRT compiles, not before: it has told of progress."""
    model = MODELS / "ocr_rec" / "1" / "model.onnx"
    if not model.exists():
        pytest.skip("needs the models: make models")
    options = EngineOptions(profiles=rows("x", 8, 3, 48, 320))
    request = await asyncio.to_thread(cache.request, model, options)
    begun = asyncio.Event()
    task = asyncio.ensure_future(build_engine(request, lambda _: begun.set(), BuildLimits(grace_s=30.0)))
    await asyncio.wait({task, asyncio.ensure_future(begun.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cache.entries() == []


async def refusal(cache: Cache, model: bytes, options: EngineOptions | None = None) -> str:
    with pytest.raises(EngineNotBuilt) as caught:
        await cache.build(model, options)
    assert cache.entries() == []
    return caught.value.text


async def test_a_missing_profile_is_named(cache: Cache) -> None:
    text = await refusal(cache, onnx_models.simple())
    assert text.startswith("input 'INPUT0' [-1, 16] has a free dimension and no profile; declare in model.toml")


async def test_a_bad_profile_is_named(cache: Cache) -> None:
    bad = ((ShapeRange("I", (4,), (2,), (8,)),),)
    assert "min <= opt <= max in dimension 0" in await refusal(cache, onnx_models.gather(), EngineOptions(profiles=bad))


async def test_an_operator_that_tensorrt_has_not_is_named(cache: Cache) -> None:
    model = onnx_models.build(
        [helper.make_node("FooBar", ["X"], ["Y"], name="the_node")],
        [onnx_models.value("X", "FP32", [1, 4])],
        [onnx_models.value("Y", "FP32", [1, 4])],
    )
    assert "node the_node (FooBar): INVALID_NODE, " in await refusal(cache, model)


async def test_each_operator_that_tensorrt_has_not_is_named(cache: Cache) -> None:
    """Dynamic quantisation, as in many int8 exports."""
    model = onnx_models.build(
        [
            helper.make_node("DynamicQuantizeLinear", ["X"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["m"]),
            helper.make_node("Cast", ["m"], ["Y"], to=onnx.TensorProto.FLOAT),
        ],
        [onnx_models.value("X", "FP32", [1, 4])],
        [onnx_models.value("Y", "FP32", [1, 4])],
        weights=[numpy_helper.from_array(np.eye(4, dtype=np.int8), "w")],
    )
    text = await refusal(cache, model)
    assert "node number 0 (DynamicQuantizeLinear)" in text
    assert "node number 1 (MatMulInteger)" in text


async def test_what_parses_and_cannot_be_built_gives_tensorrts_reason(cache: Cache) -> None:
    model = onnx_models.build(
        [helper.make_node("Cast", ["q"], ["w"], to=1), helper.make_node("MatMul", ["X", "w"], ["Y"])],
        [onnx_models.value("X", "FP32", [1, 4])],
        [onnx_models.value("Y", "FP32", [1, 4])],
        weights=[numpy_helper.from_array(np.eye(4, dtype=np.int8), "q")],
    )
    text = await refusal(cache, model)
    assert "TensorRT cannot build the model: " in text
    assert "Quantized constant (q) is only allowed before DQ" in text
    assert "/_src/" not in text


async def test_shapes_that_no_profile_can_meet_give_tensorrts_reason(cache: Cache) -> None:
    model = onnx_models.build(
        [helper.make_node("Reshape", ["X", "shape"], ["Y"])],
        [onnx_models.value("X", "FP32", [-1, 4])],
        [onnx_models.value("Y", "FP32", [-1, 3])],
        weights=[numpy_helper.from_array(np.array([-1, 3], dtype=np.int64), "shape")],
    )
    text = await refusal(cache, model, EngineOptions(profiles=rows("X", 2, 4)))
    assert text.startswith("TensorRT cannot build the model: ")
    assert "node_of_Y: reshap" in text  # it words it in one of two ways


async def test_an_input_that_decides_shapes_is_named(cache: Cache) -> None:
    assert "the values of input 'N' decide shapes" in await refusal(cache, onnx_models.memory_bomb())


async def test_doubles_are_refused_not_narrowed(cache: Cache) -> None:
    assert "'INPUT' is FP64" in await refusal(cache, onnx_models.identity("FP64", (1, 4)))


async def test_fp16_is_refused_where_the_model_is_not(cache: Cache) -> None:
    fp16 = EngineOptions(precision="fp16")
    assert "the model must itself be FP16 on this TensorRT" in await refusal(cache, fixed(), fp16)
    half = await cache.build(onnx_models.identity("FP16", (1, 4)), fp16)
    assert half.plan_bytes > 0


async def test_a_device_that_it_has_no_code_for_is_named(cache: Cache) -> None:
    cache.compute_capability = (9, 0)
    with pytest.raises(BackendUnavailable, match=r"no code for compute capability 9\.0"):
        await cache.build(fixed())


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
async def test_without_a_driver_no_engine_for_the_device_at_hand(cache: Cache) -> None:
    cache.compute_capability = None
    with pytest.raises(BackendUnavailable):
        await cache.build(fixed())


async def test_a_flipped_byte_is_built_anew(cache: Cache) -> None:
    built = await cache.build(fixed())
    plan = Path(built.entry) / "plan"
    data = bytearray(await asyncio.to_thread(plan.read_bytes))
    data[len(data) // 2] ^= 1
    await asyncio.to_thread(plan.write_bytes, data)
    again = await cache.build(fixed())
    assert not again.cached
    assert cache.entries() == [built.key, f"{built.key}.bad"]


async def test_entries_of_another_device_and_another_key_are_built_anew(tmp_path: Path, cache: Cache) -> None:
    """A cache copied from another box, and an entry put in the place of another model's."""
    ours, theirs = cache, Cache(tmp_path / "theirs", compute_capability=AMPERE)
    foreign = await theirs.build(fixed())
    await asyncio.to_thread(os.makedirs, ours.folder)
    await asyncio.to_thread(os.rename, foreign.entry, ours.folder / foreign.key)
    built = await ours.build(fixed())
    assert not built.cached
    other = await ours.build(onnx_models.add())
    await asyncio.to_thread(os.rename, built.entry, ours.folder / "moved")
    await asyncio.to_thread(os.rename, other.entry, ours.folder / built.key)
    assert not (await ours.build(fixed())).cached


@pytest.fixture(autouse=True)
async def nothing_left(cache: Cache) -> AsyncIterator[None]:
    """Whatever happened, no half-written entry is there."""
    yield
    assert [name for name in cache.entries() if name.startswith("unfinished")] == []
