"""The CUDA runtime with every return code checked: what is on the device, memory, streams, events, graphs.

The only importer of ``cuda.bindings.runtime`` (NVIDIA's cuda-python), and that only in :func:`load_cudart`. Those
functions answer ``(error, ...)`` and never raise; here an error becomes one of ``hardware.errors``:

    2                                  DeviceOutOfMemory    the context lives on
    :data:`STICKY`                     DeviceFault          every later call of this process fails too
    :data:`ADVICE`                     BackendUnavailable   no driver, no device, or not for this CUDA
    anything else                      RunFailed

A handle is closed once, by its owner. Not here: TensorRT, tensors, utilisation and temperatures (``devices``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, TypeVar

from hardware.errors import BackendUnavailable, DeviceFault, DeviceOutOfMemory, HardwareError, RunFailed

log = logging.getLogger(__name__)

OUT_OF_MEMORY = 2
STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810})
"""Codes after which a process can only end: errors of the hardware's memory or links (214, 220, 226), faults of kernels
(700, 702, 710, 714 to 719, 721: by CUDA's documentation the process must be relaunched), a context gone (709, 810)."""

_DRIVER = "install an NVIDIA driver that is new enough for this CUDA runtime"
ADVICE = {
    3: "CUDA cannot start in this process; it must not be used after a fork",
    34: "the stub of the driver library was loaded; take CUDA's stubs folder out of LD_LIBRARY_PATH",
    35: f"there is no NVIDIA driver or it is too old; {_DRIVER}",
    36: _DRIVER,
    46: "the GPU is held by another process or computing on it is prohibited (nvidia-smi -c)",
    100: "no GPU is visible; see nvidia-smi, CUDA_VISIBLE_DEVICES, and whether the container was given the GPU",
    101: "there is no GPU of that number",
    209: "this build of CUDA code has none for this GPU",
    802: "the GPU's system services are not ready yet (nvidia-fabricmanager)",
    803: f"kernel module and library of the driver differ; reboot, or {_DRIVER}",
    804: f"this GPU does not support forward compatibility; {_DRIVER}",
}
"""What to do about a code that says the backend is not there."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a GPU and its software are; an engine is good for exactly these (DESIGN D7)."""

    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    integrated: bool
    """Whether the GPU works in the box's own memory, as on a Jetson: pinned memory needs no copy there."""
    driver_version: int
    """Newest CUDA the driver supports, 1000 x major + 10 x minor as CUDA counts."""
    runtime_version: int
    total_bytes: int


def load_cudart() -> Any:
    """The module of the CUDA runtime; raises ``BackendUnavailable`` where it is not installed."""
    try:
        try:
            return import_module("cuda.bindings.runtime")
        except ModuleNotFoundError:
            return import_module("cuda.cudart")  # cuda-python 12 before its bindings got that name, as on JetPack 6
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"CUDA's Python bindings cannot be imported ({type(error).__name__}): install inference-mesh[tensorrt], "
            "or on a Jetson cuda-python of its CUDA version"
        ) from None


def device_facts(index: int = 0, module: Any = None) -> DeviceFacts:
    """Facts of GPU ``index``, as CUDA numbers them; creates no context. Raises ``BackendUnavailable``."""
    return Cuda(load_cudart() if module is None else module, index).facts()


class Cuda:
    """One device through one module of bindings. Threads may share it; each must :meth:`use` it first."""

    def __init__(self, module: Any, device: int = 0) -> None:
        self._module = module
        self.device = device

    def call(self, name: str, *arguments: Any) -> Any:
        """Call function ``name`` and return its value, None where it has none; raises what its code stands for."""
        try:
            status, *values = getattr(self._module, name)(*arguments)
        except RuntimeError as error:  # what the bindings raise where the library or the function is not there
            raise BackendUnavailable(f"{name} is not in this CUDA runtime ({type(error).__name__})") from None
        if int(status):
            raise self._error(name, status)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _error(self, name: str, status: Any) -> HardwareError:
        code = int(status)
        self._module.cudaGetLastError()  # else the next library to ask takes this error for its own
        text = f"{name}: {self._text(status)} (CUDA error {code})"
        if code == OUT_OF_MEMORY:
            return DeviceOutOfMemory(text)
        if code in STICKY:
            return DeviceFault(text)
        if code in ADVICE:
            return BackendUnavailable(f"{text}: {ADVICE[code]}")
        return RunFailed(text)

    def _text(self, status: Any) -> str:
        code, words = self._module.cudaGetErrorString(status)
        return words.decode("utf-8", "replace") if not int(code) and isinstance(words, bytes) else "unknown error"

    def facts(self) -> DeviceFacts:
        count = self.call("cudaGetDeviceCount")
        if not 0 <= self.device < count:
            raise BackendUnavailable(f"there is no GPU {self.device}; CUDA sees {count}")
        properties = self.call("cudaGetDeviceProperties", self.device)
        return DeviceFacts(
            name=properties.name.split(b"\0")[0].decode("utf-8", "replace"),
            compute_capability=(properties.major, properties.minor),
            sm_count=properties.multiProcessorCount,
            integrated=bool(properties.integrated),
            driver_version=int(self.call("cudaDriverGetVersion")),
            runtime_version=int(self.call("cudaRuntimeGetVersion")),
            total_bytes=properties.totalGlobalMem,
        )

    def use(self) -> None:
        """Make the calling thread work on this device: a thread starts on device 0."""
        self.call("cudaSetDevice", self.device)

    def free_bytes(self) -> int:
        """Memory of the device that is free now; creates the process's context."""
        free, _ = self.call("cudaMemGetInfo")
        return int(free)

    def device_memory(self, nbytes: int) -> Memory:
        address = int(self.call("cudaMalloc", nbytes))
        return Memory(self, "cudaFree", address, nbytes, address)

    def pinned_memory(self, nbytes: int) -> Memory:
        """Host memory that copies may go to and from while other work goes on; the device cannot name it."""
        address = int(self.call("cudaHostAlloc", nbytes, self._module.cudaHostAllocDefault))
        return Memory(self, "cudaFreeHost", address, nbytes, 0)

    def mapped_memory(self, nbytes: int) -> Memory:
        """Pinned host memory that the device reads and writes in place."""
        address = int(self.call("cudaHostAlloc", nbytes, self._module.cudaHostAllocMapped))
        memory = Memory(self, "cudaFreeHost", address, nbytes, 0)
        try:
            memory.device_address = int(self.call("cudaHostGetDevicePointer", address, 0))
        except BaseException:
            memory.close()
            raise
        return memory

    def stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        return Stream(
            self, "cudaStreamDestroy", self.call("cudaStreamCreateWithFlags", self._module.cudaStreamNonBlocking)
        )

    def event(self) -> Event:
        """Waiting for it puts the thread to sleep: an edge box has no core to spin on."""
        flags = self._module.cudaEventBlockingSync | self._module.cudaEventDisableTiming
        return Event(self, "cudaEventDestroy", self.call("cudaEventCreateWithFlags", flags))

    def copy_to_device(self, memory: Memory, host: Memory, nbytes: int, stream: Stream) -> None:
        kind = self._module.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", memory.address, host.address, nbytes, kind, stream.raw)

    def copy_to_host(self, host: Memory, memory: Memory, nbytes: int, stream: Stream) -> None:
        kind = self._module.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host.address, memory.address, nbytes, kind, stream.raw)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts on ``stream``, without doing it. Only this thread is held to capture's rules."""
        mode = self._module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream.raw, mode)
        try:
            enqueue()
        except BaseException:
            self._drop_capture(stream)
            raise
        graph = self.call("cudaStreamEndCapture", stream.raw)
        try:
            return Graph(self, "cudaGraphExecDestroy", self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.release("cudaGraphDestroy", graph)

    def _drop_capture(self, stream: Stream) -> None:
        """Take the stream out of capture; that this fails too is no news after the failure that led here."""
        status, graph = self._module.cudaStreamEndCapture(stream.raw)
        if not int(status) and graph is not None and int(graph):
            self.release("cudaGraphDestroy", graph)
        self._module.cudaGetLastError()

    def release(self, name: str, handle: Any) -> None:
        """Give a handle back. Nothing is left to be done about a failure, so it is only logged."""
        try:
            self.call(name, handle)
        except DeviceFault as fault:  # a lost device gives nothing back until the process ends
            log.debug("not given back: %s", fault.text)
        except HardwareError as error:
            log.warning("not given back: %s", error.text)


_Any = TypeVar("_Any", bound="_Handle")


class _Handle:
    """Something of the driver's that its owner gives back once."""

    def __init__(self, cuda: Cuda, destroy: str, raw: Any) -> None:
        self._cuda = cuda
        self._destroy = destroy
        self.raw = raw
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self._cuda.release(self._destroy, self.raw)

    def __enter__(self: _Any) -> _Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Memory(_Handle):
    """A block of memory: ``address`` for the CPU or the copy engine, ``device_address`` for kernels, 0 where none."""

    def __init__(self, cuda: Cuda, destroy: str, address: int, nbytes: int, device_address: int) -> None:
        super().__init__(cuda, destroy, address)
        self.address = address
        self.nbytes = nbytes
        self.device_address = device_address


class Stream(_Handle):
    @property
    def handle(self) -> int:
        """The stream as other libraries name it."""
        return int(self.raw)

    def synchronize(self) -> None:
        self._cuda.call("cudaStreamSynchronize", self.raw)


class Event(_Handle):
    def record(self, stream: Stream) -> None:
        self._cuda.call("cudaEventRecord", self.raw, stream.raw)

    def synchronize(self) -> None:
        """Return once everything before the last :meth:`record` is done; other threads go on meanwhile."""
        self._cuda.call("cudaEventSynchronize", self.raw)


class Graph(_Handle):
    """What :meth:`Cuda.capture` recorded, ready to run again with the same memory."""

    def launch(self, stream: Stream) -> None:
        self._cuda.call("cudaGraphLaunch", self.raw, stream.raw)
