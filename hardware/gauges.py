"""Readings of the box and its accelerators, as far as they give any, within this process's control groups.

``None`` is unknown, never zero, with a reason. Every source is asked alone and fails alone. Reads files and drivers
that may be slow or hang: call it from a thread of its own, always the same one, about once a second. Not here: sending
readings anywhere, what heat will do (``thermal``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardware.cgroup import ControlGroups
from hardware.devices import Box, detect, nvgpu, thor_gpc
from hardware.energy import Integral
from hardware.jetson import JetsonGpu
from hardware.memory import memory_bytes, pressure_percent
from hardware.nvml import Nvml
from hardware.processor import Processor
from hardware.readings import DeviceReadings, Readings
from hardware.sysfs import Fields, Unknown

_READ_BY_NVML = (
    "utilization_percent",
    "memory_used_bytes",
    "memory_total_bytes",
    "temperature_c",
    "power_w",
    "clock_mhz",
    "clock_max_mhz",
    "throttled",
    "throttle_events",
    "energy_j",
)
_NVML_ON_THOR = ("utilization_percent", "temperature_c", "trip_c", "power_w", "clock_mhz", "energy_j")
"""What NVML may add to the kernel's files there: never memory, which is the box's."""


class Gauges:
    """Keeps what lies between two readings: processor times, counters. ``nvml`` None reads no NVML."""

    def __init__(
        self, root: Path = Path("/"), nvml: Nvml | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._nvml = nvml
        self._clock = clock
        self._groups = ControlGroups(root)
        self._processor = Processor(root, self._groups)
        self._box: Box | None = None
        self._jetson: JetsonGpu | None = None
        self._energy: dict[int, Integral] = {}

    @property
    def box(self) -> Box:
        """What this box is, looked up at the first use."""
        if self._box is None:
            self._box = detect(self._root, self._nvml)
            if (thor := thor_gpc(self._root)) is not None:
                self._jetson = JetsonGpu(self._root, thor, self._box.accelerators[0].name, "jetson-thor")
            elif (gpu := nvgpu(self._root)) is not None:
                self._jetson = JetsonGpu(self._root, gpu, self._box.accelerators[0].name, "jetson-orin")
        return self._box

    def read(self) -> Readings:
        """Raises ``OSError`` only when this process has no file or memory left."""
        at_s, fields = self._clock(), Fields()
        memory = fields.ask("memory_used_bytes", lambda: memory_bytes(self._root, self._groups))
        if memory is None:
            fields.unknown["memory_total_bytes"] = fields.unknown["memory_used_bytes"]
        used, total = memory or (None, None)
        cpu_percent = fields.ask("cpu_percent", lambda: self._processor.percent(at_s))
        devices = self._devices(used, total, fields)
        return Readings(
            at_s,
            cpu_percent=cpu_percent,
            memory_used_bytes=used,
            memory_total_bytes=total,
            memory_pressure_percent=fields.ask(
                "memory_pressure_percent", lambda: pressure_percent(self._root, self._groups)
            ),
            temperature_c=fields.ask("temperature_c", self._processor.temperature_c),
            devices=tuple(self._with_energy(index, at_s, device) for index, device in enumerate(devices)),
            processor=None if devices else self._processor.device(cpu_percent),
            unknown=fields.unknown,
        )

    def _devices(self, used: int | None, total: int | None, fields: Fields) -> list[DeviceReadings]:
        accelerators = self.box.accelerators
        if self._jetson is not None:
            reading = self._jetson.read()
            if self.box.platform == "jetson-thor":
                reading = _filled(reading, self._nvml)
            unknown = dict(reading.unknown)
            if total is None:
                unknown |= dict.fromkeys(
                    ("memory_used_bytes", "memory_total_bytes"), fields.unknown["memory_used_bytes"]
                )
            return [replace(reading, memory_used_bytes=used, memory_total_bytes=total, unknown=unknown)]
        try:
            return _read(self._nvml)
        except Unknown as why:  # not one GPU may be there, or all of them hidden
            unknown = dict.fromkeys(_READ_BY_NVML, str(why))
            return [DeviceReadings(accelerator.name, "nvml", unknown=unknown) for accelerator in accelerators]

    def _with_energy(self, index: int, at_s: float, reading: DeviceReadings) -> DeviceReadings:
        """Integrate the power of a device that keeps no counter."""
        if reading.energy_j is not None:
            return reading
        joules = self._energy.setdefault(index, Integral()).add(at_s, reading.power_w)
        unknown = {name: why for name, why in reading.unknown.items() if name != "energy_j"}
        if joules is None:
            unknown["energy_j"] = "needs two readings of power" if reading.power_w is not None else "power is unknown"
        return replace(reading, energy_j=joules, unknown=unknown)


def _read(nvml: Nvml | None) -> list[DeviceReadings]:
    """At least one. Raises ``Unknown``."""
    if nvml is None:
        raise Unknown("NVML is not read")
    return nvml.read()


def _filled(reading: DeviceReadings, nvml: Nvml | None) -> DeviceReadings:
    """A Thor's reading with NVML's word for what the kernel's files leave out."""
    try:
        other = _read(nvml)[0]
    except Unknown as why:
        return replace(reading, unknown={**reading.unknown, "utilization_percent": str(why)})
    gained: dict[str, Any] = {name: getattr(other, name) for name in _NVML_ON_THOR if getattr(reading, name) is None}
    for name in ("throttled", "throttle_events"):
        ours, theirs = getattr(reading, name), getattr(other, name)
        gained[name] = theirs if ours is None else ours if theirs is None else ours + theirs
    unknown = {name: other.unknown.get(name, why) for name, why in reading.unknown.items()}
    return replace(reading, **gained, unknown={n: why for n, why in unknown.items() if gained.get(n) is None})
