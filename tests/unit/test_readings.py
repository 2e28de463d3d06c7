"""The agent's readings: off the loop, on the wire with reasons, and never older than they look."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge import readings
from edge.readings import Readings
from hardware.fakes.nvml import FakeGpu, FakeNvml, NVMLError_NotSupported
from hardware.gauges import Gauges as BoxGauges
from hardware.nvml import Nvml
from hardware.readings import DeviceReadings
from hardware.readings import Readings as BoxReadings
from mesh.messages import DeviceGauges, decode_report, encode_report
from tests.builders import a_report
from tests.hardware_trees import tree

PATIENCE_S = 30.0


class Box(BoxGauges):
    """Sensors that do what the test says."""

    def __init__(self, read: Callable[[], BoxReadings]) -> None:
        super().__init__()
        self._say = read

    def read(self) -> BoxReadings:
        return self._say()


@contextlib.asynccontextmanager
async def running(kept: Readings) -> AsyncIterator[None]:
    task = asyncio.create_task(kept.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(true: Callable[[], object]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), PATIENCE_S)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "PERIOD_S", 0.02)


async def test_this_box_is_sampled_off_the_loop_and_the_thread_ends_with_the_task() -> None:
    kept = Readings(lambda: 0)
    assert kept.gauges.unknown["cpu_percent"] == "not read yet"
    async with running(kept):
        await until(lambda: kept.gauges.cpu_percent is not None)
        assert kept.gauges.memory_total_bytes
        assert kept.capacity == 1.0
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "readings"]
    await asyncio.to_thread(thread.join, PATIENCE_S)  # it let go of the loop already
    assert not thread.is_alive()


async def test_a_sensor_that_hangs_stalls_nothing_and_its_readings_are_not_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hang, hangs, free, now = threading.Event(), threading.Event(), threading.Event(), 0.0

    def read() -> BoxReadings:
        if hang.is_set():
            hangs.set()
            free.wait(PATIENCE_S)
        return BoxReadings(1.0, cpu_percent=50.0)

    kept = Readings(lambda: 0, Box(read), clock=lambda: now)
    async with running(kept):
        await until(lambda: kept.gauges.cpu_percent == 50.0)
        hang.set()
        await until(hangs.is_set)
        await asyncio.sleep(0.01)  # the reading before it was handed over
        now = readings.STALE_S + 1
        await until(lambda: kept.gauges.cpu_percent is None)
        assert kept.gauges.unknown["cpu_percent"] == "a sensor hangs"
        hang.clear()
        free.set()
        await until(lambda: kept.gauges.cpu_percent == 50.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_leaving_does_not_wait_for_a_sensor_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "LEAVE_S", 0.05)
    hangs, free = threading.Event(), threading.Event()

    def read() -> BoxReadings:
        hangs.set()
        free.wait(PATIENCE_S)
        return BoxReadings(1.0)

    async with running(Readings(lambda: 0, Box(read))):
        await until(hangs.is_set)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "readings"]
    assert thread.daemon
    free.set()
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not thread.is_alive()


async def test_a_process_without_files_left_says_so_once_and_keeps_what_it_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing, failures = False, 0

    def read() -> BoxReadings:
        nonlocal failures
        if failing:
            failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return BoxReadings(1.0, cpu_percent=50.0)

    kept = Readings(lambda: 0, Box(read))
    async with running(kept):
        await until(lambda: kept.gauges.cpu_percent == 50.0)
        failing = True
        await until(lambda: failures > 3)
        assert kept.gauges.cpu_percent == 50.0
        failing = False
        sampled = kept.gauges
        await until(lambda: kept.gauges is not sampled)
    assert [record.getMessage() for record in caplog.records] == ["the gauges cannot be read: Too many open files"]


def test_devices_travel_with_every_reading_and_every_reason(tmp_path: Path) -> None:
    fake = FakeNvml(FakeGpu("RTX", errors={"nvmlDeviceGetPowerUsage": NVMLError_NotSupported}))
    box = BoxGauges(tree(tmp_path, "desktop").root, Nvml(fake))
    kept = Readings(lambda: 0, box)
    kept.take(box.read())
    assert kept.gauges.devices == (
        DeviceGauges(
            "RTX",
            "nvml",
            utilization_percent=50.0,
            memory_used_bytes=2 * 1024**3,
            memory_total_bytes=8 * 1024**3,
            temperature_c=60.0,
            clock_mhz=1800,
            clock_max_mhz=2100,
            throttled=(),
            throttle_events=0,
            energy_j=0.0,
            unknown={"power_w": "NVML: Not Supported"},
        ),
    )
    report = a_report(gauges=kept.gauges)
    assert decode_report(encode_report(report)).gauges == kept.gauges


def test_every_reading_of_a_device_that_travels_exists() -> None:
    """Names are matched: a misspelt one would silently stay at home."""
    assert set(DeviceGauges.__struct_fields__) <= set(DeviceReadings.__slots__)


def test_energy_per_inference_is_the_devices_energy_over_what_ran(tmp_path: Path) -> None:
    gpu, now, completed = FakeGpu(energy_mj=0), 0.0, 0
    box = BoxGauges(tree(tmp_path, "desktop").root, Nvml(FakeNvml(gpu)), clock=lambda: now)
    kept = Readings(lambda: completed, box)
    kept.take(box.read())
    assert kept.gauges.joule_per_inference is None
    assert kept.gauges.unknown["joule_per_inference"] == "no inference in the last minute"
    now, gpu.energy_mj, completed = 1.0, 150_000, 300
    kept.take(box.read())
    assert kept.gauges.joule_per_inference == pytest.approx(0.5)
    assert "joule_per_inference" not in kept.gauges.unknown


def test_energy_per_inference_says_why_it_is_unknown() -> None:
    kept = Readings(lambda: 5)
    kept.take(BoxReadings(1.0))
    assert kept.gauges.unknown["joule_per_inference"] == "no device that measures its power"
    kept.take(BoxReadings(2.0, devices=(DeviceReadings("b", "nvml"), DeviceReadings("a", "nvml", energy_j=1.0))))
    assert kept.gauges.unknown["joule_per_inference"] == "energy of b is unknown"


def hot(at_s: float, temperature_c: float) -> DeviceReadings:
    return DeviceReadings("gpu", "nvml", utilization_percent=99.0, temperature_c=temperature_c, trip_c=95.0)


@pytest.mark.parametrize("device", [0, 1])
def test_the_capacity_is_that_of_the_device_that_is_used(device: int) -> None:
    kept = Readings(lambda: 0, device=device)
    for t in range(30):
        devices = (hot(t, 60.0), hot(t, 60.0 + t))
        kept.take(BoxReadings(float(t), devices=devices))
    if device == 0:
        assert kept.capacity == 1.0
        return
    assert 0.5 < kept.capacity < 0.9
    assert kept.outlook.reason.startswith("reaches its limit of 95 °C in")


def test_the_energy_is_that_of_the_device_that_is_used() -> None:
    completed = 0
    kept = Readings(lambda: completed, device=1)
    for t in (0.0, 1.0):
        devices = (DeviceReadings("other", "nvml"), DeviceReadings("ours", "nvml", energy_j=40.0 * t))
        kept.take(BoxReadings(t, devices=devices))
        completed = 80
    assert kept.gauges.joule_per_inference == pytest.approx(0.5)


def test_a_device_that_is_not_there_has_neither() -> None:
    kept = Readings(lambda: 5, device=3)
    kept.take(BoxReadings(1.0, devices=(hot(1, 94.0),)))
    assert kept.capacity == 1.0
    assert kept.gauges.unknown["joule_per_inference"] == "no device that measures its power"


def test_a_box_without_a_gpu_is_throttled_by_its_processors() -> None:
    kept = Readings(lambda: 0)
    for t in range(30):
        kept.take(BoxReadings(float(t), processor=hot(t, 60.0 + t)))
    assert kept.capacity < 0.9
    assert kept.gauges.devices == ()
