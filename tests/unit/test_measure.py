"""What a version is measured to hold of the GPU where only the readings tell, with ONNX Runtime's simulated CUDA."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import hardware.fakes
from edge.preflight import MIB, grown
from hardware.engine_messages import Engine, EngineRequest
from mesh.messages import DeviceGauges, Gauges
from tests import onnx_models
from tests.fakes import until
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

SITES = Path(hardware.fakes.__file__).parent
CUDA = 'backends = ["onnxruntime-cuda"]\n'
MODEL = 300 * MIB
OTHERS = 50 * MIB


@pytest.fixture(autouse=True)
def simulated_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{SITES / 'site_ort_gpu'}:{SITES / 'site'}")
    monkeypatch.setenv("FAKE_ORT_GPU", "works")


class Box:
    """A box on whose GPU every model that is loaded takes ``each``; every reading is a new one."""

    def __init__(self, each: int = MODEL, unified: bool = False, known: bool = True) -> None:
        self.each, self.unified, self.known = each, unified, known
        self.loaded: Loaded | None = None

    def gauges(self) -> Gauges:
        there = getattr(self.loaded, "instances", None)  # not before it runs
        count = 0 if there is None else sum(i.state == "READY" for i in there.all())
        used = OTHERS + self.each * count if self.known else None
        gpu = DeviceGauges(
            "gpu", "nvml", memory_used_bytes=used, memory_total_bytes=8 << 30, unified_memory=self.unified
        )
        return Gauges(memory_used_bytes=0, memory_total_bytes=8 << 30, devices=(gpu,))

    def on(self, folder: Path, names: str = "m", **settings: Any) -> Loaded:
        (folder / "state").mkdir()
        models = repository(
            folder / "models", {n: onnx_models.add() for n in names}, dict.fromkeys(names, settings.pop("toml", CUDA))
        )
        parts = {"gauges": self.gauges, "folder": folder / "state", **settings.pop("parts", {})}
        self.loaded = Loaded(models, parts=parts, **settings)
        return self.loaded


async def test_the_growth_of_what_the_device_has_in_use_is_taken(tmp_path: Path) -> None:
    async with Box().on(tmp_path).running() as loaded:
        await loaded.settled()
        await until(lambda: loaded.get("m").footprint is not None)
        footprint = loaded.get("m").footprint
        assert footprint is not None
        assert footprint.device == MODEL
        assert loaded.report("m").memory_bytes == footprint.box + MODEL
        await until((tmp_path / "state" / "footprints.json").exists)


async def test_unified_memory_is_counted_once(tmp_path: Path) -> None:
    async with Box(unified=True).on(tmp_path).running() as loaded:
        await loaded.settled()
        await until(lambda: loaded.get("m").footprint is not None)
        footprint = loaded.get("m").footprint
        assert footprint is not None
        assert footprint.box + footprint.device == MODEL


@pytest.mark.parametrize("box", [Box(known=False), Box(each=0)])
async def test_what_cannot_be_told_is_not_written_down_as_nothing(tmp_path: Path, box: Box) -> None:
    async with box.on(tmp_path, watchdog_s=0.1).running() as loaded:
        await loaded.settled()
        ready = loaded.get("m")
        while ready.served.completed == 0:  # long after a reading came
            await asyncio.sleep(0.05)
        assert ready.footprint is None
        assert loaded.report("m").memory_bytes is None
        assert not (tmp_path / "state" / "footprints.json").exists()


async def test_a_measurement_that_something_disturbed_is_none(tmp_path: Path) -> None:
    """An engine is built meanwhile, which takes of the device what it likes."""

    async def building(request: EngineRequest, on_progress: Any) -> Engine:
        on_progress(0.1)
        await asyncio.Event().wait()
        raise AssertionError

    toml = 'backends = ["tensorrt", "onnxruntime-cuda"]\n'
    box = Box()
    async with box.on(tmp_path, toml=toml, parts={"build": building}, watchdog_s=0.1).running() as loaded:
        await loaded.settled()
        ready = loaded.get("m")
        while ready.served.completed == 0:
            await asyncio.sleep(0.05)
        assert ready.backend == "onnxruntime-cuda"
        assert ready.footprint is None


async def test_what_is_being_built_keeps_its_room(tmp_path: Path) -> None:
    async def building(request: EngineRequest, on_progress: Any) -> Engine:
        on_progress(0.1)
        await asyncio.Event().wait()
        raise AssertionError

    box = Box(each=0)
    toml = 'backends = ["tensorrt"]\n'
    settings: dict[str, Any] = {"control": "explicit", "reserve_bytes": (8 << 30) - 150 * MIB}
    async with box.on(tmp_path, "ab", toml=toml, parts={"build": building}, **settings).running() as loaded:
        (tmp_path / "models" / "b" / "model.toml").write_text('backends = ["onnxruntime-cpu"]\n')
        loading = [asyncio.ensure_future(loaded.control.load("a"))]
        await loaded.until_change(lambda: loaded.history.get("a", [])[-1:] == ["BUILDING"])
        loading.append(asyncio.ensure_future(loaded.control.load("b")))
        await loaded.until_change(lambda: "b" in loaded.history)
        await asyncio.sleep(0.5)  # long enough to be loaded
        assert loaded.history["b"] == ["LOADING"]
        await soon(loaded.control.unload("a"))
        await loaded.until_state("b", "READY")
        await soon(asyncio.wait(loading))
        assert loading[0].exception() is not None


@pytest.mark.parametrize(("before", "after", "more"), [(5, 9, 4), (5, 5, None), (9, 5, None), (None, 5, None)])
def test_growth_is_more_or_unknown(before: int | None, after: int, more: int | None) -> None:
    def reading(used: int | None) -> Gauges:
        return Gauges(devices=(DeviceGauges("other"), DeviceGauges("gpu", memory_used_bytes=used)))

    assert grown(reading(before), reading(after), 1) == more
    assert grown(reading(before), reading(after), 0) is None
    assert grown(reading(before), reading(after), 2) is None
