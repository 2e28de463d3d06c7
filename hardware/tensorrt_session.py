"""Sessions of TensorRT: a signed plan from the engine cache, opened on a GPU and run by several instances.

Deserializing without a driver ends the process in TensorRT's own code, so the device is asked first. Not here: where
the plan comes from (``engine_cache``), what an engine is (``tensorrt_engine``), one run of it (``tensorrt_instance``).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hardware import engine_cache
from hardware.backend import Interrupt, Loaded, LoadOptions, RawTensor, check_inputs, shown
from hardware.cuda import Cuda, DeviceFacts, load_cudart
from hardware.errors import (
    BackendUnavailable,
    DeviceFault,
    DeviceOutOfMemory,
    EngineNotBuilt,
    HardwareError,
    InvalidInput,
    NotLoaded,
)
from hardware.process_memory import resident_bytes
from hardware.tensorrt import Log, backend_name, load_trt, logger
from hardware.tensorrt_context import failure
from hardware.tensorrt_engine import Engine
from hardware.tensorrt_instance import Instance

PLATFORM = "tensorrt_plan"


class TensorRtSession:
    """As many runs at the same time as there are instances; more wait for one."""

    def __init__(self, cuda: Cuda, engine: Engine, instances: list[Instance], loaded: Loaded, held: ExitStack) -> None:
        self.loaded = loaded
        self._cuda = cuda
        self._engine: Engine | None = engine
        self._outputs = [tensor.name for tensor in engine.outputs]
        self._instances = instances
        self._idle = deque(instances)
        self._free = threading.Semaphore(len(instances))
        self._fault = ""
        self._closed = False
        self._held = held

    def run(
        self, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None = None
    ) -> list[RawTensor]:
        """As ``Session.run`` says. TensorRT cannot end a run, so an interrupt is only heeded before it starts."""
        engine = self._engine
        if engine is None:
            raise NotLoaded("the model is closed")
        check_inputs(self.loaded.signature, inputs)
        for name in outputs:
            if name not in self._outputs:
                raise InvalidInput(f"the model has no output {shown(name)}")
        by_name = {tensor.name: tensor for tensor in inputs}
        ordered = [by_name[tensor.name] for tensor in engine.inputs]
        profile = engine.profile_for(ordered)
        with self._instance() as instance:
            try:
                self._cuda.use()
                return instance.run(profile, ordered, outputs or self._outputs, interrupt)
            except DeviceFault as fault:
                self._fault = fault.text  # not the error: its traceback keeps everything alive
                raise

    @contextmanager
    def _instance(self) -> Iterator[Instance]:
        """The instance that was used last, for what it was told then need not be told again."""
        with self._free:
            if self._closed:
                raise NotLoaded("the model is closed")
            if self._fault:
                raise DeviceFault(self._fault)
            instance = self._idle.pop()
            try:
                yield instance
            finally:
                self._idle.append(instance)

    def close(self) -> None:
        """Wait for the runs in progress and release what the model holds. Safe to call again."""
        if self._closed:
            return
        for _ in self._instances:
            self._free.acquire()
        self._closed = True
        for _ in self._instances:
            self._free.release()
        for instance in self._instances:
            instance.close()
        self._idle.clear()
        self._instances.clear()
        self._engine = None
        self._held.close()


def open_session(path: str, options: LoadOptions) -> TensorRtSession:
    """Open the engine that was built from the model at ``path``: the plan of ``options.engine_entry``.

    Raises ``BackendUnavailable``, ``DeviceOutOfMemory``, ``ModelRefused``, and ``EngineNotBuilt`` for a plan that
    TensorRT does not take.
    """
    trt, cudart = load_trt(), load_cudart()
    entry = Path(options.engine_entry)
    with ExitStack() as made:
        made.enter_context(engine_cache.hold(entry))  # a worker that starts again needs it again
        plan = engine_cache.read(entry, Path(options.engine_key_file))
        try:
            return open_plan(trt, cudart, plan, options, made)
        except EngineNotBuilt as error:  # it verified and is refused all the same: the next build must not find it
            engine_cache.set_aside(entry, error.text)
            raise


def open_plan(
    trt: Any, cudart: Any, plan: bytes, options: LoadOptions, held: ExitStack | None = None
) -> TensorRtSession:
    """Open a plan with the modules ``trt`` and ``cudart``. A plan is code: it must come from this node's own cache.

    What ``held`` holds is the session's from then on, until it is closed.
    """
    started = time.monotonic()
    cuda = Cuda(cudart, options.device)
    facts = cuda.facts()
    cuda.use()
    resident = resident_bytes(os.getpid())
    cuda.free_bytes()  # makes the context: its failure says why, TensorRT's would not
    errors = Log()
    try:
        engine = Engine(trt, *_deserialize(trt, plan, errors))
        instances = _instances(cuda, engine, errors, facts, options)
    except HardwareError as error:
        _raise_fault(cuda, error)
        raise
    loaded = Loaded(
        signature=engine.signature,
        requested=options.backend,
        effective=backend_name(trt),
        platform=PLATFORM,
        load_ms=(time.monotonic() - started) * 1e3,
        memory_bytes=_growth(resident, resident_bytes(os.getpid())),
        device_bytes=engine.activation_bytes * len(instances) + len(plan),
        batch_limit=engine.batch_limit,
    )
    return TensorRtSession(cuda, engine, instances, loaded, ExitStack() if held is None else held.pop_all())


def _instances(cuda: Cuda, engine: Engine, errors: Log, facts: DeviceFacts, options: LoadOptions) -> list[Instance]:
    instances = []
    with ExitStack() as made:
        for _ in range(max(1, options.instances)):
            instance = Instance(cuda, engine, errors, integrated=facts.integrated, cuda_graphs=options.cuda_graphs)
            made.callback(instance.close)
            instances.append(instance)
        made.pop_all()
    return instances


def _raise_fault(cuda: Cuda, error: HardwareError) -> None:
    """TensorRT does not say that it failed for a lost device: CUDA's next call does."""
    try:
        cuda.free_bytes()
    except DeviceFault as fault:
        raise fault from error
    except HardwareError:  # no news: the error at hand came first
        return


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _deserialize(trt: Any, plan: bytes, errors: Log) -> tuple[Any, Any]:
    try:
        runtime = trt.Runtime(logger(trt, errors))
    except TypeError:  # the bindings' way to say that the library made none
        raise BackendUnavailable(f"TensorRT does not start: {errors.reason}") from None
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        error = failure("TensorRT does not take the engine", errors)
        raise error if isinstance(error, DeviceOutOfMemory) else EngineNotBuilt(error.text)
    return runtime, engine
