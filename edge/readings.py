"""The agent's readings of its box: sampled every second in a thread of their own, kept as what reports carry.

Sensors are files and drivers that may hang: nothing waits for them, and readings that stay out are unknown, not old.
Not here: sensors (``hardware.gauges``), the forecast (``hardware.thermal``), reporting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import anyio

from hardware.energy import EnergyPerInference
from hardware.gauges import Gauges as BoxGauges
from hardware.nvml import Nvml
from hardware.readings import DeviceReadings
from hardware.readings import Readings as BoxReadings
from hardware.thermal import Capacity, CoolClock, Forecast
from mesh.messages import DeviceGauges, Gauges

log = logging.getLogger(__name__)

PERIOD_S = 1.0
STALE_S = 10.0
"""Readings older than that are no news of the box."""
LEAVE_S = 1.0
_ON_THE_WIRE = frozenset(DeviceGauges.__struct_fields__)


class Readings:
    """``completed`` counts the inferences of this agent so far; it is called on the event loop. ``device`` numbers the
    GPU that it uses: the others are reported, and have no say in its capacity and its energy.

    ``gauges`` and ``capacity`` are the last known, at any time; run :meth:`run` as a task that lives with the agent.
    """

    def __init__(
        self,
        completed: Callable[[], int],
        box: BoxGauges | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        device: int = 0,
    ) -> None:
        self._completed = completed
        self._box = box
        self._clock = clock
        self._device = device
        self._per_inference = EnergyPerInference()
        self._cool_clock, self._forecast = CoolClock(), Forecast()
        self._outlook = Capacity()
        self._gauges = _no_reading("not read yet")
        self._read_at_s = clock()
        self._stale = False

    @property
    def gauges(self) -> Gauges:
        return self._gauges

    @property
    def capacity(self) -> float:
        """Share of its speed when cool that the device is expected to have shortly; without one, the processors."""
        return self._outlook.share

    @property
    def outlook(self) -> Capacity:
        """``capacity`` with its reason."""
        return self._outlook

    async def run(self) -> None:
        """Sample until cancelled. A sensor that hangs then keeps its thread, and nothing else."""
        loop, stop, gone = asyncio.get_running_loop(), threading.Event(), asyncio.Event()
        thread = threading.Thread(target=self._sample, args=(loop, stop, gone), name="readings", daemon=True)
        thread.start()
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                self._judge_age()
        finally:
            stop.set()
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_S):
                await gone.wait()

    def _sample(self, loop: asyncio.AbstractEventLoop, stop: threading.Event, gone: asyncio.Event) -> None:
        """The thread: all sensors and drivers are used here only."""
        box, failing = self._box or BoxGauges(nvml=Nvml()), False
        with contextlib.suppress(RuntimeError):  # the loop was closed over a sensor that hung
            while not stop.is_set():
                try:
                    loop.call_soon_threadsafe(self.take, box.read())
                    failing = False
                except OSError as error:  # no file left to open, say: the last reading stands until one works again
                    if not failing:
                        log.warning("the gauges cannot be read: %s", error.strerror)
                    failing = True
                stop.wait(PERIOD_S)
            loop.call_soon_threadsafe(gone.set)

    def take(self, read: BoxReadings) -> None:
        """Make one reading the present one."""
        self._read_at_s, self._stale = self._clock(), False
        used = read.devices[self._device] if self._device < len(read.devices) else None
        source = used or read.processor
        self._outlook = Capacity() if source is None else self._forecast.add(self._cool_clock.sample(read.at_s, source))
        unknown = dict(read.unknown)
        joules = self._per_inference.add(read.at_s, None if used is None else used.energy_j, self._completed())
        if joules is None:
            unknown["joule_per_inference"] = _why_no_energy(used)
        self._gauges = Gauges(
            read.cpu_percent,
            read.memory_used_bytes,
            read.memory_total_bytes,
            read.temperature_c,
            devices=tuple(_device(device) for device in read.devices),
            joule_per_inference=joules,
            memory_pressure_percent=read.memory_pressure_percent,
            unknown=unknown,
        )

    def _judge_age(self) -> None:
        age_s = self._clock() - self._read_at_s
        if age_s <= STALE_S or self._stale:
            return
        self._stale = True
        log.warning("no reading of this box for %.0f s: a sensor hangs", age_s)
        self._gauges = _no_reading("a sensor hangs")


def _no_reading(why: str) -> Gauges:
    return Gauges(unknown={name: why for name in Gauges.__struct_fields__ if name != "unknown"})


def _device(device: DeviceReadings) -> DeviceGauges:
    fields = {name: value for name, value in asdict(device).items() if name in _ON_THE_WIRE}
    fields["unknown"] = {name: why for name, why in device.unknown.items() if name in _ON_THE_WIRE}
    return DeviceGauges(**fields)


def _why_no_energy(device: DeviceReadings | None) -> str:
    if device is None:
        return "no device that measures its power"
    return f"energy of {device.name} is unknown" if device.energy_j is None else "no inference in the last minute"
