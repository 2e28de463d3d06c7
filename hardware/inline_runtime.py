"""A runtime in this process, for models one trusts: no hand-over, and no protection from a backend's crash or hang.

A run on the CPU that is known to be short for its input shapes happens at once, on the loop, even while longer ones
wait for their turn. Models with one instance share a thread, others have threads of their own. Not here: isolation
(``worker_runtime``).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from hardware.backend import Interrupt, Loaded, LoadOptions, RawTensor
from hardware.errors import (
    BackendUnavailable,
    DeviceFault,
    HardwareError,
    InvalidInput,
    NotLoaded,
    RunFailed,
    WorkerDied,
)
from hardware.job_thread import JobThreads
from hardware.parts import Parts
from hardware.sessions import Sessions

_FASTER, _SLOWER = 0.5, 0.1
"""Weights of a new duration below and above what was learned: what lengthens a run is mostly other work on the box."""
_MAX_SHAPES = 1024

Clock = Callable[[], float]
Shapes = tuple[str, tuple[tuple[int, ...], ...]]
"""Key and input shapes: what the duration of a run depends on."""


class Durations:
    """Learned seconds a run takes, per model and input shapes; the first of each, which warms up, does not count."""

    def __init__(self) -> None:
        self._learned: dict[Shapes, float] = {}

    def expected(self, shapes: Shapes) -> float:
        """Infinite while unknown."""
        return self._learned.get(shapes, float("inf"))

    def learn(self, shapes: Shapes, seconds: float) -> None:
        old = self._learned.get(shapes)
        if old is None and len(self._learned) >= _MAX_SHAPES:
            del self._learned[next(iter(self._learned))]
        if old is None:
            self._learned[shapes] = float("inf")
        elif old == float("inf"):
            self._learned[shapes] = seconds
        else:
            self._learned[shapes] = old + (_FASTER if seconds < old else _SLOWER) * (seconds - old)

    def forget(self, key: str) -> None:
        self._learned = {shapes: seconds for shapes, seconds in self._learned.items() if shapes[0] != key}


@dataclass(frozen=True, slots=True)
class _Model:
    threads: JobThreads
    on_loop: bool
    """Whether short runs may hold up the loop: on the CPU they would take its time anyway."""

    @property
    def clock(self) -> Clock:
        """How runs on a thread are timed: on the CPU by the thread's own time, for the wall's counts waiting for the
        interpreter's lock, which a run on the loop would not have to wait for."""
        return time.thread_time if self.on_loop else time.perf_counter


class _TimedRun:
    """One run to be done now or on a thread; ``seconds`` by ``clock`` is None until it succeeded."""

    def __init__(
        self,
        sessions: Sessions,
        clock: Clock,
        request: tuple[str, Sequence[RawTensor], Sequence[str]],
        interrupt: Interrupt | None = None,
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._request = request
        self.interrupt = interrupt
        self.seconds: float | None = None
        self.fault: DeviceFault | None = None

    def __call__(self) -> list[RawTensor]:
        if self.interrupt is not None and self.interrupt.is_set:
            raise RunFailed("the run was abandoned before it began")
        started = self._clock()
        try:
            results = self._sessions.run(*self._request, self.interrupt)
        except DeviceFault as error:
            self.fault = error
            raise
        self.seconds = self._clock() - started
        return results


class InlineRuntime:
    """See :class:`hardware.runtime.Runtime`. ``inline_ms`` is the longest expected run that may hold up the loop."""

    def __init__(self, inline_ms: float = 1.0, on_death: Callable[[str], None] | None = None) -> None:
        self.on_death = on_death
        """Called only for a device fault: else this runtime dies with its process."""
        self._inline_s = inline_ms / 1e3
        self._sessions = Sessions()
        self._durations = Durations()
        self._models: dict[str, _Model] = {}
        self._interrupts: dict[asyncio.Future[list[RawTensor]], Interrupt] = {}
        """Of the runs that were handed to threads."""
        self._alive = False
        self._open = False
        """Whether the threads are there; with them it is alive until a device fault."""
        self._fault = ""

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = JobThreads("mesh-inline-runtime")
        self._alive = self._open = True

    async def __aenter__(self) -> InlineRuntime:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def alive(self) -> bool:
        return self._alive

    @property
    def pid(self) -> int:
        return os.getpid()

    async def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        self._require_alive()
        if options.backend == "python":
            raise BackendUnavailable("steps in Python run in a worker process only")
        answer = self._thread.submit(lambda: self._sessions.load(key, path, options))
        try:
            loaded: Loaded = await answer
        except asyncio.CancelledError:
            if self._open:
                self._thread.submit(lambda: self._sessions.discard(key))  # nobody would ever unload it
            raise
        except DeviceFault as error:
            self._lose(error)
            raise
        threads = JobThreads(f"mesh-{key}", options.instances) if options.instances > 1 else self._thread
        self._models[key] = _Model(threads, on_loop=loaded.effective == "onnxruntime-cpu")
        return loaded

    async def unload(self, key: str) -> None:
        self._require_alive()
        self._durations.forget(key)
        model = self._models.pop(key, None)
        if model is None:
            raise NotLoaded(f"'{key}' is not loaded")
        if model.threads is self._thread:
            await self._thread.submit(lambda: self._sessions.unload(key))
            return
        try:
            await model.threads.close()
        finally:  # where nobody waits any longer, the runtime's thread does

            def unload() -> None:
                model.threads.join()
                self._sessions.unload(key)

            answer = self._thread.submit(unload)
        await answer

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[list[RawTensor]]:
        model = self._models.get(key) if self._alive else None
        shapes = (key, tuple([tensor.shape for tensor in inputs]))
        if model is not None and not (model.on_loop and self._durations.expected(shapes) <= self._inline_s):
            return self._on_thread(model, shapes, inputs, outputs)
        future: asyncio.Future[list[RawTensor]] = self._loop.create_future()
        run = _TimedRun(self._sessions, time.perf_counter, (key, inputs, outputs))
        try:
            self._require_alive()
            if model is None:
                raise NotLoaded(f"'{key}' is not loaded")
            future.set_result(run())
            self._learn(shapes, run)
        except HardwareError as error:
            future.set_exception(error)
        return future

    def stream(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Parts:
        """Fails: what could be streamed is not loaded here."""
        parts = Parts(self._loop.create_future())
        try:
            self._require_alive()
            if key not in self._models:
                raise NotLoaded(f"'{key}' is not loaded")
            raise InvalidInput("the model answers once, and was asked for a stream")
        except HardwareError as error:
            parts.ended.set_exception(error)
        return parts

    def _on_thread(
        self, model: _Model, shapes: Shapes, inputs: Sequence[RawTensor], outputs: Sequence[str]
    ) -> asyncio.Future[list[RawTensor]]:
        interrupt = Interrupt()
        run = _TimedRun(self._sessions, model.clock, (shapes[0], inputs, outputs), interrupt)

        def settled() -> None:
            del self._interrupts[future]
            self._learn(shapes, run)

        future = model.threads.submit(run, settled)
        self._interrupts[future] = interrupt
        return future

    def abandon(self, run: asyncio.Future[list[RawTensor]]) -> None:
        if interrupt := self._interrupts.get(run):
            interrupt.set()

    async def close(self) -> None:
        own = {model.threads for model in self._models.values()} - {self._thread}
        if self._open:
            self._alive = self._open = False
            self._fault = ""
            self._fail_pending(lambda: WorkerDied("the runtime was closed"))
            for interrupt in self._interrupts.values():
                interrupt.set()
            self._thread.submit(lambda: self._close_sessions(own))
        for threads in own:
            await threads.close()
        await self._thread.close()

    def _close_sessions(self, own: set[JobThreads]) -> None:
        for threads in own:
            threads.join()
        self._sessions.close()

    def _learn(self, shapes: Shapes, run: _TimedRun) -> None:
        if run.seconds is not None:
            self._durations.learn(shapes, run.seconds)
        elif run.fault is not None:
            self._lose(run.fault)

    def _lose(self, fault: DeviceFault) -> None:
        """No GPU can be used in this process any more. Models on the CPU could go on, but nobody would know which."""
        if self._alive:
            self._alive = False
            self._fault = f"a device fault in this process, which only its restart mends: {fault.text}"
            self._fail_pending(lambda: DeviceFault(fault.text))
            if self.on_death is not None:
                self.on_death(self._fault)

    def _fail_pending(self, make: Callable[[], Exception]) -> None:
        for threads in {self._thread, *(model.threads for model in self._models.values())}:
            threads.fail_pending(make)

    def _require_alive(self) -> None:
        if self._fault:
            raise WorkerDied(self._fault)
        if not self._alive:
            raise NotLoaded("the runtime is closed")
