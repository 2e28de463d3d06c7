"""A stand-in for ``pynvml`` that says what it is told to: GPUs as values, and errors by call.

Only tests reach it; it names itself. Answers have the shapes of NVIDIA's binding, its error classes included. Not
here: which of a board's calls fail, tests say that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace


class NVMLError(Exception):
    """As the binding's: one class for each code, named after it."""

    text = "Unknown Error"

    def __str__(self) -> str:
        return self.text


class NVMLError_NotSupported(NVMLError):  # noqa: N801 - the binding's name
    text = "Not Supported"


class NVMLError_FunctionNotFound(NVMLError):  # noqa: N801 - the binding's name
    text = "Function Not Found"


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801 - the binding's name
    text = "GPU is lost"


class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - the binding's name
    text = "NVML Shared Library Not Found"


@dataclass
class FakeGpu:
    name: str = "NVIDIA Fake"
    gpu_percent: int = 50
    memory_used: int = 2 * 1024**3
    memory_total: int = 8 * 1024**3
    temperature: int = 60
    power_mw: int = 100_000
    energy_mj: int = 5_000_000
    clock_mhz: int = 1800
    clock_max_mhz: int = 2100
    reasons: int = 0
    thresholds: dict[int, int] = field(default_factory=lambda: {0: 98, 1: 95, 3: 93})
    errors: dict[str, type[NVMLError]] = field(default_factory=dict)
    """Calls that fail, by the function's name."""


class FakeNvml:
    """Pass it where the module ``pynvml`` goes; ``calls`` counts what was asked."""

    __fake__ = True
    NVMLError = NVMLError

    def __init__(self, *gpus: FakeGpu, init_error: type[Exception] | None = None) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.calls: Counter[str] = Counter()
        self.initialised = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.calls["nvmlInit"] += 1
        if self.init_error is not None:
            raise self.init_error
        self.initialised += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.initialised -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:  # noqa: N802
        self._asked("nvmlDeviceGetName", gpu)
        return gpu.name

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> SimpleNamespace:  # noqa: N802
        self._asked("nvmlDeviceGetUtilizationRates", gpu)
        return SimpleNamespace(gpu=gpu.gpu_percent, memory=0)

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:  # noqa: N802
        self._asked("nvmlDeviceGetMemoryInfo", gpu)
        return SimpleNamespace(total=gpu.memory_total, used=gpu.memory_used, free=gpu.memory_total - gpu.memory_used)

    def nvmlDeviceGetTemperatureV(self, gpu: FakeGpu, sensor: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetTemperatureV", gpu)
        return gpu.temperature

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetTemperature", gpu)
        return gpu.temperature

    def nvmlDeviceGetTemperatureThreshold(self, gpu: FakeGpu, threshold: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetTemperatureThreshold", gpu)
        return gpu.thresholds[threshold]

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetPowerUsage", gpu)
        return gpu.power_mw

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetTotalEnergyConsumption", gpu)
        return gpu.energy_mj

    def nvmlDeviceGetClockInfo(self, gpu: FakeGpu, clock: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetClockInfo", gpu)
        return gpu.clock_mhz

    def nvmlDeviceGetMaxClockInfo(self, gpu: FakeGpu, clock: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetMaxClockInfo", gpu)
        return gpu.clock_max_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetCurrentClocksEventReasons", gpu)
        return gpu.reasons

    def _asked(self, function: str, gpu: FakeGpu) -> None:
        self.calls[function] += 1
        if function in gpu.errors:
            raise gpu.errors[function]
