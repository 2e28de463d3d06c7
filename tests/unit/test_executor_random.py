"""Anything may happen to the device queue in any order, and every promise about a request still holds.

Arrivals, callers that leave, runs that fail, hang or kill their worker, workers that come back: drawn by hypothesis, in
virtual time, where waiting for what will never happen is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edge.batching import Batching
from edge.executor import MAX_PIPELINED, Executor
from edge.latency import Shapes
from edge.served import Served
from hardware.backend import RawTensor
from hardware.errors import HardwareError, RunFailed, WorkerDied
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InferenceFailed, InstanceLost, ModelNotReady, Overloaded
from tests.virtual import run

WIDTH = 8
"""Bytes of a row: the number of its request, what is wrong with it, and nothing."""
FINE, BAD, DEADLY, STUCK = range(4)
EPSILON_S = 1e-6
HANG_S = 0.2
COMES_BACK_S = 0.03
ENDS_EARLY_S = 0.004


@dataclass(frozen=True)
class Request:
    after_ms: float
    model: int
    rows: int
    left_ms: float
    priority: int
    kind: int
    leaves_ms: float | None
    """It is given up by its caller so much later."""
    outputs: tuple[str, ...]


requests = st.builds(
    Request,
    after_ms=st.sampled_from([0.0, 0.0, 0.5, 3.0, 20.0]),
    model=st.integers(0, 3),
    rows=st.integers(1, 3),
    left_ms=st.sampled_from([2.0, 12.0, 40.0, 100.0, 400.0]),
    priority=st.integers(0, 3),
    kind=st.sampled_from([FINE] * 12 + [BAD] * 3 + [DEADLY, STUCK]),
    leaves_ms=st.sampled_from([None] * 4 + [0.0, 1.0, 15.0]),
    outputs=st.sampled_from([(), (), ("Y",)]),
)


class RoughRuntime:
    """An identity that takes 4 ms and 1 ms a row, one run at a time; a row of a kind but ``FINE`` does what it says."""

    def __init__(self, died: asyncio.Event) -> None:
        self.alive = True
        self._died = died
        self.running: dict[asyncio.Future[list[RawTensor]], int] = {}
        self.largest = 0
        """Rows of the largest run of several requests."""
        self.most = 0
        """Runs at a time."""
        self._free = 0.0

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[list[RawTensor]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[RawTensor]] = loop.create_future()
        if not self.alive:
            future.set_exception(WorkerDied("it is gone already"))
            return future
        tensor = inputs[0]
        data = bytes(tensor.whole)
        kinds = set(data[1::WIDTH])
        if isinstance(tensor.data, tuple):
            self.largest = max(self.largest, tensor.shape[0])
        self.running[future] = tensor.shape[0]
        self.most = max(self.most, len(self.running))
        self._free = max(self._free, loop.time()) + (4.0 + tensor.shape[0]) / 1e3
        if STUCK in kinds:
            self._free = float("inf")
        if self._free < float("inf"):  # else it is stuck, or behind one that is
            loop.call_at(self._free, self._end, future, tensor, kinds)
        return future

    def abandon(self, run: asyncio.Future[list[RawTensor]]) -> None:
        assert not run.done()
        if self._free < float("inf"):
            asyncio.get_running_loop().call_later(ENDS_EARLY_S, self._fail, run, RunFailed("abandoned"))

    def die(self) -> None:
        self.alive = False
        self._died.set()
        for future in list(self.running):
            self._fail(future, WorkerDied("it died"))

    def _end(self, future: asyncio.Future[list[RawTensor]], tensor: RawTensor, kinds: set[int]) -> None:
        if DEADLY in kinds and not future.done():
            self.die()
        elif BAD in kinds:
            self._fail(future, RunFailed("a bad row"))
        elif self.running.pop(future, None) is not None:
            future.set_result([RawTensor("Y", "UINT8", tensor.shape, bytes(tensor.whole))])

    def _fail(self, future: asyncio.Future[list[RawTensor]], error: HardwareError) -> None:
        if self.running.pop(future, None) is not None:
            future.set_exception(error)


class World:
    """A device of four models in one worker: batched, batched after a delay, of two instances, and never batched."""

    def __init__(self, concurrency: int, queue_limit: int) -> None:
        self.executor = Executor(
            concurrency=concurrency,
            queue_limit=queue_limit,
            hang_s=HANG_S,
            on_hang=lambda runtime, _: self.kill(runtime),
        )
        self._died = asyncio.Event()
        self.runtimes = [RoughRuntime(self._died)]
        self.models = [
            self._model("batched", Batching(8)),
            self._model("delayed", Batching(4, 10.0)),
            self._model("twice", Batching(8), 2),
            self._model("alone", Batching(1)),
        ]
        self.watch = asyncio.ensure_future(self._restart())

    def _model(self, name: str, batching: Batching, instances: int = 1) -> Served:
        served = Served(name, name, cast("Runtime", self.runtimes[0]), instances, 0, batching)
        shapes: Shapes = ((WIDTH,),) if batching.max_rows > 1 else ((1, WIDTH),)
        served.latency.measured(shapes, [(rows, 4.0 + rows) for rows in (1, 2, 4, 8)])
        return served

    def kill(self, runtime: Runtime) -> None:
        cast("RoughRuntime", runtime).die()

    async def _restart(self) -> None:
        """As the agent does: what waits for a dead worker is told, and another comes."""
        while True:
            await self._died.wait()
            self._died.clear()
            self.executor.lost(cast("Runtime", self.runtimes[-1]))
            await asyncio.sleep(COMES_BACK_S)
            self.runtimes.append(RoughRuntime(self._died))
            for served in self.models:
                served.runtime = cast("Runtime", self.runtimes[-1])

    async def ask(self, number: int, request: Request) -> None:
        deadline = Deadline.after_ms(request.left_ms)
        row = bytes([number, request.kind]) + bytes(WIDTH - 2)
        inputs = [RawTensor("X", "UINT8", (request.rows, WIDTH), row * request.rows)]
        served = self.models[request.model]
        try:
            answer = await self.executor.infer(served, inputs, request.outputs, deadline, request.priority)
        except (DeadlineExceeded, Overloaded, ModelNotReady, InstanceLost):
            pass  # because of others or of the device
        except InferenceFailed:
            assert request.kind != FINE
        else:
            assert request.kind == FINE
            assert [(t.name, t.shape, bytes(t.whole)) for t in answer] == [("Y", inputs[0].shape, inputs[0].whole)]
        assert deadline.left_s() >= -EPSILON_S, "nobody hears of a request after its deadline"

    def nothing_left(self) -> None:
        assert self.executor.in_flight == 0
        assert self.executor._queue.waiting == 0
        assert self.executor._queue.lanes == {}
        assert self.executor._runs == set()
        assert [(served.in_flight, served.running) for served in self.models] == [(0, 0)] * 4
        assert all(not runtime.running for runtime in self.runtimes)


async def story(asked: Sequence[Request], concurrency: int, queue_limit: int) -> list[asyncio.Task[None]]:
    world = World(concurrency, queue_limit)
    loop = asyncio.get_running_loop()
    tasks = []
    for number, request in enumerate(asked):
        await asyncio.sleep(request.after_ms / 1e3)
        task = asyncio.ensure_future(world.ask(number, request))
        tasks.append(task)
        if request.leaves_ms is not None:
            loop.call_later(request.leaves_ms / 1e3, task.cancel)
    await asyncio.wait(tasks, timeout=5.0)
    assert all(task.done() for task in tasks)
    await asyncio.sleep(2.0)  # runs that nobody wants any more end, or are ended
    world.nothing_left()
    assert max(runtime.largest for runtime in world.runtimes) <= 8
    assert max(runtime.most for runtime in world.runtimes) <= max(concurrency, MAX_PIPELINED)
    world.watch.cancel()
    await asyncio.wait({world.watch})
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in timers if not timer.cancelled()] == []
    return tasks


@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(asked=st.lists(requests, min_size=1, max_size=50), concurrency=st.integers(1, 3), limit=st.sampled_from([3, 64]))
def test_every_promise_holds_whatever_happens(asked: list[Request], concurrency: int, limit: int) -> None:
    for task in run(story(asked, concurrency, limit)):
        if not task.cancelled():
            task.result()


def test_the_story_is_one_in_which_most_are_answered() -> None:
    """The checks above must not pass because nothing ever succeeds."""
    fine = [Request(3.0, number % 4, 1, 400.0, 0, FINE, None, ()) for number in range(100)]
    answered = []

    async def counted() -> None:
        world = World(1, 64)

        async def ask(number: int, request: Request) -> None:
            before = world.models[request.model].completed
            await world.ask(number, request)
            answered.append(world.models[request.model].completed > before)

        await asyncio.gather(*[ask(number, request) for number, request in enumerate(fine[:40])])
        world.nothing_left()
        assert sum(served.completed for served in world.models) == 40
        world.watch.cancel()
        await asyncio.wait({world.watch})

    run(counted())
