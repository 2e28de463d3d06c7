"""NVIDIA's management library by its Python binding, the only importer of ``pynvml``: readings of each GPU it lists.

Half of its calls answer "not supported" on one board or another, so each is made alone, and one that is not supported
is not made again. Everything happens in the thread that calls: NVML does not survive a fork. Not here: Jetson's files.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from hardware.readings import DeviceReadings
from hardware.sysfs import Fields, Unknown

T = TypeVar("T")

REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "heat, by hardware",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that mean clocks are held down against the work (nvml.h); idleness and
clocks somebody set are none."""
REOPEN_EVERY = 30
"""Readings between two attempts to open a library that failed: a driver may be loaded later."""
_LOST = ("Uninitialized", "GpuIsLost", "DriverNotLoaded", "ResetRequired", "LibRmVersionMismatch")
_NEVER = ("NotSupported", "FunctionNotFound")


class Nvml:
    """``module`` stands in for ``pynvml`` in tests."""

    def __init__(self, module: Any = None) -> None:
        self._given = module
        self._module: Any = None
        self._gpus: list[_Gpu] = []
        self._failed: str | None = None
        self._wait = 0

    def names(self) -> list[str]:
        """The GPUs by their names, in NVML's order. Raises ``Unknown`` where there is no NVML, or no GPU."""
        self._open()
        return [gpu.name for gpu in self._gpus]

    def read(self) -> list[DeviceReadings]:
        """All GPUs now. Raises ``Unknown`` as :meth:`names`."""
        self._open()
        readings = [gpu.read() for gpu in self._gpus]
        if any(gpu.lost for gpu in self._gpus):  # the driver was reloaded, or a GPU fell off the bus: begin again
            self.close()
            self._wait = REOPEN_EVERY
            self._failed = "a GPU is lost"
        return readings

    def close(self) -> None:
        if self._module is not None:
            _tell(self._module, self._module.nvmlShutdown)
        self._module, self._gpus = None, []

    def _open(self) -> None:
        if self._module is not None:
            return
        if self._failed is not None and self._wait > 0:
            self._wait -= 1
            raise Unknown(self._failed)
        try:
            self._gpus = self._look(self._given or _load())
        except Unknown as why:
            self._failed, self._wait = str(why), REOPEN_EVERY
            raise

    def _look(self, module: Any) -> list[_Gpu]:
        _tell(module, module.nvmlInit)
        fields = Fields()
        count = fields.ask("count", partial(_tell, module, module.nvmlDeviceGetCount)) or 0
        # one that fell off the bus must not hide the others
        asked = [fields.ask(str(n), partial(_tell, module, module.nvmlDeviceGetHandleByIndex, n)) for n in range(count)]
        handles = [handle for handle in asked if handle is not None]
        if not handles:
            _tell(module, module.nvmlShutdown)
            raise Unknown(next(iter(fields.unknown.values()), "NVML lists no GPU"))
        self._module, self._failed = module, None
        return [_Gpu(module, handle) for handle in handles]


def _load() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise Unknown("nvidia-ml-py is not installed") from None


def _tell(module: Any, call: Callable[..., T], *arguments: object) -> T:
    """Call NVML; its errors are ``Unknown``."""
    try:
        return call(*arguments)
    except module.NVMLError as error:
        raise Unknown(f"NVML: {error}") from error


class _Gpu:
    """One handle, what it does not support, and what must be remembered between readings."""

    def __init__(self, module: Any, handle: Any) -> None:
        self._module = module
        self._handle = handle
        self._never: dict[str, str] = {}
        self._events = 0
        self._held = False
        self._energy_mj: tuple[int, int] | None = None
        self.lost = False
        fields = Fields()
        name = fields.ask("name", lambda: self._call("nvmlDeviceGetName"))
        self.name = name.decode() if isinstance(name, bytes) else name or "NVIDIA GPU"
        self._clock_max = fields.ask("clock_max_mhz", lambda: self._call("nvmlDeviceGetMaxClockInfo", _GRAPHICS))
        self._trip_c = fields.ask("trip_c", self._trip)
        self._facts_unknown = fields.unknown

    def read(self) -> DeviceReadings:
        fields = Fields()
        fields.unknown.update(self._facts_unknown)
        memory = fields.ask("memory_used_bytes", lambda: self._call("nvmlDeviceGetMemoryInfo"))
        if memory is None:
            fields.unknown["memory_total_bytes"] = fields.unknown["memory_used_bytes"]
        utilization = fields.ask("utilization_percent", lambda: self._call("nvmlDeviceGetUtilizationRates"))
        power_mw = fields.ask("power_w", lambda: self._call("nvmlDeviceGetPowerUsage"))
        throttled = fields.ask("throttled", self._throttled)
        if throttled is None:
            fields.unknown["throttle_events"] = fields.unknown["throttled"]
        return DeviceReadings(
            self.name,
            "nvml",
            utilization_percent=None if utilization is None else float(utilization.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_c=fields.ask("temperature_c", self._temperature),
            trip_c=self._trip_c,
            power_w=None if power_mw is None else power_mw / 1000,
            clock_mhz=fields.ask("clock_mhz", lambda: self._call("nvmlDeviceGetClockInfo", _GRAPHICS)),
            clock_max_mhz=self._clock_max,
            throttled=throttled,
            throttle_events=None if throttled is None else self._events,
            energy_j=fields.ask("energy_j", self._energy),
            unknown=fields.unknown,
        )

    def _temperature(self) -> float:
        if hasattr(self._module, "nvmlDeviceGetTemperatureV"):
            try:
                return float(self._call("nvmlDeviceGetTemperatureV", _SENSOR_GPU))
            except Unknown:  # a driver older than the binding; the old call is deprecated, not gone
                return float(self._call("nvmlDeviceGetTemperature", _SENSOR_GPU))
        return float(self._call("nvmlDeviceGetTemperature", _SENSOR_GPU))

    def _trip(self) -> float:
        """Where the driver or the hardware begins to slow down, whichever is lower."""
        fields = Fields()
        asked = [
            fields.ask(name, partial(self._call, "nvmlDeviceGetTemperatureThreshold", threshold))
            for name, threshold in _THRESHOLDS.items()
        ]
        trips = [float(trip) for trip in asked if trip]
        if not trips:
            raise Unknown("; ".join(sorted(set(fields.unknown.values()))) or "no threshold is set")
        return min(trips)

    def _throttled(self) -> tuple[str, ...]:
        new = hasattr(self._module, "nvmlDeviceGetCurrentClocksEventReasons")
        mask = self._call("nvmlDeviceGetCurrentClocks" + ("EventReasons" if new else "ThrottleReasons"))
        reasons = tuple(name for bit, name in REASONS.items() if mask & bit)
        self._events += bool(reasons) and not self._held
        self._held = bool(reasons)
        return reasons

    def _energy(self) -> float:
        """Joules since the first reading; a counter that began again (a reloaded driver) goes on from there."""
        now = int(self._call("nvmlDeviceGetTotalEnergyConsumption"))
        spent, last = self._energy_mj or (0, now)
        spent += now - last if now >= last else now
        self._energy_mj = (spent, now)
        return spent / 1000

    def _call(self, function: str, *arguments: object) -> Any:
        """One call on this GPU; keyed with its arguments, because a clock may be known where another is not."""
        key = f"{function}{arguments}"
        if key in self._never:
            raise Unknown(self._never[key])
        try:
            return _tell(self._module, getattr(self._module, function), self._handle, *arguments)
        except Unknown as why:
            kind = type(why.__cause__).__name__.removeprefix("NVMLError_")
            self.lost = self.lost or kind in _LOST
            if kind in _NEVER:
                self._never[key] = str(why)
            raise


_GRAPHICS = 0
"""NVML_CLOCK_GRAPHICS."""
_SENSOR_GPU = 0
"""NVML_TEMPERATURE_GPU."""
_THRESHOLDS = {"slowdown": 1, "gpu max": 3}
"""NVML_TEMPERATURE_THRESHOLD_SLOWDOWN and _GPU_MAX."""
