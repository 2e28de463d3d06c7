"""TensorRT at the head of a chain, with the stand-in in real build and worker processes: what serves while an engine is
built, how it takes over, and what remains when there is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import hardware.fakes
from edge.footprints import FILE
from edge.profiles import ROWS
from hardware.engine_messages import Engine, EngineRequest
from mesh.deadline import Deadline
from mesh.errors import ModelRejected
from tests import onnx_models
from tests.contract.tensors import pair
from tests.fakes import until
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

SITE = Path(hardware.fakes.__file__).parent / "site"
FALLS_BACK = 'backends = ["tensorrt", "onnxruntime-cpu"]\n'
ALONE = 'backends = ["tensorrt"]\n'


@pytest.fixture(autouse=True)
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path


@contextlib.asynccontextmanager
async def loaded(folder: Path, toml: str, **settings: Any) -> AsyncIterator[Loaded]:
    models = repository(folder / "models", {"m": onnx_models.simple()}, {"m": toml})
    async with Loaded(models, parts={"folder": folder / "state"}, **settings).running() as here:
        yield here


async def answer(here: Loaded) -> bytes:
    served = here.get("m").served
    outputs = await here.instances.executor.infer(served, pair(5), (), Deadline.after_ms(60_000), 0)
    return b"".join(bytes(t.whole) for t in outputs)


async def on_tensorrt(here: Loaded) -> None:
    await here.until_change(lambda: here.report("m").effective == "tensorrt-fake")


async def test_the_fall_back_serves_while_the_engine_is_built_and_hands_over_without_a_gap(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "2")
    shares: list[float] = []
    async with loaded(folder, FALLS_BACK) as here:
        await here.until_state("m", "READY")
        report = here.report("m")
        assert (report.requested, report.effective) == ("tensorrt", "onnxruntime-cpu")
        assert report.reason == ("degraded: runs on onnxruntime-cpu, tensorrt was asked for: its engine is being built")
        expected = await soon(answer(here))

        async def ask_on() -> None:
            while here.report("m").effective != "tensorrt-fake":
                if (share := here.report("m").progress) is not None:
                    shares.append(share)
                assert await answer(here) == expected
                await asyncio.sleep(0.01)

        await soon(ask_on())
        assert await soon(answer(here)) == expected
        assert shares == sorted(shares)
        assert 0 < shares[-1] <= 1
        assert "DRAINING" not in here.history["m"]
        assert (here.report("m").state, here.report("m").reason, here.report("m").progress) == ("READY", "", None)


async def test_without_a_fall_back_it_is_building_until_the_engine_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "0.5")
    async with loaded(folder, ALONE) as here:
        building = await here.until_state("m", "BUILDING")
        await here.until_change(lambda: (here.report("m").progress or 0) > 0)
        assert building.coming()
        await on_tensorrt(here)
        assert here.history["m"][-3:] == ["LOADING", "WARMING", "READY"]
        assert here.report("m").reason == ""
        assert await soon(answer(here))


async def test_the_next_start_takes_the_engine_from_the_cache(folder: Path) -> None:
    async with loaded(folder, FALLS_BACK) as here:
        await on_tensorrt(here)
    async with loaded(folder, FALLS_BACK) as here:
        await on_tensorrt(here)
        assert here.history["m"] == ["LOADING", "WARMING", "READY"]


async def test_a_worker_that_dies_comes_back_with_the_engine(folder: Path) -> None:
    async with loaded(folder, FALLS_BACK) as here:
        await on_tensorrt(here)
        here.kill("m")
        await here.until_state("m", "LOADING")
        await on_tensorrt(here)
        assert await soon(answer(here))


@pytest.mark.parametrize("how", ["none", "segv"])
async def test_a_build_that_fails_leaves_the_fall_back_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", how)
    async with loaded(folder, FALLS_BACK) as here:
        await here.until_change(
            lambda: "degraded" in here.report("m").reason and "being" not in here.report("m").reason
        )
        report = here.report("m")
        assert (report.state, report.effective, report.progress) == ("READY", "onnxruntime-cpu", None)
        assert await soon(answer(here))
    async with loaded(folder, ALONE) as here:
        failed = await here.until_state("m", "FAILED")
        assert failed.reason


@pytest.mark.parametrize("isolation", ["model", "device"])
async def test_an_engine_that_crashes_its_worker_is_given_up_for_the_fall_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    monkeypatch.setenv("FAKE_TRT_SEGFAULT_AT", "1")
    async with loaded(folder, FALLS_BACK, isolation=isolation, crash_limit=1) as here:
        await here.until_change(lambda: "took its worker down" in here.report("m").reason)
        await here.until_state("m", "READY")
        assert here.report("m").effective == "onnxruntime-cpu"
        assert await soon(answer(here))


async def test_unloading_cancels_the_build_and_who_waits_for_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "600")
    async with loaded(folder, ALONE, control="explicit") as here:
        loading = asyncio.ensure_future(here.control.load("m"))
        await here.until_change(lambda: here.history.get("m", [])[-1:] == ["BUILDING"])
        assert _builds()
        await soon(here.control.unload("m"))
        assert here.instances.all() == []
        await until(lambda: not _builds())
        with pytest.raises(ModelRejected, match="was unloaded"):
            await soon(loading)


async def test_leaving_in_the_middle_of_a_build_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "600")
    async with loaded(folder, FALLS_BACK) as here:
        await here.until_state("m", "READY")
        assert _builds()
    assert not _builds()


async def test_free_dimensions_that_nobody_declared_are_learned_from_the_fall_back(folder: Path) -> None:
    models = repository(folder / "models", {"m": onnx_models.free_dims()}, {"m": FALLS_BACK})
    async with Loaded(models, parts={"folder": folder / "state"}).running() as here:
        await on_tensorrt(here)
        assert here.history["m"] == ["LOADING", "WARMING", "READY"]  # the build begins when it serves
    (models / "m" / "model.toml").write_text(ALONE)
    async with Loaded(models, parts={"folder": folder / "state"}).running() as here:
        failed = await here.until_state("m", "FAILED")
        assert "declare [warmup] or [[profiles]]" in failed.reason


async def test_without_a_state_folder_no_engine_is_built(folder: Path) -> None:
    models = repository(folder / "models", {"m": onnx_models.simple()}, {"m": FALLS_BACK})
    async with Loaded(models).running() as here:
        await here.until_state("m", "READY")
        assert "no state folder" in here.report("m").reason
        assert here.report("m").effective == "onnxruntime-cpu"


async def test_an_error_that_nobody_foresaw_leaves_the_fall_back_too(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: EngineRequest, on_progress: object) -> Engine:
        raise ZeroDivisionError(request.model_path)

    models = repository(folder / "models", {"m": onnx_models.simple()}, {"m": FALLS_BACK})
    async with Loaded(models, parts={"folder": folder / "state", "build": broken}).running() as here:
        await here.until_change(lambda: "unexpected error" in here.report("m").reason)
        assert str(folder) not in here.report("m").reason
        await here.until_state("m", "READY")
    assert "ZeroDivisionError" in caplog.text


async def test_a_chain_tells_what_it_came_to(folder: Path) -> None:
    gpu_first = 'backends = ["onnxruntime-cuda", "onnxruntime-cpu"]\n'
    async with loaded(folder, gpu_first) as here:
        await here.settled()
        report = here.report("m")
        assert (report.state, report.requested, report.effective) == ("READY", "onnxruntime-cuda", "onnxruntime-cpu")
        assert report.reason.startswith("degraded: runs on onnxruntime-cpu, onnxruntime-cuda was asked for: ")
    async with loaded(folder, 'backends = ["onnxruntime-tensorrt", "onnxruntime-cuda"]\n') as here:
        await here.settled()
        assert here.report("m").state == "FAILED"
        with pytest.raises(ModelRejected):
            await soon(here.control.load("m"))


def _builds() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # a worker that ends at this moment
            found += [child.pid] * ("hardware.engine_process" in child.cmdline())
    return found


async def test_an_engine_in_the_cache_takes_over_too_where_the_fall_back_told_its_shapes(folder: Path) -> None:
    models = repository(folder / "models", {"m": onnx_models.free_dims()}, {"m": FALLS_BACK})
    for _ in ("built", "cached"):
        async with Loaded(models, parts={"folder": folder / "state"}).running() as here:
            await soon(on_tensorrt(here))


async def test_unloading_before_a_build_began_cancels_it_too(folder: Path) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def never_begins(request: EngineRequest, on_progress: object) -> Engine:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    models = repository(folder / "models", {"m": onnx_models.simple()}, {"m": ALONE})
    parts = {"folder": folder / "state", "build": never_begins}
    async with Loaded(models, parts=parts, control="explicit").running() as here:
        loading = asyncio.ensure_future(here.control.load("m"))
        await soon(began.wait())
        await soon(here.control.unload("m"))
        await soon(ended.wait())
        await soon(asyncio.wait({loading}))
        assert loading.exception() is not None


async def test_a_footprint_is_kept_under_the_backend_that_took_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "600")

    def kept() -> set[str]:
        known = msgspec.json.decode((folder / "state" / FILE).read_bytes(), type=dict[str, tuple[int, int]])
        return {key.partition(":")[2] for key in known}

    async with loaded(folder, FALLS_BACK) as here:
        await here.until_state("m", "READY")
        assert kept() == {"onnxruntime-cpu"}
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "0")
    async with loaded(folder, FALLS_BACK) as here:
        await on_tensorrt(here)
        await until(lambda: kept() == {"onnxruntime-cpu", "tensorrt"})


async def test_tensorrt_of_onnx_runtime_is_given_the_profile_of_a_declared_warm_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE.parent / "site_ort_gpu"))
    monkeypatch.setenv("FAKE_ORT_GPU", "works")
    chain = 'backends = ["onnxruntime-tensorrt"]\n'
    async with loaded(folder, chain) as here:  # only the batch is free
        await here.settled()
        assert (here.report("m").state, here.report("m").effective) == ("READY", "onnxruntime-tensorrt")
        loaded_as = here.get("m").loaded
        assert loaded_as is not None
        assert loaded_as.batch_limit == ROWS
    models = repository(folder / "free", {"m": onnx_models.free_dims()}, {"m": chain})
    async with Loaded(models).running() as here:
        await here.settled()
        assert "give profiles with X, or the shapes of their warm-up" in here.get("m").reason
    (models / "m" / "model.toml").write_text(chain + "[warmup]\nX = { shape = [1, 3, 2] }\n")
    async with Loaded(models).running() as here:
        await here.settled()
        assert here.get("m").state == "READY"
