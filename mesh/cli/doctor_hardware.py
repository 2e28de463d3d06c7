"""``mesh doctor``'s look at the hardware: what this box was recognised as, and which readings are unknown and why.

Not here: findings as such (``doctor``), sensors (``hardware``), which are imported only when asked for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hardware.devices import Box
    from hardware.readings import Readings

BETWEEN_S = 0.2
"""Shares and energy need two readings."""
NO_GPU = "no GPU found"


def look() -> tuple[Literal["ok", "warning"], str, str]:
    """(state, found, advice). A warning where there is a GPU that says nothing of itself."""
    from hardware.gauges import Gauges
    from hardware.nvml import Nvml

    gauges = Gauges(nvml=Nvml())
    gauges.read()
    time.sleep(BETWEEN_S)
    return judge(gauges.box, gauges.read())


def judge(box: Box, read: Readings) -> tuple[Literal["ok", "warning"], str, str]:
    """What to say of readings, however they were taken."""
    mute = [device for device in read.devices if device.utilization_percent is None and device.temperature_c is None]
    advice = "; ".join(_unknown(box, read))
    return ("warning" if mute else "ok"), f"{_box(box)}; {_devices(read)}", advice


def _box(box: Box) -> str:
    parts: list[str] = [box.platform]
    if box.board is not None:
        parts.append(box.board)
    if box.l4t is not None:
        parts.append(f"L4T {box.l4t}" + (f" (JetPack {box.jetpack})" if box.jetpack else ""))
    return ", ".join(parts)


def _devices(read: Readings) -> str:
    if not read.devices:
        return NO_GPU
    said = []
    for device in read.devices:
        memory = "unified memory" if device.unified_memory else "memory unknown"
        if not device.unified_memory and device.memory_total_bytes is not None:
            memory = f"{device.memory_total_bytes / 1024**3:.1f} GiB"
        mode = f", mode {device.power_mode}" if device.power_mode else ""
        said.append(f"{device.name} by {device.source} ({memory}{mode})")
    return ", ".join(said)


def _unknown(box: Box, read: Readings) -> list[str]:
    """Readings grouped by why they are unknown: one cause takes many at once."""
    groups: dict[tuple[str, str], list[str]] = {}
    of: list[tuple[str, dict[str, str]]] = [("box", {**box.unknown, **read.unknown})]
    of += [(device.name, dict(device.unknown)) for device in read.devices]
    for name, unknown in of:
        for reading, why in unknown.items():
            groups.setdefault((name, why), []).append(reading)
    return [f"{name}: {', '.join(readings)} unknown ({why})" for (name, why), readings in groups.items()]
