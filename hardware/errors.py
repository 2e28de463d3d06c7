"""The error tree of devices and runtimes, and the codes it crosses the worker pipe with.

    HardwareError            code                  whose fault
      InvalidInput           invalid_input         the caller's tensors do not fit the model
        TensorTooLarge       tensor_too_large      they, or the result, do not fit a slot of the arena
      ModelRefused           model_refused         the file is no model that may be loaded
      BackendUnavailable     backend_unavailable   what was asked to run it is not on this box
      NotLoaded              not_loaded            nothing is loaded under that key, or the runtime is closed
      RunFailed              run_failed            the model ran and failed
        DeviceOutOfMemory    out_of_memory         ... for want of memory
        DeviceFault          device_fault          ... and left the device's context unusable: the process must end
      EngineNotBuilt         engine_not_built      TensorRT could not build an engine of the model
      WorkerDied             worker_died           the runtime went away while it held the run

Texts name tensors, operators and files by their bare names: no directory, no secret. Not here: codes and numbers of
the wire (``mesh.errors``), to which ``edge`` translates.
"""

from __future__ import annotations

from typing import ClassVar


class HardwareError(Exception):
    """Root of everything this package raises on purpose."""

    code: ClassVar[str] = "hardware_error"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class InvalidInput(HardwareError):
    code = "invalid_input"


class TensorTooLarge(InvalidInput):
    code = "tensor_too_large"


class ModelRefused(HardwareError):
    code = "model_refused"


class BackendUnavailable(HardwareError):
    code = "backend_unavailable"


class NotLoaded(HardwareError):
    code = "not_loaded"


class RunFailed(HardwareError):
    code = "run_failed"


class DeviceOutOfMemory(RunFailed):
    code = "out_of_memory"


class DeviceFault(RunFailed):
    """A sticky CUDA error: every later call in this process fails too (CUDA runtime API, error 700 and its like)."""

    code = "device_fault"


class EngineNotBuilt(HardwareError):
    code = "engine_not_built"


class WorkerDied(HardwareError):
    """The runtime that held the run is gone; whether the model ran is unknown.

    ``exit_code`` is the process's exit status, ``signal`` the number of the signal that ended it; both None where the
    runtime was closed on purpose.
    """

    code = "worker_died"

    def __init__(self, text: str, *, exit_code: int | None = None, signal: int | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.signal = signal


_CROSSING = (
    InvalidInput,
    TensorTooLarge,
    ModelRefused,
    BackendUnavailable,
    NotLoaded,
    RunFailed,
    DeviceOutOfMemory,
    DeviceFault,
    EngineNotBuilt,
)
BY_CODE: dict[str, type[HardwareError]] = {cls.code: cls for cls in _CROSSING}
"""Every error a worker may answer with."""


def from_code(code: str, text: str) -> HardwareError:
    """Rebuild the error a worker answered with; an unknown code is a failed run."""
    return BY_CODE.get(code, RunFailed)(text)
