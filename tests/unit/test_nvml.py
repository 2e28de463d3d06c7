"""GPUs by NVML: every call alone, refusals remembered, counters as differences; on a stand-in for its binding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hardware.fakes.nvml import (
    FakeGpu,
    FakeNvml,
    NVMLError,
    NVMLError_FunctionNotFound,
    NVMLError_GpuIsLost,
    NVMLError_LibraryNotFound,
    NVMLError_NotSupported,
)
from hardware.gauges import Gauges
from hardware.nvml import REASONS, REOPEN_EVERY, Nvml
from hardware.readings import DeviceReadings
from hardware.sysfs import Unknown
from tests.hardware_trees import tree


def test_a_desktop_gpu_is_read_whole() -> None:
    nvml = Nvml(FakeNvml(FakeGpu("NVIDIA GeForce RTX 3060")))
    assert nvml.read() == [
        DeviceReadings(
            "NVIDIA GeForce RTX 3060",
            "nvml",
            utilization_percent=50.0,
            memory_used_bytes=2 * 1024**3,
            memory_total_bytes=8 * 1024**3,
            temperature_c=60.0,
            trip_c=93.0,
            power_w=100.0,
            clock_mhz=1800,
            clock_max_mhz=2100,
            throttled=(),
            throttle_events=0,
            energy_j=0.0,
            unknown={},
        )
    ]


def test_what_is_not_supported_is_asked_once_and_hides_nothing_else() -> None:
    refused = ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetMemoryInfo"]
    fake = FakeNvml(FakeGpu(errors=dict.fromkeys(refused, NVMLError_NotSupported)))
    nvml = Nvml(fake)
    for _ in range(3):
        (gpu,) = nvml.read()
        assert (gpu.power_w, gpu.energy_j, gpu.memory_used_bytes) == (None, None, None)
        names = {"power_w", "energy_j", "memory_used_bytes", "memory_total_bytes"}
        assert gpu.unknown == dict.fromkeys(names, "NVML: Not Supported")
        assert gpu.utilization_percent == 50.0
    assert {fake.calls[name] for name in refused} == {1}
    assert fake.calls["nvmlDeviceGetUtilizationRates"] == 3


def test_a_board_that_supports_nothing_is_named_all_the_same() -> None:
    every = [name for name in dir(FakeNvml) if name.startswith("nvmlDeviceGet") and not name.endswith("Index")]
    refused = set(every) - {"nvmlDeviceGetCount", "nvmlDeviceGetName"}
    errors: dict[str, type[NVMLError]] = dict.fromkeys(refused, NVMLError_NotSupported)
    (gpu,) = Nvml(FakeNvml(FakeGpu("Orin (nvgpu)", errors=errors))).read()
    assert gpu.name == "Orin (nvgpu)"
    readings = {name: getattr(gpu, name) for name in DeviceReadings.__slots__}
    assert {name for name, value in readings.items() if value is None} == {*gpu.unknown, "power_mode"}


def test_an_error_that_passes_is_asked_again() -> None:
    gpu = FakeGpu(errors={"nvmlDeviceGetPowerUsage": type("NVMLError_Unknown", (FakeNvml.NVMLError,), {})})
    nvml = Nvml(FakeNvml(gpu))
    assert nvml.read()[0].unknown == {"power_w": "NVML: Unknown Error"}
    gpu.errors.clear()
    assert nvml.read()[0].power_w == 100.0


def test_the_temperature_is_had_from_drivers_and_bindings_old_and_new() -> None:
    old_driver = FakeNvml(FakeGpu(errors={"nvmlDeviceGetTemperatureV": NVMLError_FunctionNotFound}))
    nvml = Nvml(old_driver)
    assert [nvml.read()[0].temperature_c for _ in range(2)] == [60.0, 60.0]
    assert old_driver.calls["nvmlDeviceGetTemperatureV"] == 1
    fake = FakeNvml(FakeGpu(temperature=61))
    old_binding = SimpleNamespace(
        **{name: getattr(fake, name) for name in dir(fake) if name.startswith(("nvml", "NVML"))}
    )
    del old_binding.nvmlDeviceGetTemperatureV
    assert Nvml(old_binding).read()[0].temperature_c == 61.0
    assert fake.calls["nvmlDeviceGetTemperature"] == 1


@pytest.mark.parametrize(("bit", "name"), REASONS.items())
def test_reasons_that_hold_clocks_down_are_named(bit: int, name: str) -> None:
    (gpu,) = Nvml(FakeNvml(FakeGpu(reasons=bit | 0x1 | 0x2 | 0x10 | 0x100))).read()
    assert gpu.throttled == (name,)


def test_throttling_counts_when_it_begins() -> None:
    gpu = FakeGpu()
    nvml = Nvml(FakeNvml(gpu))
    counts = []
    for gpu.reasons in (0x1, 0x20, 0x24, 0x0, 0x40):
        counts.append(nvml.read()[0].throttle_events)
    assert counts == [0, 1, 1, 1, 2]


def test_energy_counts_from_the_first_reading_and_survives_a_new_counter() -> None:
    gpu = FakeGpu(energy_mj=5_000)
    nvml = Nvml(FakeNvml(gpu))
    joules = []
    for gpu.energy_mj in (5_000, 7_500, 1_000, 2_000):
        joules.append(nvml.read()[0].energy_j)
    assert joules == [0.0, 2.5, 3.5, 4.5]


def test_a_lost_gpu_is_looked_for_again_later_and_hides_no_other() -> None:
    lost, sound = FakeGpu("lost", errors={"nvmlDeviceGetPowerUsage": NVMLError_GpuIsLost}), FakeGpu("sound")
    fake = FakeNvml(lost, sound)
    nvml = Nvml(fake)
    first, second = nvml.read()
    assert (first.power_w, first.unknown["power_w"], second.power_w) == (None, "NVML: GPU is lost", 100.0)
    lost.errors.clear()
    for _ in range(REOPEN_EVERY):
        with pytest.raises(Unknown, match="a GPU is lost"):
            nvml.read()
    assert [gpu.power_w for gpu in nvml.read()] == [100.0, 100.0]
    nvml.close()
    assert fake.initialised == 0


def test_a_missing_library_is_no_error_and_may_come_later() -> None:
    fake = FakeNvml(FakeGpu(), init_error=NVMLError_LibraryNotFound)
    nvml = Nvml(fake)
    for _ in range(REOPEN_EVERY):
        with pytest.raises(Unknown, match="Library Not Found"):
            nvml.names()
    assert fake.calls["nvmlInit"] == 1
    fake.init_error = None
    with pytest.raises(Unknown):
        nvml.names()
    assert nvml.names() == ["NVIDIA Fake"]


def test_nvml_without_gpus_is_let_go() -> None:
    fake = FakeNvml()
    with pytest.raises(Unknown, match="NVML lists no GPU"):
        Nvml(fake).read()
    assert fake.initialised == 0


def test_a_gpu_whose_nvml_is_hidden_is_shown_with_the_reason(tmp_path: Path) -> None:
    nvml = Nvml(FakeNvml(init_error=NVMLError_LibraryNotFound))
    (gpu,) = Gauges(tree(tmp_path, "desktop").root, nvml).read().devices
    assert gpu.name == "NVIDIA GeForce RTX 3060"
    assert set(gpu.unknown.values()) == {"NVML: NVML Shared Library Not Found", "power is unknown"}
    assert gpu.utilization_percent is None


def test_the_real_binding_without_a_driver_says_what_is_missing() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(Unknown, match=r"NVML: NVML Shared Library Not Found|NVML: Driver Not Loaded"):
            Nvml().names()
    else:
        pynvml.nvmlShutdown()
        pytest.skip("there is a driver")


def test_the_stand_in_has_only_names_that_the_real_binding_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in names if not hasattr(pynvml, name)] == []
    errors = [
        error.__name__ for error in FakeNvml.NVMLError.__subclasses__() if error.__module__ == FakeNvml.__module__
    ]
    assert [name for name in errors if not hasattr(pynvml, name)] == []
    for bit, suffix in ((0x04, "SwPowerCap"), (0x08, "HwSlowdown"), (0x20, "SwThermalSlowdown")):
        assert getattr(pynvml, f"nvmlClocksEventReason{suffix}") == bit
