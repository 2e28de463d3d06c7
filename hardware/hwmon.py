"""Sensor chips under hwmon: power rails (INA3221, INA238), Tegra's over-current counters, processor temperature.

Units are the kernel's: mV, mA, µW, m°C. Not here: thermal zones, what a GPU makes of it (``jetson``).
"""

from __future__ import annotations

import re
from pathlib import Path

from hardware.sysfs import Unknown, folders, known, number

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module: where there is one, the others are parts of it."""
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current"}
"""Tegra's throttling by the supply (soctherm_oc)."""
_CHANNELS = (1, 2, 3)
"""An INA3221's bus voltages; in4 to in7 are shunt voltages, the seventh their sum."""
_IDLE_LABELS = ("", "NC")


def chips(root: Path, name: str) -> list[Path]:
    """Folders of all chips that report this name, empty if none."""
    return [chip for chip in folders(root / "sys/class/hwmon", "hwmon") if known(chip / "name") == name]


class Rails:
    """What the module draws, by the best of the sensors it has, no rail counted twice."""

    def __init__(self, root: Path) -> None:
        self._vin = chips(root, "ina238")
        self._rails: dict[str, tuple[Path, int]] = {}
        for chip in chips(root, "ina3221"):
            for channel in _CHANNELS:
                label = known(chip / f"in{channel}_label")
                if label not in _IDLE_LABELS and known(chip / f"in{channel}_enable") != "0":
                    self._rails[label] = (chip, channel)

    def watts(self) -> float:
        """An INA238 at the input, else the rail that feeds all others, else the sum of all. Raises ``Unknown``.

        One rail that does not answer makes the sum unknown: a part of the power is not the power.
        """
        if len(self._vin) == 1:
            return number(self._vin[0] / "power1_input") / 1e6
        total = next((self._rails[label] for label in TOTAL_RAILS if label in self._rails), None)
        rails = [total] if total else list(self._rails.values())
        if not rails:
            raise Unknown("no power sensor (INA3221 or INA238)")
        return sum(_watts(chip, channel) for chip, channel in rails)


def _watts(chip: Path, channel: int) -> float:
    return number(chip / f"in{channel}_input") * number(chip / f"curr{channel}_input") / 1e6


class OverCurrent:
    """Events counted since boot, by what they mean."""

    def __init__(self, root: Path) -> None:
        self._chips = chips(root, "soctherm_oc")

    def counts(self) -> dict[str, int]:
        """Only of those that throttle when they happen. Raises ``Unknown``."""
        if not self._chips:
            raise Unknown("no over-current counters (soctherm_oc)")
        found = {}
        for chip in self._chips:
            for prefix, meaning in OVER_CURRENT.items():
                if known(chip / f"{prefix}_throt_en") == "1":
                    found[meaning] = number(chip / f"{prefix}_event_cnt")
        return found


def processor_c(root: Path, names: tuple[str, ...]) -> float:
    """The hottest sensor of the first chip of that name, the most exact names first. Raises ``Unknown``."""
    for name in names:
        readings = []
        for chip in chips(root, name):
            for sensor in folders(chip, "temp"):
                if re.fullmatch(r"temp\d+_input", sensor.name):
                    readings += _plausible(sensor)
        if readings:
            return max(readings)
    raise Unknown("no sensor of the processor's temperature")


def _plausible(sensor: Path) -> list[float]:
    try:
        degrees = number(sensor) / 1000
    except Unknown:
        return []
    return [degrees] if 0 < degrees < 150 else []
