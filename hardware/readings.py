"""Readings as values: of the box, and of each accelerator.

``None`` is unknown, never zero; ``unknown`` says why, by the reading's name. Not here: where they come from, and the
form in which they travel (``mesh.messages``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceReadings:
    """One accelerator. On a Jetson, whose GPU has no memory or supply of its own, those are the module's."""

    name: str
    source: str
    """What was read: "nvml", "jetson-orin", "jetson-thor", "cpu"."""
    utilization_percent: float | None = None
    """Share of the time in which the GPU ran anything, not how much of it was used."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    unified_memory: bool = False
    """Whether that memory is the box's own."""
    temperature_c: float | None = None
    trip_c: float | None = None
    """Temperature at which clocks are first held down."""
    power_w: float | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    """Highest clock that the power mode allows; heat does not lower it."""
    throttled: tuple[str, ...] | None = None
    """Why clocks are held down now; empty if they are not."""
    throttle_events: int | None = None
    """How often that began since the first reading."""
    energy_j: float | None = None
    """Energy since the first reading."""
    power_mode: str | None = None
    """nvpmodel's mode on a Jetson."""
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """The box, within the limits of this process's control groups."""

    at_s: float
    """Monotonic time."""
    cpu_percent: float | None = None
    """Busy share of the processors this process may use, or of its quota where that is the tighter, 0 to 100."""
    memory_used_bytes: int | None = None
    """Memory that could not be had without swapping."""
    memory_total_bytes: int | None = None
    memory_pressure_percent: float | None = None
    """Share of the last 10 s in which something waited for memory."""
    temperature_c: float | None = None
    devices: tuple[DeviceReadings, ...] = ()
    processor: DeviceReadings | None = None
    """The processors as a device, for the forecast of a box that has no other."""
    unknown: Mapping[str, str] = field(default_factory=dict)
