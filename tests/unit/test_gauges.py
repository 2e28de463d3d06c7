"""Readings of the box: sane on this machine, within the container's limits where there are any, each failing alone."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from hardware.energy import EnergyPerInference, Integral
from hardware.gauges import Gauges
from hardware.inline_runtime import Durations
from hardware.readings import Readings
from tests.hardware_trees import GIB_KB, Tree, tree

MIB = 1024**2
HOST_BYTES = 64 * GIB_KB * 1024


def cgroup(built: Tree, name: str, limit: str, used: int = 0, cache: int = 0) -> None:
    group = f"sys/fs/cgroup/{name}"
    built.write(f"{group}/memory.max", limit)
    built.write(f"{group}/memory.current", used)
    built.write(f"{group}/memory.stat", f"anon {used - cache}\nfile {cache}\ninactive_file {cache}")


@pytest.fixture
def host(tmp_path: Path) -> Tree:
    """A machine of 64 GiB, 24 of them in use, whose process lies in a group two deep."""
    built = tree(tmp_path, "desktop")
    built.write("proc/self/cgroup", "0::/pod/worker")
    return built


def memory(built: Tree) -> tuple[int | None, int | None]:
    read = Gauges(built.root).read()
    return read.memory_used_bytes, read.memory_total_bytes


def test_this_box_has_memory_at_once_and_a_processor_share_from_the_second_reading_on() -> None:
    gauges = Gauges()
    first = gauges.read()
    assert (first.cpu_percent, first.unknown["cpu_percent"]) == (None, "needs two readings")
    assert first.memory_total_bytes is not None
    assert first.memory_used_bytes is not None
    assert 0 < first.memory_used_bytes < first.memory_total_bytes <= psutil.virtual_memory().total
    while (share := gauges.read().cpu_percent) is None:  # the kernel counts in hundredths of a second
        pass
    assert 0 <= share <= 100


def test_memory_is_that_of_the_tightest_group_without_its_page_cache(host: Tree) -> None:
    cgroup(host, "pod", str(512 * MIB), used=300 * MIB, cache=100 * MIB)
    cgroup(host, "pod/worker", "max", used=50 * MIB)
    assert memory(host) == (200 * MIB, 512 * MIB)
    cgroup(host, "pod/worker", str(64 * MIB), used=50 * MIB, cache=10 * MIB)
    assert memory(host) == (40 * MIB, 64 * MIB)


@pytest.mark.parametrize("content", ["", "12:memory:/docker/x", "0::/../elsewhere"])
def test_without_a_group_the_whole_host_counts(host: Tree, content: str) -> None:
    host.write("proc/self/cgroup", content)
    assert memory(host) == (24 * GIB_KB * 1024, HOST_BYTES)


def test_an_unlimited_group_is_the_whole_host(host: Tree) -> None:
    cgroup(host, "pod/worker", "max")
    cgroup(host, "pod", str(2**62))
    assert memory(host)[1] == HOST_BYTES


@pytest.mark.parametrize("visible", ["memory/docker/x", "memory"])
def test_groups_of_version_1_limit_memory_too(host: Tree, visible: str) -> None:
    """In a container the path is the host's, and the group lies at the top."""
    host.write("proc/self/cgroup", "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n0::/")
    group = f"sys/fs/cgroup/{visible}"
    host.write(f"{group}/memory.limit_in_bytes", 512 * MIB)
    host.write(f"{group}/memory.usage_in_bytes", 300 * MIB)
    host.write(f"{group}/memory.stat", f"inactive_file 5\ntotal_inactive_file {100 * MIB}")
    assert memory(host) == (200 * MIB, 512 * MIB)
    host.write(f"{group}/memory.limit_in_bytes", 9223372036854771712)
    assert memory(host)[1] == HOST_BYTES


class Clocked:
    """Gauges of a tree, and the time they see."""

    def __init__(self, built: Tree) -> None:
        self.now = 100.0
        self.gauges = Gauges(built.root, clock=lambda: self.now)

    def after(self, seconds: float) -> Readings:
        self.now += seconds
        return self.gauges.read()


def test_the_processor_share_is_of_the_processors_this_process_may_use(host: Tree) -> None:
    host.write("proc/self/status", "Cpus_allowed_list:\t0,2-3")
    gauges = Clocked(host)
    gauges.after(0)
    host.ticks([(1050, 9050), (1100, 9000), (1050, 9050), (1050, 9050), *[(1000, 9100)] * 4])
    assert gauges.after(1).cpu_percent == pytest.approx(50.0)


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_counts_where_it_is_the_tighter_limit(tmp_path: Path, version: int) -> None:
    container = tree(tmp_path, "cpu-container")
    if version == 1:
        (container.root / "sys/fs/cgroup/cpu.max").unlink()
        container.write("proc/self/cgroup", "4:cpu,cpuacct:/docker/x")
        container.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", 150000)
        container.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)

    def used(microseconds: int) -> None:
        container.write("sys/fs/cgroup/cpu.stat", f"usage_usec {microseconds}")
        container.write("sys/fs/cgroup/cpuacct/cpuacct.usage", microseconds * 1000)

    gauges = Clocked(container)
    used(5_000_000)
    gauges.after(0)
    container.ticks([(1020, 9180)] * 8)
    used(6_200_000)
    assert gauges.after(1).cpu_percent == pytest.approx(80.0), "1.2 of 1.5 processors, while the host is 10 % busy"
    container.ticks([(1110, 9190)] * 8)
    used(6_300_000)
    assert gauges.after(1).cpu_percent == pytest.approx(90.0), "0.1 of 1.5, while others keep the host busy"
    used(99_000_000)
    container.ticks([(1120, 9280)] * 8)
    assert gauges.after(1).cpu_percent == 100.0


def test_a_container_is_read_within_its_limits(tmp_path: Path) -> None:
    read = Gauges(tree(tmp_path, "cpu-container").root).read()
    assert (read.memory_used_bytes, read.memory_total_bytes) == (200 * MIB, 512 * MIB)
    assert read.memory_pressure_percent == 12.25, "of the group, not of the host"
    assert (read.temperature_c, read.unknown["temperature_c"]) == (None, "no thermal zone like cpu-thermal")
    assert read.devices == ()


def test_a_desktop_reads_its_hottest_core(host: Tree) -> None:
    read = Gauges(host.root).read()
    assert (read.temperature_c, read.memory_pressure_percent) == (61.0, 1.5)


def test_a_box_without_a_gpu_is_its_own_device(tmp_path: Path) -> None:
    box = Tree(tmp_path)
    box.host(cores=4, total_kb=GIB_KB, available_kb=GIB_KB // 2)
    box.zone(0, "cpu-thermal", 67000, {"passive": 80000, "critical": 110000})
    box.cooling(0, "cpufreq-cpu0", 2)
    for n, clock in enumerate((1_200_000, 1_800_000)):
        box.write(f"sys/devices/system/cpu/cpufreq/policy{n}/scaling_cur_freq", clock)
        box.write(f"sys/devices/system/cpu/cpufreq/policy{n}/cpuinfo_max_freq", 2_000_000)
    device = Gauges(box.root).read().processor
    assert device is not None
    assert (device.temperature_c, device.trip_c) == (67.0, 80.0)
    assert (device.clock_mhz, device.clock_max_mhz, device.throttled) == (1500.0, 2000.0, ("cpufreq-cpu0",))


def test_every_source_fails_alone(host: Tree) -> None:
    assert Gauges(host.root).read().memory_total_bytes == HOST_BYTES
    host.write("proc/meminfo", "MemTotal: many kB")
    host.write("proc/stat", "intr 1")
    host.write("sys/class/hwmon/hwmon0/temp2_input", "hot")
    read = Gauges(host.root).read()
    assert read.unknown == {
        "memory_used_bytes": "meminfo: names no total or no available memory",
        "memory_total_bytes": "meminfo: names no total or no available memory",
        "memory_pressure_percent": "meminfo: names no total or no available memory",
        "cpu_percent": "stat: names no processor",
    }
    assert (read.memory_total_bytes, read.cpu_percent, read.temperature_c) == (None, None, 58.0)


def test_an_empty_root_is_all_unknown_and_no_error(tmp_path: Path) -> None:
    read = Gauges(tmp_path).read()
    values = (read.cpu_percent, read.memory_used_bytes, read.memory_total_bytes, read.temperature_c)
    assert (values, read.memory_pressure_percent) == ((None,) * 4, None)
    assert len(read.unknown) == 5


def test_power_is_integrated_but_not_over_silence() -> None:
    integral = Integral()
    assert integral.add(0.0, 10.0) is None
    assert integral.add(1.0, 20.0) == pytest.approx(15.0)
    assert integral.add(20.0, 20.0) == pytest.approx(15.0), "nobody knows what 19 seconds cost"
    assert integral.add(21.0, 20.0) == pytest.approx(35.0)
    assert integral.add(22.0, None) is None
    assert integral.add(23.0, 20.0) == pytest.approx(35.0)
    assert integral.add(24.0, 0.0) == pytest.approx(45.0)


def test_energy_per_inference_is_that_of_the_last_minute() -> None:
    energy = EnergyPerInference()
    seen = [energy.add(float(t), 10.0 * t, 5 * t) for t in range(100)]
    assert seen[0] is None
    assert seen[1:] == [2.0] * 99
    later = [energy.add(float(t), 990 + 40.0 * (t - 99), 495 + 5 * (t - 99)) for t in range(100, 170)]
    assert later[0] is not None
    assert 2.0 < later[0] < 3.0
    assert later[-1] == pytest.approx(8.0), "the first minute is forgotten"


def test_energy_per_inference_is_unknown_rather_than_wrong() -> None:
    energy = EnergyPerInference()
    energy.add(0.0, 0.0, 0)
    assert energy.add(1.0, 50.0, 0) is None, "nothing ran"
    assert energy.add(2.0, 100.0, 50) == 2.0
    assert energy.add(3.0, None, 60) is None
    assert energy.add(4.0, 100.0, 70) is None, "it begins again"
    assert energy.add(5.0, 120.0, 80) == 2.0
    assert energy.add(6.0, 0.0, 90) is None, "the counter began again"
    assert energy.add(30.0, 90.0, 95) is None, "a silence"


def test_durations_skip_the_warm_up_follow_changes_and_are_forgotten() -> None:
    durations = Durations()
    shapes = ("m", ((1, 16),))
    durations.learn(shapes, 5.0)
    assert durations.expected(shapes) == float("inf")
    durations.learn(shapes, 1.0)
    assert durations.expected(shapes) == 1.0
    durations.learn(shapes, 2.0)
    assert 1.0 < durations.expected(shapes) < 2.0
    for n in range(2000):
        durations.learn(("other", ((n,),)), 1.0)
    assert durations.expected(shapes) == float("inf")
    durations.learn(shapes, 5.0)
    durations.learn(shapes, 1.0)
    durations.forget("m")
    assert durations.expected(shapes) == float("inf")
