"""The processors this process may use: how busy, how hot, and whether heat holds their clocks down.

Not here: memory (``memory``), GPUs, what heat will do (``thermal``).
"""

from __future__ import annotations

import re
from pathlib import Path

from hardware.cgroup import ControlGroups
from hardware.hwmon import processor_c
from hardware.readings import DeviceReadings
from hardware.sysfs import Fields, Unknown, folders, known, number, text
from hardware.zones import Cooling, Zones

_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_ZONES = ("cpu-thermal", "cpu_thermal", "tj-thermal", "soc_thermal", "x86_pkg_temp")
"""Names under which kernels report the processor's temperature, the most exact first."""
_BOARD = "acpitz"
"""Some place on an x86 board, for want of better; its trip points are not the processor's."""
_HEAT = ("cpufreq", "cpu-throttle", "Processor")
"""Words in the types of cooling devices that slow processors."""
_MOST_POLICIES = 8
"""Clusters or cores whose clock is read: enough to see all of them slowed."""


class Processor:
    """Keeps the times between two readings."""

    def __init__(self, root: Path, groups: ControlGroups) -> None:
        self._root = root
        self._groups = groups
        self._zones = Zones(root)
        self._cooling = Cooling(root, _HEAT)
        self._policies = folders(root / "sys/devices/system/cpu/cpufreq", "policy")[:_MOST_POLICIES]
        self._ticks: tuple[int, int] | None = None
        self._at_s = 0.0
        self._used: dict[Path, float] = {}

    def percent(self, at_s: float) -> float:
        """Busy share since the last call, of the processors or of a quota: whichever is exhausted first counts.

        Raises ``Unknown``, at the first call too.
        """
        elapsed, self._at_s = at_s - self._at_s, at_s
        now = _ticks(text(self._root / "proc/stat"), _allowed(known(self._root / "proc/self/status")))
        last, self._ticks = self._ticks, now
        quotas, before = self._groups.quotas(), self._used
        self._used = {quota.group: quota.used_s for quota in quotas}
        shares = [] if last is None or now[1] <= last[1] else [(now[0] - last[0]) / (now[1] - last[1])]
        if last is not None and elapsed > 0:
            shares += [(q.used_s - before[q.group]) / (elapsed * q.cores) for q in quotas if q.group in before]
        if not shares:
            raise Unknown("needs two readings")
        return 100.0 * min(1.0, max(0.0, *shares))

    def temperature_c(self) -> float:
        """Raises ``Unknown``."""
        try:
            return processor_c(self._root, _CHIPS)
        except Unknown:
            return self._zones.temperature_c(*_ZONES, _BOARD)

    def device(self, cpu_percent: float | None) -> DeviceReadings:
        """The processors as the device that they are on a box without a GPU; the temperature is the trip point's."""
        fields = Fields()
        return DeviceReadings(
            "cpu",
            "cpu",
            utilization_percent=cpu_percent,
            temperature_c=fields.ask("temperature_c", lambda: self._zones.temperature_c(*_ZONES)),
            trip_c=fields.ask("trip_c", lambda: self._zones.trip_c(*_ZONES)),
            clock_mhz=fields.ask("clock_mhz", lambda: self._clock("scaling_cur_freq")),
            clock_max_mhz=fields.ask("clock_max_mhz", lambda: self._clock("cpuinfo_max_freq")),
            throttled=fields.ask("throttled", self._cooling.active),
            unknown=fields.unknown,
        )

    def _clock(self, name: str) -> float:
        if not self._policies:
            raise Unknown("no cpufreq driver")
        return sum(number(policy / name) for policy in self._policies) / len(self._policies) / 1000


def _ticks(stat: str, allowed: set[str]) -> tuple[int, int]:
    """(busy, total) clock ticks of the processors named, of all if none is among them. Raises ``Unknown``."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    ours = [line for line in lines if line[0] in allowed] or lines[:1]
    if not ours:
        raise Unknown("stat: names no processor")
    busy = total = 0
    for _, user, nice, system, idle, iowait, irq, softirq, steal, *_guest in ours:  # guest is part of user
        working = int(user) + int(nice) + int(system) + int(irq) + int(softirq) + int(steal)
        busy += working
        total += working + int(idle) + int(iowait)
    return busy, total


def _allowed(status: str) -> set[str]:
    """The processors that this process may run on, as /proc/stat names them: "0-3,6" in /proc/self/status."""
    found = re.search(r"^Cpus_allowed_list:\s*([\d,-]+)$", status, re.MULTILINE)
    names = set()
    for part in found[1].split(",") if found else ():
        first, _, last = part.partition("-")
        names |= {f"cpu{index}" for index in range(int(first), int(last or first) + 1)}
    return names
