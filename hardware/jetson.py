"""A Jetson's GPU by the kernel's files: nvgpu's on an Orin, the clock's alone on a Thor (NVML knows the rest there).

The module's power and the over-current counters count as the GPU's. Not here: memory, which is the box's (``gauges``),
and which board it is (``devices``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from hardware.hwmon import OverCurrent, Rails
from hardware.readings import DeviceReadings
from hardware.sysfs import Fields, Unknown, known, number, text
from hardware.zones import Cooling, Zones

ZONES = ("gpu-thermal", "tj-thermal")
"""The GPU's own sensor; boards without one report the hottest of the chip."""
_HEAT = ("gpu", "ga10b", "gv11b", "gp10b", "hot-surface")
"""Words in the types of cooling devices that slow the GPU."""
_LOAD_PATHS = (
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
)
"""Where the load was seen on kernels whose devfreq folder leads nowhere."""


class JetsonGpu:
    """``devfreq`` is the folder that ``devices.nvgpu`` or ``devices.thor_gpc`` found."""

    def __init__(self, root: Path, devfreq: Path, name: str, source: Literal["jetson-orin", "jetson-thor"]) -> None:
        self._root = root
        self._devfreq = devfreq
        self._name = name
        self._source = source
        self._zones = Zones(root)
        self._cooling = Cooling(root, _HEAT)
        self._rails = Rails(root)
        self._supply = _SupplyEvents(OverCurrent(root))
        self._heat_events = 0
        self._hot = False
        self._clock_max: tuple[str | None, float] = (None, 0.0)

    def read(self) -> DeviceReadings:
        fields = Fields()
        mode = fields.ask("power_mode", lambda: _power_mode(self._root))
        throttled, events = self._throttling(fields)
        return DeviceReadings(
            self._name,
            self._source,
            utilization_percent=fields.ask("utilization_percent", self._load),
            unified_memory=True,
            temperature_c=fields.ask("temperature_c", lambda: self._zones.temperature_c(*ZONES)),
            trip_c=fields.ask("trip_c", lambda: self._zones.trip_c(*ZONES)),
            power_w=fields.ask("power_w", self._rails.watts),
            clock_mhz=fields.ask("clock_mhz", lambda: number(self._devfreq / "cur_freq") / 1e6),
            clock_max_mhz=fields.ask("clock_max_mhz", lambda: self._highest_clock(mode)),
            throttled=throttled,
            throttle_events=events,
            power_mode=mode,
            unknown=fields.unknown,
        )

    def _load(self) -> float:
        if self._source == "jetson-thor":
            raise Unknown("only NVML knows it")
        path = self._devfreq / "device/load"
        if not path.exists():
            path = next((self._root / p for p in _LOAD_PATHS if (self._root / p).exists()), path)
        return number(path) / 10

    def _highest_clock(self, mode: str | None) -> float:
        """The highest limit seen in this power mode: the kernel lowers ``max_freq`` itself when the board is hot."""
        now = number(self._devfreq / "max_freq") / 1e6
        before = self._clock_max[1] if self._clock_max[0] == mode else 0.0
        self._clock_max = (mode, max(now, before))
        return self._clock_max[1]

    def _throttling(self, fields: Fields) -> tuple[tuple[str, ...] | None, int | None]:
        """What holds clocks down now, by heat or by the supply, and how often either began."""
        why = Fields()
        heat = why.ask("heat", self._cooling.active)
        supply = why.ask("supply", self._supply.read)
        if heat is None and supply is None:
            fields.unknown["throttled"] = fields.unknown["throttle_events"] = "; ".join(why.unknown.values())
            return None, None
        self._heat_events += bool(heat) and not self._hot
        self._hot = bool(heat)
        return (heat or ()) + (supply or ()), self._heat_events + self._supply.total


class _SupplyEvents:
    """Over-current events since the first reading. The kernel counts from boot, and they are over in milliseconds."""

    def __init__(self, counters: OverCurrent) -> None:
        self._counters = counters
        self._last: dict[str, int] | None = None
        self.total = 0

    def read(self) -> tuple[str, ...]:
        """Those that happened since the last reading. Raises ``Unknown``."""
        now = self._counters.counts()
        before, self._last = self._last or now, now
        new = {name: count - before.get(name, count) for name, count in now.items() if count > before.get(name, count)}
        self.total += sum(new.values())
        return tuple(new)


def _power_mode(root: Path) -> str:
    """nvpmodel's mode: its name where the board's table is at hand, else its number."""
    status = text(root / "var/lib/nvpmodel/status")
    found = re.search(r"pmode:\s*(\d+)", status)
    if found is None:
        raise Unknown(f"nvpmodel's status says {status[:20]!r}")
    mode = int(found[1])
    table = known(root / "etc/nvpmodel.conf")
    named = re.search(rf"^<\s*POWER_MODEL\s+ID={mode}\s+NAME=(\S+)\s*>", table, re.MULTILINE)
    return named[1] if named else str(mode)
