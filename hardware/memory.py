"""The box's memory: used, total and pressure, within the tightest control group.

On a Jetson the GPU's share is in it. Not here: memory that a GPU has of its own, one process's (``process_memory``).
"""

from __future__ import annotations

from pathlib import Path

from hardware.cgroup import ControlGroups
from hardware.sysfs import Unknown, known, text


def memory_bytes(root: Path, groups: ControlGroups) -> tuple[int, int]:
    """(used, total) of the box, or of the control group that limits it more. Raises ``Unknown``.

    Used is what could not be had without swapping.
    """
    used, total = _host(root)
    group = groups.memory(total)
    return (group.used_bytes, group.limit_bytes) if group else (used, total)


def pressure_percent(root: Path, groups: ControlGroups) -> float:
    """Share of the last 10 s in which something waited for memory, in the group that limits it. Raises ``Unknown``."""
    group = groups.memory(_host(root)[1])
    said = known(group.group / "memory.pressure") if group else ""
    for line in (said or text(root / "proc/pressure/memory")).splitlines():
        kind, *averages = line.split()
        if kind == "some":
            return float(dict(pair.split("=") for pair in averages)["avg10"])
    raise Unknown("pressure: names no average")


def _host(root: Path) -> tuple[int, int]:
    lines = dict(line.split(":", 1) for line in text(root / "proc/meminfo").splitlines() if ":" in line)
    try:
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        raise Unknown("meminfo: names no total or no available memory") from None
    return total - available, total
