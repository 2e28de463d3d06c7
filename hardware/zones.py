"""The kernel's thermal zones and what it does about heat: temperatures, passive trip points, cooling devices.

Trip points are the board's own and read from it, never written down here. Not here: sensors that are no zones
(``hwmon``), prediction (``thermal``).
"""

from __future__ import annotations

from pathlib import Path

from hardware.sysfs import Unknown, folders, known, number

LOWEST_TRIP_C = 40.0
"""x86 firmware reports unset trip points as 0 or below; no board throttles at room temperature."""
PLAUSIBLE_C = (-100.0, 150.0)
"""Tegra zones whose unit has no power say -256 °C (or EAGAIN)."""
_NO_THROTTLE = ("fan",)


class Zones:
    """Zones by their type. Which there are is looked up once: boards do not grow sensors."""

    def __init__(self, root: Path) -> None:
        found = folders(root / "sys/class/thermal", "thermal_zone")
        self._zones: dict[str, Path] = {}
        for zone in found:
            self._zones.setdefault(known(zone / "type"), zone)

    def temperature_c(self, *types: str) -> float:
        """Of the first of ``types`` that the board has. Raises ``Unknown``."""
        name, zone = self._first(types)
        degrees = number(zone / "temp") / 1000
        if not PLAUSIBLE_C[0] < degrees < PLAUSIBLE_C[1]:
            raise Unknown(f"zone {name} says {degrees:g} °C: switched off")
        return degrees

    def trip_c(self, *types: str) -> float:
        """The lowest passive trip point of that zone: there the kernel begins to slow clocks. Raises ``Unknown``."""
        name, zone = self._first(types)
        trips = [
            number(zone / entry.name.replace("_type", "_temp")) / 1000
            for entry in folders(zone, "trip_point_")
            if entry.name.endswith("_type") and known(entry) == "passive"
        ]
        trips = [trip for trip in trips if trip >= LOWEST_TRIP_C]
        if not trips:
            raise Unknown(f"zone {name} has no passive trip point")
        return min(trips)

    def _first(self, types: tuple[str, ...]) -> tuple[str, Path]:
        for name in types:
            if name in self._zones:
                return name, self._zones[name]
        raise Unknown(f"no thermal zone like {types[0]}")


class Cooling:
    """Cooling devices that hold clocks down, fans left out."""

    def __init__(self, root: Path, words: tuple[str, ...]) -> None:
        """``words`` pick devices whose type has one of them."""
        self._devices: dict[Path, str] = {}
        for device in folders(root / "sys/class/thermal", "cooling_device"):
            name = known(device / "type")
            if any(word in name for word in words) and not any(word in name for word in _NO_THROTTLE):
                self._devices[device] = name

    def active(self) -> tuple[str, ...]:
        """Types of those at work now. Raises ``Unknown`` where the board has none."""
        if not self._devices:
            raise Unknown("no cooling device for it")
        return tuple(name for device, name in self._devices.items() if number(device / "cur_state") > 0)
