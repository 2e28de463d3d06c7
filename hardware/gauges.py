"""Readings of the box, as far as it gives any: processor, memory within the container's limit, temperature.

``None`` is unknown, never zero. Cheap enough for once a second; reads files, so call it off the loop. Not here: GPU
readings, sending them anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_TEMPERATURE_SENSORS = (
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu_thermal",
    "cpu-thermal",
    "tj-thermal",
    "soc_thermal",
    "acpitz",
)
"""Names under which kernels report the processor's temperature, the most exact first."""


@dataclass(frozen=True, slots=True)
class Readings:
    cpu_percent: float | None = None
    """Busy share of all cores since the last reading, 0 to 100."""
    memory_used_bytes: int | None = None
    """Memory that could not be had without swapping."""
    memory_total_bytes: int | None = None
    temperature_c: float | None = None


class Gauges:
    """Keeps the processor times between two readings."""

    def __init__(
        self, cgroup_root: Path = Path("/sys/fs/cgroup"), cgroup_file: Path = Path("/proc/self/cgroup")
    ) -> None:
        self._root = cgroup_root
        self._membership = cgroup_file
        self._times: tuple[float, float] | None = None

    def read(self) -> Readings:
        used, total = self._memory()
        return Readings(self._cpu_percent(), used, total, _temperature())

    def _cpu_percent(self) -> float | None:
        times = psutil.cpu_times()
        # guest time is counted in user time already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        last, self._times = self._times, (busy, total)
        if last is None or total <= last[1]:
            return None
        return float(min(100.0, max(0.0, 100.0 * (busy - last[0]) / (total - last[1]))))

    def _memory(self) -> tuple[int, int]:
        host = psutil.virtual_memory()
        used, total = host.total - host.available, host.total
        for group in self._groups():
            limit = _number(group / "memory.max")
            current = _number(group / "memory.current")
            if limit is not None and current is not None and limit < total:
                used, total = max(0, current - _inactive_file(group)), limit
        return used, total

    def _groups(self) -> list[Path]:
        """This process's control group and those above it (version 2), as far as they are visible."""
        try:
            lines = self._membership.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        own = next((line[3:] for line in lines if line.startswith("0::")), None)
        if own is None:
            return []
        group = self._root / own.lstrip("/")
        return [group, *(parent for parent in group.parents if parent.is_relative_to(self._root))]


def _number(path: Path) -> int | None:
    """The number in a control file; None where there is none, or it says "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _inactive_file(group: Path) -> int:
    """Page cache the kernel gives back under pressure; it is counted in memory.current."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def _temperature() -> float | None:
    """The hottest reading of the first sensor known."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for name in _TEMPERATURE_SENSORS:
        readings = [entry.current for entry in sensors.get(name, ()) if 0 < entry.current < 150]
        if readings:
            return float(max(readings))
    return None
