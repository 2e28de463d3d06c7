"""Readings of Jetsons on trees of kernel files: what is read, what is unknown and why, what is not counted twice."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from hardware.devices import nvgpu, thor_gpc
from hardware.fakes.nvml import FakeGpu, FakeNvml, NVMLError_NotSupported
from hardware.gauges import Gauges
from hardware.jetson import JetsonGpu
from hardware.nvml import Nvml
from hardware.readings import DeviceReadings
from tests.hardware_trees import GIB_KB, Tree, tree

THOR_UNSUPPORTED = (
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureThreshold",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetCurrentClocksEventReasons",
)


@pytest.fixture(params=["orin-jp6", "orin-jp7"])
def orin(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return tree(tmp_path, request.param)


def reader(built: Tree) -> JetsonGpu:
    devfreq = nvgpu(built.root)
    assert devfreq is not None
    return JetsonGpu(built.root, devfreq, "ga10b", "jetson-orin")


def test_an_orin_is_read_by_nvgpus_files(orin: Tree) -> None:
    assert reader(orin).read() == DeviceReadings(
        "ga10b",
        "jetson-orin",
        utilization_percent=42.5,
        unified_memory=True,
        temperature_c=48.5,
        trip_c=99.0,
        power_w=12.0,
        clock_mhz=612.0,
        clock_max_mhz=918.0,
        throttled=(),
        throttle_events=0,
        power_mode="15W",
        unknown={},
    )


@pytest.mark.parametrize("path", ["sys/devices/platform/17000000.gpu/load", "sys/devices/gpu.0/load"])
def test_the_load_is_found_where_devfreq_leads_nowhere(tmp_path: Path, path: str) -> None:
    built = Tree(tmp_path)
    built.clock("sys/class/devfreq/gpu.0", 1, 1, 1)
    built.write(path, 1000)
    gpu = JetsonGpu(built.root, built.root / "sys/class/devfreq/gpu.0", "ga10b", "jetson-orin")
    assert gpu.read().utilization_percent == 100.0


def test_everything_that_is_missing_is_none_with_a_reason(tmp_path: Path) -> None:
    read = JetsonGpu(tmp_path, tmp_path / "sys/class/devfreq/17000000.gpu", "ga10b", "jetson-orin").read()
    assert read == DeviceReadings(
        "ga10b",
        "jetson-orin",
        unified_memory=True,
        unknown={
            "power_mode": "status: there is none",
            "throttled": "no cooling device for it; no over-current counters (soctherm_oc)",
            "throttle_events": "no cooling device for it; no over-current counters (soctherm_oc)",
            "utilization_percent": "load: there is none",
            "temperature_c": "no thermal zone like gpu-thermal",
            "trip_c": "no thermal zone like gpu-thermal",
            "power_w": "no power sensor (INA3221 or INA238)",
            "clock_mhz": "cur_freq: there is none",
            "clock_max_mhz": "max_freq: there is none",
        },
    )


def test_a_zone_without_power_is_unknown_by_either_of_its_answers(orin: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = reader(orin)
    orin.zone(1, "gpu-thermal", -256000)
    read = gpu.read()
    assert read.temperature_c is None
    assert read.unknown["temperature_c"] == "zone gpu-thermal says -256 °C: switched off"
    whole = Path.read_text

    def again(path: Path, *arguments: str | None, **named: str | None) -> str:
        if path.match("thermal_zone1/temp"):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return whole(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", again)
    assert gpu.read().unknown["temperature_c"] == "temp: switched off"


def test_a_process_without_files_left_is_not_a_broken_sensor(orin: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = reader(orin)

    def full(path: Path, *arguments: str | None, **named: str | None) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", full)
    with pytest.raises(OSError, match="Too many open files"):
        gpu.read()


def test_rails_are_added_only_where_none_feeds_the_others(orin: Tree) -> None:
    orin.ina3221(1, {1: ("VDD_GPU_SOC", 10000, 1000), 2: ("VDD_CPU_CV", 10000, 500), 3: ("NC", 10000, 9999)})
    orin.ina3221(3, {1: ("VIN_SYS_5V0", 5000, 800)})
    assert reader(orin).read().power_w == pytest.approx(19.0)
    orin.write("sys/class/hwmon/hwmon1/in2_enable", 0)
    assert reader(orin).read().power_w == pytest.approx(14.0)
    (orin.root / "sys/class/hwmon/hwmon3/curr1_input").unlink()
    read = reader(orin).read()
    assert (read.power_w, read.unknown["power_w"]) == (None, "curr1_input: there is none")


def test_over_current_counts_from_the_first_reading_and_names_what_happened_since_the_last(orin: Tree) -> None:
    gpu = reader(orin)
    assert (gpu.read().throttled, gpu.read().throttle_events) == ((), 0)
    orin.over_current(2, (1, 5, 40))
    read = gpu.read()
    assert (read.throttled, read.throttle_events) == (("under-voltage", "average over-current"), 3)
    assert (gpu.read().throttled, gpu.read().throttle_events) == ((), 3)


def test_heat_is_what_slows_the_gpu_not_the_fan_or_the_processors(orin: Tree) -> None:
    gpu = reader(orin)
    orin.cooling(0, "pwm-fan", 4)
    orin.cooling(1, "cpu-throttle-alert", 1)
    assert gpu.read().throttled == ()
    orin.cooling(10, "devfreq-17000000.gpu", 3)
    for _ in range(2):  # it lasts: one event
        read = gpu.read()
        assert (read.throttled, read.throttle_events) == (("devfreq-17000000.gpu",), 1)


def test_the_highest_clock_is_that_of_the_power_mode_not_what_heat_leaves_of_it(orin: Tree) -> None:
    gpu = reader(orin)
    limit = "sys/class/devfreq/17000000.gpu/max_freq"
    gpu.read()
    orin.write(limit, 510_000_000)
    assert gpu.read().clock_max_mhz == 918.0
    orin.power_modes(0)
    assert gpu.read().clock_max_mhz == 510.0
    orin.write(limit, 1_173_000_000)
    assert (gpu.read().clock_max_mhz, gpu.read().power_mode) == (1173.0, "MAXN")


def test_memory_of_a_jetson_is_the_boxs_counted_once(orin: Tree) -> None:
    read = Gauges(orin.root).read()
    (device,) = read.devices
    assert device.unified_memory
    total = 15 * GIB_KB * 1024
    assert (device.memory_total_bytes, device.memory_used_bytes) == (total, 4 * GIB_KB * 1024)
    assert (read.memory_total_bytes, read.memory_used_bytes) == (total, 4 * GIB_KB * 1024)


def test_energy_is_power_over_time(orin: Tree) -> None:
    now = 100.0
    gauges = Gauges(orin.root, clock=lambda: now)
    (device,) = gauges.read().devices
    assert (device.energy_j, device.unknown["energy_j"]) == (None, "needs two readings of power")
    now = 102.0
    orin.write("sys/class/hwmon/hwmon1/curr1_input", 4800)
    (device,) = gauges.read().devices
    assert device.energy_j == pytest.approx(2 * (12 + 24) / 2)
    assert "energy_j" not in device.unknown


def test_a_thor_is_read_by_both_its_stacks(tmp_path: Path) -> None:
    thor = tree(tmp_path, "thor-jp7")
    assert thor_gpc(thor.root) is not None
    fake = FakeNvml(
        FakeGpu("NVIDIA Thor", gpu_percent=73, errors=dict.fromkeys(THOR_UNSUPPORTED, NVMLError_NotSupported))
    )
    read = Gauges(thor.root, Nvml(fake)).read()
    (device,) = read.devices
    assert (device.source, device.utilization_percent) == ("jetson-thor", 73.0)
    assert (device.clock_mhz, device.clock_max_mhz) == (1386.0, 1575.0)
    assert (device.temperature_c, device.trip_c) == (45.0, 95.0)
    assert device.power_w == 52.5, "the INA238 at the input holds all rails already"
    assert device.memory_total_bytes == read.memory_total_bytes == 122 * GIB_KB * 1024
    assert (device.throttled, device.throttle_events) == ((), 0)
    assert device.unknown == {"power_mode": "status: there is none", "energy_j": "needs two readings of power"}


def test_a_thor_whose_nvml_says_why_its_clocks_are_down(tmp_path: Path) -> None:
    thor = tree(tmp_path, "thor-jp7")
    (device,) = Gauges(thor.root, Nvml(FakeNvml(FakeGpu(reasons=0x20, energy_mj=1)))).read().devices
    assert (device.throttled, device.throttle_events, device.energy_j) == (("heat",), 1, 0.0)


def test_a_thor_without_nvml_keeps_what_the_kernel_says(tmp_path: Path) -> None:
    (device,) = Gauges(tree(tmp_path, "thor-jp7").root).read().devices
    assert (device.utilization_percent, device.unknown["utilization_percent"]) == (None, "NVML is not read")
    assert device.power_w == 52.5
