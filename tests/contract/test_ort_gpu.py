"""Where a model really runs (DESIGN D8), on a simulated onnxruntime-gpu, in a worker and in process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hardware import fakes
from hardware.backend import EngineOptions, LoadOptions, RawTensor, ShapeRange
from hardware.errors import BackendUnavailable, DeviceFault, ModelRefused, WorkerDied
from hardware.fakes import ort_gpu
from hardware.frames import DEVICE_FAULT_STATUS
from hardware.inline_runtime import InlineRuntime
from hardware.onnx_providers import CPU, CUDA, TENSORRT, provider_options
from hardware.runtime import Runtime
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime
from tests import onnx_models
from tests.contract.tensors import ENDLESS, int64, load, pair

SITE = Path(fakes.__file__).parent / "site_ort_gpu"
GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")
PROFILE = (
    ShapeRange("INPUT0", (1, 16), (4, 16), (8, 16)),
    ShapeRange("INPUT1", (1, 16), (4, 16), (8, 16)),
)
BOUNDED = EngineOptions(profiles=(PROFILE,))

tells = pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="ONNX Runtime before 1.24 does not tell where a node runs",
)

Start = Callable[[str], AbstractAsyncContextManager[Runtime]]


@pytest.fixture(params=["worker", "inline"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a runtime whose onnxruntime-gpu "works" or "falls"."""

    def started(mode: str) -> AbstractAsyncContextManager[Runtime]:
        monkeypatch.setenv("FAKE_ORT_GPU", mode)
        if request.param == "inline":
            return InlineRuntime()
        return WorkerRuntime(WorkerOptions(slots=4, slot_bytes=64 * 1024, close_grace_s=0.5))

    monkeypatch.setenv("PYTHONPATH", str(SITE))
    monkeypatch.setitem(sys.modules, "onnxruntime", ort_gpu.simulated(onnxruntime))
    return started


async def answers(runtime: Runtime) -> None:
    total, _ = await runtime.run("m", pair(4), [])
    assert np.frombuffer(total.whole, dtype=np.int32).tolist() == [5] * 16


@pytest.mark.parametrize("backend", GPU)
async def test_a_model_that_falls_to_the_cpu_is_refused(start: Start, tmp_path: Path, backend: str) -> None:
    async with start("falls") as runtime:
        with pytest.raises(BackendUnavailable, match=r"would run on the CPU: .*(loaded|cannot be used)"):
            await load(runtime, tmp_path, onnx_models.simple(), backend=backend, allow_cpu=False)
        assert runtime.alive


@pytest.mark.parametrize("backend", GPU)
async def test_a_model_that_may_fall_to_the_cpu_says_so(start: Start, tmp_path: Path, backend: str) -> None:
    async with start("falls") as runtime:
        loaded = await load(runtime, tmp_path, onnx_models.simple(), backend=backend)
        assert (loaded.requested, loaded.effective) == (backend, "onnxruntime-cpu")
        assert loaded.detail.startswith("simulated")
        assert "be loaded" in loaded.detail or "cannot be used" in loaded.detail
        await answers(runtime)


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("allow_cpu", [False, True])
async def test_a_gpu_that_works_is_reported(start: Start, tmp_path: Path, backend: str, allow_cpu: bool) -> None:
    async with start("works") as runtime:
        loaded = await load(
            runtime, tmp_path, onnx_models.simple(), backend=backend, allow_cpu=allow_cpu, engine=BOUNDED
        )
        assert (loaded.requested, loaded.effective) == (backend, backend)
        assert loaded.detail == "simulated: no GPU is used"
        await answers(runtime)


@tells
async def test_nodes_that_stay_on_the_cpu_are_counted(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ORT_GPU_CPU_OPS", "Sub")
    async with start("works") as runtime:
        loaded = await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-cuda", allow_cpu=False)
        assert loaded.effective == "onnxruntime-cuda"
        assert "1 of 2 nodes run on the CPU" in loaded.detail


@tells
async def test_a_provider_that_is_listed_and_runs_nothing_is_not_where_it_runs(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ORT_GPU_CPU_OPS", "Add,Sub")
    async with start("works") as runtime:
        with pytest.raises(BackendUnavailable, match="CUDA took none of its nodes"):
            await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-cuda", allow_cpu=False)
        loaded = await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-cuda")
        assert loaded.effective == "onnxruntime-cpu"


async def test_tensorrt_wants_bounds_for_free_dimensions(start: Start, tmp_path: Path) -> None:
    async with start("works") as runtime:
        with pytest.raises(ModelRefused, match="give profiles with INPUT0, INPUT1"):
            await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-tensorrt")
        half = EngineOptions(profiles=(PROFILE, PROFILE[:1]))
        with pytest.raises(ModelRefused, match="give profiles with INPUT1"):
            await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-tensorrt", engine=half)
        odd = EngineOptions(profiles=((*PROFILE, ShapeRange("a:0", (1,), (1,), (1,))),))
        with pytest.raises(ModelRefused, match="named 'a:0'"):
            await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-tensorrt", engine=odd)
        loaded = await load(runtime, tmp_path, onnx_models.add(), backend="onnxruntime-tensorrt")  # fixed shapes
        assert loaded.effective == "onnxruntime-tensorrt"


async def test_a_build_without_the_provider_says_what_to_install(tmp_path: Path) -> None:
    async with WorkerRuntime() as runtime:  # the real onnxruntime
        for backend, package in zip(GPU, ("onnxruntime-gpu", "TensorRT 10"), strict=True):
            with pytest.raises(BackendUnavailable, match=f"built without .* install .*{package}"):
                await load(runtime, tmp_path, onnx_models.simple(), backend=backend, allow_cpu=False)
            loaded = await load(runtime, tmp_path, onnx_models.simple(), backend, backend=backend)
            assert loaded.effective == "onnxruntime-cpu"
            assert "built without" in loaded.detail


def test_the_options_of_the_providers(tmp_path: Path) -> None:
    second = (ShapeRange("INPUT0", (9, 16), (16, 16), (32, 16)),)
    engine = EngineOptions("fp16", (PROFILE[:1], second), workspace_bytes=2**20, optimization_level=2)
    options = LoadOptions("onnxruntime-tensorrt", device=1, engine=engine, cache_dir=str(tmp_path / "a" / "cache"))
    assert provider_options(CPU, options) == {}
    assert provider_options(CUDA, options) == {
        "device_id": "1", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC",
    }  # fmt: skip
    cache = tmp_path / "a" / "cache"
    assert provider_options(TENSORRT, options) == {
        "device_id": "1",
        "trt_fp16_enable": "True",
        "trt_max_workspace_size": "1048576",
        "trt_builder_optimization_level": "2",
        "trt_profile_min_shapes": "INPUT0:1x16,INPUT0:9x16",
        "trt_profile_opt_shapes": "INPUT0:4x16,INPUT0:16x16",
        "trt_profile_max_shapes": "INPUT0:8x16,INPUT0:32x16",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
    }
    assert cache.stat().st_mode & 0o077 == 0
    plain = provider_options(TENSORRT, LoadOptions("onnxruntime-tensorrt"))
    assert plain["trt_fp16_enable"] == "False"
    assert not [name for name in plain if "profile" in name or "cache" in name]


async def test_the_options_reach_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, dict[str, str]]] = []
    module = ort_gpu.simulated(onnxruntime)

    class Recording(module.InferenceSession):  # type: ignore[misc,name-defined]
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)
            made.extend(self.asked)

    module.InferenceSession = Recording  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setenv("FAKE_ORT_GPU", "falls")
    async with InlineRuntime() as runtime:
        await load(runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-tensorrt", device=1, engine=BOUNDED)
    # TensorRT could not be loaded; CUDA still gets the options it was to have, its device among them.
    assert [name for name, _ in made] == [CUDA, CPU]
    assert made[0][1]["device_id"] == "1"


async def test_a_device_fault_ends_the_worker_and_answers_all_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with WorkerRuntime(WorkerOptions(slots=3, slot_bytes=64 * 1024), on_death=died.set_result) as runtime:
        await load(runtime, tmp_path, onnx_models.loop(), "loop", instances=2)
        await load(runtime, tmp_path, onnx_models.simple(metadata={"fault": "700"}), "bad")
        others = [runtime.run("loop", [int64("N", ENDLESS)], []) for _ in range(2)]
        bad = runtime.run("bad", pair(), [])
        others.append(runtime.run("bad", pair(), []))  # waits for a slot
        for run in (bad, *others):
            with pytest.raises(DeviceFault, match="CUDA failure 700") as caught:
                await asyncio.wait_for(run, 60)
            assert "hostname" not in caught.value.text
        assert "device fault: CUDA failure 700" in died.result()
        assert not runtime.alive
        with pytest.raises(WorkerDied, match="700") as death:
            await runtime.run("loop", [int64("N", 1)], [])
        assert death.value.exit_code == DEVICE_FAULT_STATUS
        await asyncio.wait_for(runtime._exited, 60)  # by itself
        assert runtime.resident_bytes() is None


async def test_a_device_fault_in_process_is_the_end_of_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ort_gpu.simulated(onnxruntime))
    deaths: list[str] = []
    async with InlineRuntime(on_death=deaths.append) as runtime:
        await load(runtime, tmp_path, onnx_models.simple(metadata={"fault": "719"}))
        runs: list[asyncio.Future[list[RawTensor]]] = [runtime.run("m", pair(), []) for _ in range(3)]
        for run in runs:
            with pytest.raises(DeviceFault, match="719"):
                await run
        assert not runtime.alive
        with pytest.raises(WorkerDied, match="719"):
            await runtime.run("m", pair(), [])
    assert len(deaths) == 1


@pytest.mark.parametrize("code", ["2", "35", "999"])
async def test_a_cuda_error_that_passes_leaves_the_worker_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    async with WorkerRuntime() as runtime:
        await load(runtime, tmp_path, onnx_models.simple(metadata={"fault": code}), "bad")
        with pytest.raises(Exception, match=f"CUDA failure {code}") as caught:
            await runtime.run("bad", pair(), [])
        assert not isinstance(caught.value, DeviceFault)
        await load(runtime, tmp_path, onnx_models.simple())
        await answers(runtime)


async def test_tensorrt_says_how_many_rows_its_profiles_take(start: Start, tmp_path: Path) -> None:
    async with start("works") as runtime:
        loaded = await load(
            runtime, tmp_path, onnx_models.simple(), backend="onnxruntime-tensorrt", engine=BOUNDED, key="bounded"
        )
        assert loaded.batch_limit == 8
        fixed = await load(runtime, tmp_path, onnx_models.add(), backend="onnxruntime-tensorrt")
        assert fixed.batch_limit is None
