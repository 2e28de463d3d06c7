"""What ``mesh doctor`` says of hardware: what the box is, and why a reading is missing."""

from __future__ import annotations

from pathlib import Path

from hardware.fakes.nvml import FakeGpu, FakeNvml, NVMLError_LibraryNotFound, NVMLError_NotSupported
from hardware.gauges import Gauges
from hardware.nvml import Nvml
from mesh.cli.doctor_hardware import judge, look
from tests.hardware_trees import tree


def said(gauges: Gauges) -> tuple[str, str, str]:
    gauges.read()
    return judge(gauges.box, gauges.read())


def test_a_jetson_is_named_with_its_software_and_its_mode(tmp_path: Path) -> None:
    state, found, advice = said(Gauges(tree(tmp_path, "orin-jp6").root))
    assert state == "ok"
    assert found == (
        "jetson-orin, NVIDIA Jetson Orin NX Engineering Reference Developer Kit, L4T 36.4.7 (JetPack 6.2.1); "
        "ga10b by jetson-orin (unified memory, mode 15W)"
    )
    assert advice == "box: cpu_percent unknown (needs two readings)", "the tree's clock stands still"


def test_a_gpu_that_hides_some_readings_is_fine_and_they_are_named(tmp_path: Path) -> None:
    refused = dict.fromkeys(("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage"), NVMLError_NotSupported)
    nvml = Nvml(FakeNvml(FakeGpu("RTX", errors={**refused})))
    state, found, advice = said(Gauges(tree(tmp_path, "desktop").root, nvml))
    assert (state, found) == ("ok", "nvidia, Example Tower 9; RTX by nvml (memory unknown)")
    assert "RTX: memory_used_bytes, memory_total_bytes, power_w unknown (NVML: Not Supported)" in advice


def test_a_gpu_that_says_nothing_is_a_warning(tmp_path: Path) -> None:
    nvml = Nvml(FakeNvml(init_error=NVMLError_LibraryNotFound))
    state, found, advice = said(Gauges(tree(tmp_path, "desktop").root, nvml))
    assert (state, found) == ("warning", "nvidia, Example Tower 9; NVIDIA GeForce RTX 3060 by nvml (memory unknown)")
    assert "NVML: NVML Shared Library Not Found" in advice


def test_this_box_is_looked_at() -> None:
    state, found, advice = look()
    assert state in ("ok", "warning")
    assert found.startswith(("cpu", "nvidia", "jetson"))
    assert "cpu_percent" not in advice
