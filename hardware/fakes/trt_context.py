"""The execution context of the fake TensorRT: says False where TensorRT does, and runs when the stream is worked off.

``FAKE_TRT_SEGFAULT_AT``, ``FAKE_TRT_HANG_AT``, ``FAKE_TRT_STICKY_AT`` name the run of this process, counted from 1, at
which it crashes, never ends, or breaks the device; with ``FAKE_TRT_RUN_S`` every run takes so many seconds. Not here:
engines (``trt_engine``).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import time
import weakref
from typing import Any

from hardware.errors import HardwareError
from hardware.fakes import cudart
from hardware.fakes.device import ALIGNMENT
from hardware.fakes.faults import Failed, Misuse
from hardware.fakes.trt_engine import (
    ACTIVATION_BYTES,
    Dims,
    ICudaEngine,
    IOutputAllocator,
    TensorIOMode,
    TensorLocation,
    fails,
    report,
)

_runs = itertools.count(1)


class IExecutionContext:
    """Made by the engine. Used by two threads at the same time it raises ``Misuse``."""

    def __init__(self, engine: ICudaEngine, has_memory: bool) -> None:
        self.engine = engine
        self._cuda = cudart.current()
        self._memory = ACTIVATION_BYTES if has_memory else 0
        self._memory_address = 0
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._outputs: dict[str, tuple[int, ...]] | None = None
        self._changes = 0
        self._user = threading.Lock()

    def set_device_memory(self, memory: int, size: int) -> None:
        self._changed()
        self._cuda.at(memory, size, kernel=True)
        self._memory, self._memory_address = size, memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if self._fails("set_optimization_profile_async"):
            return False
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._refuse(f"Profile index {profile_index} is out of range")
        self._changed()
        self._profile, self._shapes, self._outputs = profile_index, {}, None
        self._cuda.enqueue(stream_handle, lambda: None)
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if self._fails("set_input_shape"):
            return False
        given = tuple(int(dim) for dim in shape)
        if self.engine.get_tensor_mode(name) is not TensorIOMode.INPUT:
            return self._refuse(f"Given invalid tensor name: {name}")
        limits = self.engine._limits(name, self._profile)
        if limits is None or len(given) != len(limits[0]):
            return self._refuse(f"Input {name} has another rank")
        if not all(low <= dim <= high for low, dim, high in zip(limits[0], given, limits[2], strict=True)):
            return self._refuse(
                f"IExecutionContext::setInputShape: Error Code 3: Set dimension {list(given)} for tensor {name} does "
                f"not satisfy profile {self._profile}. Valid range: {limits[0]}..{limits[2]}."
            )
        self._changed()
        self._shapes[name], self._outputs = given, None
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._fails("set_tensor_address"):
            return False
        if name not in self.engine._tensors:
            return self._refuse(f"Given invalid tensor name: {name}")
        on_device = self.engine.get_tensor_location(name) is TensorLocation.DEVICE
        if on_device and memory % ALIGNMENT:
            return self._refuse(f"The address of {name} is not aligned")
        if self._addresses.get(name) != memory:
            self._changed()
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        if self._fails("set_output_allocator"):
            return False
        if self.engine.get_tensor_mode(name) is not TensorIOMode.OUTPUT:
            return self._refuse(f"Given invalid tensor name: {name}")
        if not isinstance(output_allocator, IOutputAllocator) or not hasattr(output_allocator, "_initialised"):
            raise TypeError("IOutputAllocator.__init__() must be called when overriding __init__")  # as pybind11 says
        self._changed()
        self._allocators[name] = output_allocator
        return True

    def infer_shapes(self) -> list[str]:
        if self._fails("infer_shapes"):
            raise RuntimeError("infer_shapes error code: -1")
        return self._infer()

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._shapes:
            return Dims(self._shapes[name])
        if self._outputs is not None and name in self._outputs:
            return Dims(self._outputs[name])
        return self.engine.get_tensor_shape(name)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._user.acquire(blocking=False):
            raise Misuse("two threads use one execution context")
        try:
            return not self._fails("execute_async_v3") and self._enqueue(stream_handle)
        finally:
            self._user.release()

    # Inside.

    def _enqueue(self, stream: int) -> bool:
        if self._memory < ACTIVATION_BYTES:
            return self._refuse("The context has no device memory")
        try:
            if (self._outputs is None or self.engine._shape_inputs) and self._infer():
                return self._refuse("Not all input shapes are set")
        except RuntimeError as error:
            return self._refuse(str(error))
        outputs = self._outputs or {}
        for tensor in self.engine._tensors.values():
            if not self._addresses.get(tensor.name) and tensor.name not in self._allocators:
                return self._refuse(f"Neither address nor allocator is set for {tensor.name}")
        shapes, values = self._input_shapes(), self._shape_values()
        if any(-1 in shape for shape in outputs.values()):
            return self._enqueue_data_dependent(stream, shapes, values)
        addresses, this, changes = dict(self._addresses), weakref.ref(self), self._changes
        captured = self._cuda.is_capturing(stream)
        engine = self.engine

        def run() -> None:
            context = this()
            if context is None:
                raise Misuse("an execution context is gone before its run is done")
            if captured and context._changes != changes:
                raise Misuse("a graph runs after its context was told something else")
            results = _run(engine, addresses, shapes, values)
            for name, result in results.items():
                if result.shape != outputs[name]:
                    raise Misuse(f"output {name} is {result.shape}, not {outputs[name]}")
                context._write(name, addresses[name], result)

        self._cuda.enqueue(stream, run)
        return True

    def _enqueue_data_dependent(
        self, stream: int, shapes: dict[str, tuple[int, ...]], values: dict[str, bytes]
    ) -> bool:
        """TensorRT waits inside the call until it knows the shapes, so it cannot be captured."""
        if self._cuda.is_capturing(stream):
            self._cuda.spoil_capture(stream)
            return self._refuse("A data-dependent output cannot be captured")
        try:
            self._cuda.drain(stream)
            results = _run(self.engine, self._addresses, shapes, values)
        except Failed as failed:
            self._cuda.note(failed.code)
            return self._refuse(f"Cuda failure: {failed.code}")
        targets = dict(self._addresses)
        for name, allocator in self._allocators.items():
            size = max(1, results[name].nbytes)
            targets[name] = _ask(allocator, name, self._addresses.get(name, 0), size, stream)
            if not targets[name]:
                return self._refuse(f"IOutputAllocator gave no memory for {name} ({size} bytes)")
            allocator.notify_shape(name, Dims(results[name].shape))

        def write() -> None:
            for name, result in results.items():
                self._write(name, targets[name], result)

        self._cuda.enqueue(stream, write)
        return True

    def _write(self, name: str, address: int, result: Any) -> None:
        on_device = self.engine.get_tensor_location(name) is TensorLocation.DEVICE
        self._cuda.at(address, max(1, result.nbytes), kernel=on_device)[: result.nbytes] = memoryview(result.data)

    def _infer(self) -> list[str]:
        missing = [
            tensor.name
            for tensor in self.engine._tensors.values()
            if tensor.mode is TensorIOMode.INPUT
            and (
                (-1 in tensor.shape and tensor.name not in self._shapes)
                or (self.engine.is_shape_inference_io(tensor.name) and not self._addresses.get(tensor.name))
            )
        ]
        if not missing:
            try:
                self._outputs = self.engine._infer(self._input_shapes(), self._shape_values())
            except HardwareError as error:
                report(self.engine._logger, f"IExecutionContext::inferShapes: Error Code 7: {error.text}")
                raise RuntimeError("infer_shapes error code: -1") from None
        return missing

    def _input_shapes(self) -> dict[str, tuple[int, ...]]:
        inputs = [t for t in self.engine._tensors.values() if t.mode is TensorIOMode.INPUT]
        return {tensor.name: self._shapes.get(tensor.name, tensor.shape) for tensor in inputs}

    def _shape_values(self) -> dict[str, bytes]:
        shapes = self._input_shapes()
        return {
            name: _read(self._cuda, self.engine, name, self._addresses[name], shapes[name])
            for name in self.engine._shape_inputs
        }

    def _changed(self) -> None:
        self._changes += 1

    def _fails(self, name: str) -> bool:
        return bool(fails(self.engine._logger, name))

    def _refuse(self, why: str) -> bool:
        report(self.engine._logger, why)
        return False


def _ask(allocator: Any, name: str, memory: int, size: int, stream: int) -> int:
    """As the bindings do: an exception of the allocator is printed and means that there is no memory."""
    try:
        return int(allocator.reallocate_output_async(name, memory, size, ALIGNMENT, stream))
    except Misuse:
        raise
    except Exception as error:  # noqa: BLE001 - the bindings let none through
        print(f"[ERROR] Exception caught in reallocateOutputAsync(): {error}", file=sys.stderr)  # noqa: T201
        return 0


def _read(cuda: Any, engine: ICudaEngine, name: str, address: int, shape: tuple[int, ...]) -> bytes:
    on_device = engine.get_tensor_location(name) is TensorLocation.DEVICE
    nbytes = engine._tensors[name].nbytes(shape)
    return bytes(cuda.at(address, max(1, nbytes), kernel=on_device)[:nbytes])


def _run(
    engine: ICudaEngine, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], values: dict[str, bytes]
) -> Any:
    _misbehave(next(_runs))
    cuda = cudart.current()
    given = {
        name: values[name] if name in values else _read(cuda, engine, name, addresses[name], shape)
        for name, shape in shapes.items()
    }
    try:
        return engine._execute(given, shapes)
    except HardwareError:
        raise Failed(719) from None  # a kernel that fails while it runs


def _misbehave(run: int) -> None:
    if pause := os.environ.get("FAKE_TRT_RUN_S"):
        time.sleep(float(pause))
    if run == int(os.environ.get("FAKE_TRT_SEGFAULT_AT", "0")):
        ctypes.string_at(0)
    if run == int(os.environ.get("FAKE_TRT_HANG_AT", "0")):
        threading.Event().wait()
    if run == int(os.environ.get("FAKE_TRT_STICKY_AT", "0")):
        raise Failed(700)
