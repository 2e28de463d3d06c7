"""One ``IExecutionContext``: told only what changed since the last run, and every answer checked.

TensorRT says False, None or -1 where other libraries raise, and goes on with the old state: a shape that was refused
would run with the last one (backends: ultralytics#26268). A context is used by one thread at a time. Not here: streams
and copies (``tensorrt_instance``), CUDA graphs (``tensorrt_graphs``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardware.backend import RawTensor
from hardware.cuda import Memory, Stream
from hardware.errors import DeviceOutOfMemory, HardwareError, InvalidInput, RunFailed
from hardware.tensorrt import Log
from hardware.tensorrt_buffers import SMALLEST, TensorBuffer
from hardware.tensorrt_engine import Engine, dims

_MEMORY_SIGNS = ("out of memory", "outofmemory", "gpu memory", "cudaerrormemoryallocation")


def failure(what: str, log: Log) -> RunFailed:
    """The error of a call that TensorRT refused, with what it told its logger."""
    reason = log.reason
    log.clear()
    kind = DeviceOutOfMemory if any(sign in reason.lower() for sign in _MEMORY_SIGNS) else RunFailed
    return kind(f"{what}: {reason}")


class EngineContext:
    """``activations`` is memory for what the layers hand to each other, shared by contexts that never run at the same
    time; without it the context has its own, for as long as it lives. Raises ``DeviceOutOfMemory``, ``RunFailed``."""

    def __init__(self, engine: Engine, log: Log, activations: Memory | None = None) -> None:
        self._engine = engine
        self._log = log
        strategies = engine.trt.ExecutionContextAllocationStrategy
        self._context = engine.engine.create_execution_context(
            strategies.STATIC if activations is None else strategies.USER_MANAGED
        )
        if self._context is None:
            raise failure("TensorRT made no execution context", log)
        if activations is not None:
            self._context.set_device_memory(activations.device_address, activations.nbytes)
        self._allocators: dict[str, Any] = {}
        self.forget()

    def forget(self) -> None:
        """Take nothing for granted any more: after a failure the context's state is unknown."""
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}

    def prepare(
        self, profile: int, inputs: Sequence[RawTensor], buffers: Mapping[str, TensorBuffer], stream: Stream
    ) -> bool:
        """Be ready to run ``inputs``, which lie in their buffers already, and make room for the outputs.

        Returns whether anything had to change, so that a graph captured before is of no use. Raises ``InvalidInput``
        for shapes that do not go together.
        """
        reshaped = self._choose(profile, stream)
        for tensor in inputs:
            reshaped |= self._reshape(tensor.name, tensor.shape)
        moved = [self._place(tensor.name, buffers[tensor.name].address) for tensor in self._engine.inputs]
        if reshaped or self._engine.has_shape_inputs or not self._outputs:
            self._infer()
        for output in self._engine.outputs:
            shape = self._outputs[output.name]
            if -1 in shape:
                moved.append(self._let_allocate(output.name, buffers[output.name]))
            else:
                buffers[output.name].reserve(output.nbytes(shape))
                moved.append(self._place(output.name, buffers[output.name].address))
        return reshaped or any(moved)

    @property
    def has_data_dependent_outputs(self) -> bool:
        """Known after the first :meth:`prepare`."""
        return bool(self._allocators)

    def enqueue(self, stream: Stream) -> None:
        """Put one run of the engine on ``stream``."""
        for allocator in self._allocators.values():
            allocator.begin()
        if not self._context.execute_async_v3(stream.handle):
            raised = next((a.error for a in self._allocators.values() if a.error is not None), None)
            raise raised or failure("TensorRT did not start the run", self._log)

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output of the run that was enqueued last; one that depends on data is known by then too."""
        shape: tuple[int, ...] = self._outputs[name]
        if -1 in shape:
            shape = self._allocators[name].shape
            if -1 in shape:
                raise failure(f"TensorRT gave no shape of output '{name}'", self._log)
        return shape

    def close(self) -> None:
        self._context = None  # freed with the last reference; the bindings have no call for it
        self._allocators = {}

    def _choose(self, profile: int, stream: Stream) -> bool:
        if profile == self._profile:
            return False
        if not self._context.set_optimization_profile_async(profile, stream.handle):
            raise failure(f"TensorRT refused profile {profile}", self._log)
        stream.synchronize()  # the switch may copy on the stream
        self._shapes = {}
        self._profile = profile
        return True

    def _reshape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._shapes.get(name) == shape:
            return False
        self._shapes.pop(name, None)
        if not self._context.set_input_shape(name, shape):
            raise self._refused(f"TensorRT refused shape {list(shape)} of input '{name}'")
        self._shapes[name] = shape
        return True

    def _place(self, name: str, address: int) -> bool:
        if self._addresses.get(name) == address:
            return False
        self._addresses.pop(name, None)
        if not self._context.set_tensor_address(name, address):
            raise failure(f"TensorRT refused the address of '{name}'", self._log)
        self._addresses[name] = address
        return True

    def _infer(self) -> None:
        self._outputs = {}
        try:
            missing = self._context.infer_shapes()
        except RuntimeError:  # shapes that each fit but not together, or values that make none
            raise self._refused("the inputs' shapes do not go together") from None
        if missing:
            raise failure(f"TensorRT misses the shapes of {', '.join(missing)}", self._log)
        self._outputs = {t.name: dims(self._context.get_tensor_shape(t.name)) for t in self._engine.outputs}

    def _refused(self, what: str) -> HardwareError:
        return InvalidInput(failure(what, self._log).text)

    def _let_allocate(self, name: str, buffer: TensorBuffer) -> bool:
        if name in self._allocators:
            return False
        allocator = output_allocator(self._engine.trt, buffer)
        if not self._context.set_output_allocator(name, allocator):
            raise failure(f"TensorRT refused an allocator for output '{name}'", self._log)
        self._allocators[name] = allocator
        return True


def output_allocator(trt: Any, buffer: TensorBuffer) -> Any:
    """Gives TensorRT room for an output whose shape only the run itself knows, and learns that shape."""

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)  # pybind11 wants the base called by name
            self.begin()

        def begin(self) -> None:
            self.shape: tuple[int, ...] = (-1,)
            self.error: HardwareError | None = None

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            """0 tells TensorRT that there is none: an exception would only be printed by its bindings."""
            try:
                buffer.reserve(size)
            except HardwareError as error:
                self.error = error
                return 0
            if alignment > SMALLEST and buffer.address % alignment:
                self.error = RunFailed(f"output '{name}' has to be aligned to {alignment} bytes")
                return 0
            return buffer.address

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = dims(shape)

    return OutputAllocator()
