"""Readings of the box: sane on this machine, and within the container's limit where there is one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from hardware.gauges import Gauges
from hardware.inline_runtime import Durations

MIB = 1024**2


def cgroup(root: Path, name: str, limit: str, used: int = 0, cache: int = 0) -> None:
    group = root / name
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - cache}\nfile {cache}\ninactive_file {cache}\n")


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    path = tmp_path / "membership"
    path.write_text("0::/pod/worker\n")
    return path


def test_the_first_reading_has_no_processor_share_and_later_ones_do() -> None:
    gauges = Gauges()
    first = gauges.read()
    assert first.cpu_percent is None
    assert first.memory_total_bytes is not None
    assert first.memory_used_bytes is not None
    assert 0 < first.memory_used_bytes < first.memory_total_bytes <= psutil.virtual_memory().total
    while (share := gauges.read().cpu_percent) is None:  # the kernel counts in hundredths of a second
        pass
    assert 0 <= share <= 100


def test_memory_is_that_of_the_tightest_group_without_its_page_cache(tmp_path: Path, membership: Path) -> None:
    cgroup(tmp_path / "cg", "pod", str(512 * MIB), used=300 * MIB, cache=100 * MIB)
    cgroup(tmp_path / "cg", "pod/worker", "max", used=50 * MIB)
    readings = Gauges(tmp_path / "cg", membership).read()
    assert (readings.memory_used_bytes, readings.memory_total_bytes) == (200 * MIB, 512 * MIB)
    cgroup(tmp_path / "cg", "pod/worker", str(64 * MIB), used=50 * MIB, cache=10 * MIB)
    readings = Gauges(tmp_path / "cg", membership).read()
    assert (readings.memory_used_bytes, readings.memory_total_bytes) == (40 * MIB, 64 * MIB)


@pytest.mark.parametrize("content", [None, "", "12:memory:/docker/x\n"])
def test_without_a_group_the_whole_host_counts(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "membership"
    if content is not None:
        path.write_text(content)
    assert Gauges(tmp_path / "cg", path).read().memory_total_bytes == psutil.virtual_memory().total


def test_an_unlimited_group_is_the_whole_host(tmp_path: Path, membership: Path) -> None:
    cgroup(tmp_path / "cg", "pod/worker", "max")
    cgroup(tmp_path / "cg", "pod", str(2**62))
    assert Gauges(tmp_path / "cg", membership).read().memory_total_bytes == psutil.virtual_memory().total


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
