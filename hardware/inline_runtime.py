"""A runtime in this process, for models one trusts: no hand-over, and no protection from a backend's crash or hang.

A run that is known to be short for its input shapes happens at once, on the loop, even while longer ones wait for the
one thread. Not here: isolation (``worker_runtime``).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from hardware.backend import Loaded, LoadOptions, RawTensor
from hardware.errors import HardwareError, NotLoaded, WorkerDied
from hardware.job_thread import JobThread
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


class _TimedRun:
    """One run to be done now or on the thread; ``seconds`` by ``clock`` is None until it succeeded."""

    def __init__(
        self, sessions: Sessions, clock: Clock, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._request = key, inputs, outputs
        self.seconds: float | None = None

    def __call__(self) -> list[RawTensor]:
        started = self._clock()
        results = self._sessions.run(*self._request)
        self.seconds = self._clock() - started
        return results


class InlineRuntime:
    """See :class:`hardware.runtime.Runtime`. ``inline_ms`` is the longest expected run that may hold up the loop."""

    def __init__(self, inline_ms: float = 1.0, on_death: Callable[[str], None] | None = None) -> None:
        self.on_death = on_death
        """Never called: this runtime dies with its process."""
        self._inline_s = inline_ms / 1e3
        self._sessions = Sessions()
        self._durations = Durations()
        self._clocks: dict[str, Clock] = {}
        """How runs on the thread are timed: on the CPU by the thread's own time, for the wall's counts waiting for the
        interpreter's lock, which a run on the loop would not have to wait for."""
        self._alive = False

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = JobThread("mesh-inline-runtime")
        self._alive = True

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
        answer = self._thread.submit(lambda: self._sessions.load(key, path, options))
        try:
            loaded: Loaded = await answer
        except asyncio.CancelledError:
            if self._alive:
                self._thread.submit(lambda: self._sessions.discard(key))  # nobody would ever unload it
            raise
        if loaded.effective == "onnxruntime-cpu":
            self._clocks[key] = time.thread_time
        return loaded

    async def unload(self, key: str) -> None:
        self._require_alive()
        self._durations.forget(key)
        self._clocks.pop(key, None)
        await self._thread.submit(lambda: self._sessions.unload(key))

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[list[RawTensor]]:
        shapes = (key, tuple([tensor.shape for tensor in inputs]))
        if self._alive and self._durations.expected(shapes) > self._inline_s:
            run = _TimedRun(self._sessions, self._clocks.get(key, time.perf_counter), key, inputs, outputs)
            return self._thread.submit(run, lambda: self._learn(shapes, run))
        run = _TimedRun(self._sessions, time.perf_counter, key, inputs, outputs)
        future: asyncio.Future[list[RawTensor]] = self._loop.create_future()
        try:
            self._require_alive()
            future.set_result(run())
            self._learn(shapes, run)
        except HardwareError as error:
            future.set_exception(error)
        return future

    async def close(self) -> None:
        if self._alive:
            self._alive = False
            self._thread.fail_pending(lambda: WorkerDied("the runtime was closed"))
            self._sessions.terminate()
        await self._thread.close()
        self._sessions.close()

    def _learn(self, shapes: Shapes, run: _TimedRun) -> None:
        if run.seconds is not None:
            self._durations.learn(shapes, run.seconds)

    def _require_alive(self) -> None:
        if not self._alive:
            raise NotLoaded("the runtime is closed")
