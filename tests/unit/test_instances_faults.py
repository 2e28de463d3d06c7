"""What goes wrong around instances: workers that die or hang while others load, and versions that leave in the midst.

Not here: the usual life (``test_instances``), engines (``test_engine_chain``).
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

import hardware.fakes
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded
from tests import onnx_models
from tests.contract.tensors import ENDLESS, int64
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

SITE = Path(hardware.fakes.__file__).parent / "site"
SITE_ORT_GPU = SITE.parent / "site_ort_gpu"
HANGS_WHEN_WARM = f"[warmup]\nN = {{ shape = [], value = {ENDLESS} }}\n"
ZERO = int64("N", 0)
FOREVER = int64("N", ENDLESS)


def infer(loaded: Loaded, name: str, *inputs: Any, left_ms: float = 60_000.0) -> asyncio.Task[Any]:
    served = loaded.get(name).served
    return asyncio.ensure_future(loaded.instances.executor.infer(served, inputs, (), Deadline.after_ms(left_ms), 0))


async def test_who_came_after_a_shared_worker_started_comes_back_with_it(tmp_path: Path) -> None:
    repository(tmp_path, {"early": onnx_models.loop(), "late": onnx_models.loop()})
    async with Loaded(tmp_path, isolation="device", control="explicit").running() as loaded:
        for name in ("early", "late"):
            await soon(loaded.control.load(name))
        worker = loaded.runtime("early")
        loaded.kill("early")
        await loaded.until_change(lambda: loaded.get("early").served.runtime is not worker)
        await loaded.settled()
        for name in ("early", "late"):
            assert await soon(infer(loaded, name, ZERO))


@pytest.mark.parametrize("isolation", ["model", "device", "none"])
async def test_a_model_whose_warm_up_hangs_can_be_unloaded(tmp_path: Path, isolation: str) -> None:
    repository(tmp_path, {"hangs": onnx_models.loop(), "other": onnx_models.loop()}, {"hangs": HANGS_WHEN_WARM})
    async with Loaded(tmp_path, isolation=isolation, control="explicit").running() as loaded:
        await soon(loaded.control.load("other"))
        loading = asyncio.ensure_future(loaded.control.load("hangs"))
        await loaded.until_change(lambda: loaded.history.get("hangs", [])[-1:] == ["WARMING"])
        await soon(loaded.control.unload("hangs"))
        assert loaded.instances.named("hangs") == []
        await soon(asyncio.wait({loading}))
        assert loading.exception() is not None
        assert await soon(infer(loaded, "other", ZERO))


@pytest.mark.parametrize("isolation", ["model", "device", "none"])
async def test_an_agent_whose_warm_up_hangs_can_be_left(tmp_path: Path, isolation: str) -> None:
    repository(tmp_path, {"hangs": onnx_models.loop()}, {"hangs": HANGS_WHEN_WARM})

    async def enter_and_leave() -> None:
        async with Loaded(tmp_path, isolation=isolation).running() as loaded:
            await loaded.until_state("hangs", "WARMING")

    await soon(enter_and_leave())


async def test_the_end_of_a_worker_that_hung_in_a_warm_up_is_counted_once(tmp_path: Path) -> None:
    repository(tmp_path, {"hangs": onnx_models.loop()}, {"hangs": HANGS_WHEN_WARM})
    before = psutil.Process().children()
    async with Loaded(tmp_path, warmup_s=1.0).running() as loaded:
        hangs = await loaded.until_state("hangs", "FAILED")
        await loaded.until_change(lambda: hangs.served.tally.worker_deaths > 0)
        assert hangs.served.tally.worker_deaths == 1
        assert hangs.served.tally.backend_failures == {"onnxruntime-cpu": 1}
        assert hangs.reason == "its warm-up did not end within 1 s (models.warmup_s)"
    left = [child for child in psutil.Process().children() if child not in before]
    assert left == []  # it was left while the worker was on its way out


async def test_who_hangs_at_every_request_is_quarantined_however_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.host.CRASH_WINDOW_S", 0.0)  # its ends are further apart than that
    repository(tmp_path, {"bad": onnx_models.loop()})
    async with Loaded(tmp_path, crash_limit=2, hang_s=0.1, watchdog_s=0.2).running() as loaded:
        for lives in (1, 2):
            bad = await loaded.until_state("bad", "READY")
            before = bad.served.completed
            while bad.served.completed == before:  # the watchdog's inference, which is no request
                await asyncio.sleep(0.01)
            await hang(loaded)
            assert bad.served.tally.worker_deaths == lives
        await loaded.until_state("bad", "QUARANTINED")
        assert "2 times in a row without an answer" in bad.reason
        assert "hangs" in bad.reason or "went on" in bad.reason


async def test_who_answers_between_two_hangs_is_not_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.host.CRASH_WINDOW_S", 0.0)
    repository(tmp_path, {"bad": onnx_models.loop()})
    async with Loaded(tmp_path, crash_limit=2, hang_s=0.1).running() as loaded:
        for _ in range(3):
            await loaded.until_state("bad", "READY")
            assert await soon(infer(loaded, "bad", ZERO))
            await hang(loaded)
        assert (await loaded.until_state("bad", "READY")).quarantines == 0


async def hang(loaded: Loaded) -> None:
    """One request for which the worker has to be killed."""
    worker = loaded.runtime("bad")
    running = await begin_to_hang(loaded)
    with pytest.raises(DeadlineExceeded):
        await soon(running)
    await loaded.until_change(lambda: loaded.get("bad").served.runtime is not worker)


async def begin_to_hang(loaded: Loaded) -> asyncio.Task[Any]:
    """A stopped process ends no run early."""
    running = infer(loaded, "bad", FOREVER, left_ms=500)
    await loaded.until_running("bad")
    os.kill(loaded.runtime("bad").pid, signal.SIGSTOP)
    return running


async def test_who_was_being_loaded_when_another_hung_is_not_held_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE_ORT_GPU))
    monkeypatch.setenv("FAKE_ORT_GPU", "works")
    chain = 'backends = ["onnxruntime-cuda", "onnxruntime-cpu"]\n'
    repository(tmp_path, {"bad": onnx_models.loop(), "good": onnx_models.add()}, {"good": chain})
    async with Loaded(tmp_path, isolation="device", control="explicit", hang_s=0.5).running() as loaded:
        await soon(loaded.control.load("bad"))
        running = await begin_to_hang(loaded)
        await soon(loaded.control.load("good"))
        assert "hung" in loaded.get("bad").reason or loaded.get("bad").state == "READY"
        good = loaded.get("good")
        assert (good.state, good.reason, good.backend) == ("READY", "", "onnxruntime-cuda")
        assert good.served.tally.backend_failures == {}
        assert (good.served.tally.worker_deaths, loaded.get("bad").served.tally.worker_deaths) == (0, 1)
        with pytest.raises(DeadlineExceeded):
            await soon(running)


async def test_a_fall_back_that_hangs_does_not_end_what_waits_for_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "600")
    (tmp_path / "state").mkdir()
    toml = 'backends = ["tensorrt", "onnxruntime-cpu"]\n' + HANGS_WHEN_WARM
    models = repository(tmp_path / "models", {"m": onnx_models.loop()}, {"m": toml})
    async with Loaded(models, parts={"folder": tmp_path / "state"}, warmup_s=1.0).running() as loaded:
        building = loaded.get("m")
        await loaded.until_change(lambda: building.over or (building.state == "BUILDING" and building.reason != ""))
        assert building.reason.startswith("onnxruntime-cpu took its worker down: its warm-up did not end")
        assert "FAILED" not in loaded.history["m"]
        assert building.served.tally.worker_deaths == 1
        assert building.served.tally.backend_failures == {"onnxruntime-cpu": 1}


async def test_as_many_instances_run_as_were_asked_for(tmp_path: Path) -> None:
    repository(tmp_path, {"m": onnx_models.loop()}, {"m": "instances = 9\n"})
    async with Loaded(tmp_path, concurrency=9).running() as loaded:
        await loaded.settled()
        endless = [infer(loaded, "m", FOREVER) for _ in range(8)]
        await loaded.until_running("m")
        assert await soon(infer(loaded, "m", ZERO))
        for task in endless:
            task.cancel()
        await soon(asyncio.wait(endless))
