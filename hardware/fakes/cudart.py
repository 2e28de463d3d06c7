"""A stand-in for ``cuda.bindings.runtime`` that is strict where CUDA is undefined, and fails on command.

Using freed memory, copying past an end, giving back twice and destroying what runs raise ``Misuse``, which no code of
the product catches. Only tests reach it: through :func:`install`, or through ``site`` on PYTHONPATH and
``FAKE_CUDA_*`` variables. Not here: memory and streams (``device``), TensorRT (``trt_run``).
"""

# ruff: noqa: N801, N802, N815, N816 - the names are the bindings'

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from hardware.fakes.device import Event, FakeDevice, Handle, Stream
from hardware.fakes.faults import Failed, Misuse

cudaHostAllocDefault, cudaHostAllocMapped = 0, 2
cudaStreamNonBlocking = 1
cudaEventBlockingSync, cudaEventDisableTiming = 1, 2


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInitializationError = 3
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorNoKernelImageForDevice = 209
    cudaErrorECCUncorrectable = 214
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchTimeout = 702
    cudaErrorAssert = 710
    cudaErrorHardwareStackError = 714
    cudaErrorIllegalInstruction = 715
    cudaErrorMisalignedAddress = 716
    cudaErrorInvalidAddressSpace = 717
    cudaErrorInvalidPc = 718
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorUnknown = 999


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


def _api(values: int, *, failing: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Answer as the bindings do: a tuple of a code and so many values, None where it failed.

    A failure on command does to the first argument what the method ``failing`` does.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__

        @functools.wraps(function)
        def call(self: FakeCudart, *arguments: Any) -> tuple[Any, ...]:
            code = self.enter(name)
            if code and failing:
                getattr(self, failing)(arguments[0])
            if not code:
                try:
                    result = function(self, *arguments)
                    return (cudaError_t.cudaSuccess, *((result,) if values == 1 else result or ()))
                except Failed as failed:
                    code = failed.code
                    self.note(code)
            return (_error(code), *[None] * values)

        return call

    return decorate


def _error(code: int) -> Any:
    try:
        return cudaError_t(code)
    except ValueError:
        return Handle(code)


class FakeCudart(FakeDevice):
    """One process's CUDA runtime with its devices. Its methods are the functions of the module."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaHostAllocDefault = cudaHostAllocDefault
    cudaHostAllocMapped = cudaHostAllocMapped
    cudaStreamNonBlocking = cudaStreamNonBlocking
    cudaEventBlockingSync = cudaEventBlockingSync
    cudaEventDisableTiming = cudaEventDisableTiming

    @_api(1)
    def cudaGetDeviceCount(self) -> int:
        if not self.devices:
            raise Failed(cudaError_t.cudaErrorInsufficientDriver)
        return self.devices

    @_api(0)
    def cudaSetDevice(self, device: int) -> None:
        self._require_device(device)

    @_api(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:
        self._require_device(device)
        major, minor = self.compute_capability
        return SimpleNamespace(
            name=b"Fake GPU\0\0",
            major=major,
            minor=minor,
            multiProcessorCount=16,
            integrated=int(self.integrated),
            totalGlobalMem=self.memory_bytes,
        )

    @_api(1)
    def cudaDriverGetVersion(self) -> int:
        return 13020

    @_api(1)
    def cudaRuntimeGetVersion(self) -> int:
        return 13000

    @_api(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        self._require_device(0)
        return self.memory_bytes - self.used_bytes, self.memory_bytes

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return cudaError_t.cudaSuccess, getattr(error, "name", f"error {int(error)}").encode()

    def cudaGetLastError(self) -> tuple[Any]:
        last, self.last = self.last, self.sticky
        return (_error(last),)

    @_api(1)
    def cudaMalloc(self, size: int) -> int:
        self._refuse_in_capture()
        if not self.take(size):
            raise Failed(cudaError_t.cudaErrorMemoryAllocation)
        return self.allocate(size, host=False, mapped=False)

    @_api(1)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        self._refuse_in_capture()
        return self.allocate(size, host=True, mapped=bool(flags & cudaHostAllocMapped))

    @_api(1)
    def cudaHostGetDevicePointer(self, pointer: int, flags: int) -> int:
        block = self.blocks.get(pointer)
        if block is None or not block.mapped or flags:
            raise Failed(cudaError_t.cudaErrorInvalidValue)
        block.reachable = True
        return pointer

    @_api(0, failing="abandon")
    def cudaFree(self, pointer: int) -> None:
        self.put_back(self.free(pointer, host=False))

    @_api(0, failing="abandon")
    def cudaFreeHost(self, pointer: int) -> None:
        self.free(pointer, host=True)

    @_api(0)
    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: Any) -> None:
        def copy() -> None:
            self.at(target, count, kernel=False)[:] = self.at(source, count, kernel=False)

        to_host = kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        if kind not in (cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToHost):
            raise Failed(cudaError_t.cudaErrorInvalidValue)
        for address, host in ((target, to_host), (source, not to_host)):
            self.at(address, count, kernel=False)
            if self.holder(address).host is not host:
                raise Misuse("a copy in the other direction")
        self.enqueue(stream, copy)

    @_api(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:
        if flags != cudaStreamNonBlocking:
            raise Misuse("a stream that waits for the default stream")
        return self.new(self.streams, Stream())

    @_api(0, failing="abandon")
    def cudaStreamDestroy(self, stream: Any) -> None:
        found = self.stream(stream)
        if found.captured is not None:
            raise Misuse("a stream is destroyed while it is captured")
        self.work_off(found, lambda: False)
        self.forget(self.streams, stream)

    @_api(0)
    def cudaStreamSynchronize(self, stream: Any) -> None:
        found = self.stream(stream)
        if found.captured is not None:
            found.spoilt = True
            raise Failed(cudaError_t.cudaErrorStreamCaptureUnsupported)
        self.work_off(found, lambda: False)

    @_api(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Handle:
        return self.new(self.events, Event())

    @_api(0)
    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        found = self.require(self.events, event)
        found.stream, found.done = self.stream(stream), False
        self.enqueue(stream, lambda: setattr(found, "done", True))

    @_api(0)
    def cudaEventSynchronize(self, event: Any) -> None:
        found = self.require(self.events, event)
        if found.stream is not None:
            self.work_off(found.stream, lambda: bool(found.done))

    @_api(0, failing="abandon")
    def cudaEventDestroy(self, event: Any) -> None:
        self.forget(self.events, event)

    @_api(0)
    def cudaStreamBeginCapture(self, stream: Any, mode: int) -> None:
        found = self.stream(stream)
        if found.captured is not None or mode != cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise Misuse("a capture that other threads would spoil, or a second one")
        found.captured, found.thread, found.spoilt = [], threading.get_ident(), False

    @_api(1, failing="end_capture")
    def cudaStreamEndCapture(self, stream: Any) -> Handle:
        found = self.stream(stream)
        captured = self.end_capture(stream)
        if captured is None:
            raise Failed(cudaError_t.cudaErrorInvalidValue)
        if found.spoilt:
            raise Failed(cudaError_t.cudaErrorStreamCaptureInvalidated)
        return self.new(self.graphs, captured)

    @_api(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Handle:
        return self.new(self.executables, list(self.require(self.graphs, graph)))

    @_api(0)
    def cudaGraphLaunch(self, executable: Any, stream: Any) -> None:
        for operation in self.require(self.executables, executable):
            self.enqueue(stream, operation)

    @_api(0, failing="abandon")
    def cudaGraphExecDestroy(self, executable: Any) -> None:
        self.forget(self.executables, executable)

    @_api(0, failing="abandon")
    def cudaGraphDestroy(self, graph: Any) -> None:
        self.forget(self.graphs, graph)

    def _require_device(self, device: int) -> None:
        if not self.devices:
            raise Failed(cudaError_t.cudaErrorInsufficientDriver)
        if not 0 <= device < self.devices:
            raise Failed(cudaError_t.cudaErrorInvalidDevice)

    def _refuse_in_capture(self) -> None:
        for stream in list(self.streams.values()):
            if stream.captured is not None and stream.thread == threading.get_ident():
                stream.spoilt = True
                raise Failed(cudaError_t.cudaErrorStreamCaptureUnsupported)


_installed: FakeCudart | None = None


def current() -> FakeCudart:
    """The runtime of this process, made from its ``FAKE_*`` variables when it is first asked for."""
    return install(FakeCudart(os.environ)) if _installed is None else _installed


def install(runtime: FakeCudart) -> FakeCudart:
    """Make ``runtime`` the one of this process."""
    global _installed
    _installed = runtime
    return runtime
