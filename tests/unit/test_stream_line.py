"""Streams on this node: who gets an instance when, deadlines, who leaves, what is lost, and what is learned of it.

Runs end when the test says so. Not here: real runs (``contract/test_runtime_streams``), how it looks from a door.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from edge.served import Served
from hardware.backend import RawTensor
from hardware.errors import InvalidInput, RunFailed
from hardware.parts import Parts
from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InstanceLost,
    InvalidRequest,
    MeshError,
    ModelNotReady,
    Overloaded,
)
from tests.device import ANSWER, Device, settle
from tests.virtual import run

HANG_S = 5.0


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def timeless(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs), ["edge.streaming"])

    return timeless


class Line(Device):
    """A device whose model ``m`` streams."""

    def __init__(self, instances: int = 1, queue_limit: int = 16) -> None:
        super().__init__(queue_limit=queue_limit, hang_s=HANG_S)
        self.m: Served = self.served(instances=instances)
        self.parts: list[Parts] = []
        begin = self.runtime.stream

        def stream(*args: Any) -> Parts:
            self.parts.append(begin(*args))
            return self.parts[-1]

        setattr(self.runtime, "stream", stream)  # noqa: B010 - a method of that one

    def stream(self, *, left_ms: float = 60_000.0, priority: int = 0) -> AsyncGenerator[list[RawTensor], None]:
        return self.executor.streams.stream(self.m, [], (), Deadline.after_ms(left_ms), priority)

    async def first(self, stream: AsyncGenerator[list[RawTensor], None]) -> asyncio.Task[list[RawTensor]]:
        """Ask for its first answer; returns once it waits for that, or for an instance."""
        task = asyncio.ensure_future(anext(stream, []))
        await settle()
        return task

    def answer(self, number: int) -> None:
        self.parts[number].put(ANSWER, lambda: None)

    async def lasts(self, seconds: float) -> None:
        """A stream comes and goes that lasts for so long."""
        number = len(self.parts)
        task = await self.first(stream := self.stream(left_ms=1e6))
        self.answer(number)
        await task
        await asyncio.sleep(seconds)
        self.runtime.end(number)
        assert await anext(stream, None) is None
        await settle()

    @property
    def left(self) -> int:
        return len(self.runtime.abandoned)

    @property
    def wait_ms(self) -> float:
        return self.executor.streams.wait_ms(self.m)

    def idle(self) -> None:
        self.nothing_left()
        assert not self.executor.streams.going


async def error_of(task: asyncio.Task[Any]) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await task
    return caught.value


@in_virtual_time
async def test_an_instance_goes_to_the_next_by_class_and_deadline_when_the_run_has_ended() -> None:
    line = Line(instances=2)
    firsts = [await line.first(line.stream()) for _ in range(2)]
    order: list[str] = []

    async def waits(name: str, **options: Any) -> None:
        async for answer in line.stream(**options):
            assert answer == ANSWER
            order.append(name)

    late = asyncio.ensure_future(waits("late"))
    early = asyncio.ensure_future(waits("early", left_ms=50_000.0))
    urgent = asyncio.ensure_future(waits("urgent", priority=1))
    await settle()
    assert len(line.parts) == 2
    firsts[0].cancel()
    await settle()
    assert (line.left, len(line.parts)) == (1, 2)  # it goes on until the worker says that it does not
    line.runtime.end(0, RunFailed("the run was abandoned"))
    await settle()
    for number in (2, 3, 4):
        assert len(line.parts) == number + 1
        line.answer(number)
        await settle()
        line.runtime.end(number)
        await settle()
    assert order == ["urgent", "early", "late"]
    line.runtime.end(1)
    await asyncio.gather(late, early, urgent, firsts[1])
    line.idle()


@in_virtual_time
async def test_the_deadline_ends_what_goes_on_and_what_waits() -> None:
    line = Line()
    going, waiting = line.stream(left_ms=1000.0), line.stream(left_ms=500.0)
    task, waits = await line.first(going), await line.first(waiting)
    line.answer(0)
    await task
    assert "while it waited for an instance" in (await error_of(waits)).text
    more = asyncio.ensure_future(anext(going))
    error = await error_of(more)
    assert isinstance(error, DeadlineExceeded)
    assert "after 1 answers" in error.text
    assert (line.left, line.m.tally.expired_queued, line.m.tally.expired_running) == (1, 1, 1)
    assert line.m.in_flight == 0
    line.runtime.end(0, RunFailed("the run was abandoned"))
    await settle()
    line.idle()


@in_virtual_time
async def test_one_that_goes_on_after_its_deadline_hangs() -> None:
    line = Line()
    stream = line.stream(left_ms=1000.0)
    task = await line.first(stream)
    line.answer(0)
    await task
    await stream.aclose()
    await asyncio.sleep(1.0 + HANG_S - 0.1)
    assert line.hangs == []
    await asyncio.sleep(0.2)
    assert line.hangs == ["m"]
    line.runtime.die()
    await settle()
    line.idle()


@in_virtual_time
async def test_no_more_wait_than_the_queue_may_hold() -> None:
    line = Line(queue_limit=1)
    tasks = [await line.first(line.stream()) for _ in range(3)]
    assert isinstance(await error_of(tasks[2]), Overloaded)
    assert line.m.tally.queue_full == 1
    tasks[1].cancel()
    await settle()
    line.runtime.end(0)
    await settle()
    line.idle()


@in_virtual_time
async def test_who_would_be_late_is_refused_but_for_the_next_in_line() -> None:
    line = Line()
    await line.lasts(10.0)
    tasks = [await line.first(line.stream(left_ms=15_000.0)) for _ in range(3)]
    error = await error_of(tasks[2])
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(20.0, rel=0.1)
    assert line.m.tally.late == 1
    line.runtime.end(1)
    await settle()
    assert len(line.parts) == 3
    line.runtime.end(2)
    await settle()
    line.idle()


@in_virtual_time
async def test_a_lost_runtime_ends_what_goes_on_and_what_waits() -> None:
    line = Line()
    tasks = [await line.first(line.stream()) for _ in range(2)]
    line.runtime.die()
    line.executor.lost(line.runtime)
    assert isinstance(await error_of(tasks[0]), InstanceLost)
    assert isinstance(await error_of(tasks[1]), ModelNotReady)
    await settle()
    line.idle()
    assert line.m.tally.runs_failed == 1


@pytest.mark.parametrize(("ends", "error"), [(RunFailed("no"), InferenceFailed), (InvalidInput("no"), InvalidRequest)])
def test_what_the_runtime_says_comes_behind_the_answers_before_it(ends: Exception, error: type[MeshError]) -> None:
    async def scene() -> None:
        line = Line()
        stream = line.stream()
        task = await line.first(stream)
        line.answer(0)
        line.runtime.end(0, ends)
        assert await task == ANSWER
        assert isinstance(await error_of(asyncio.ensure_future(anext(stream))), error)
        await settle()
        line.idle()

    run(scene(), ["edge.streaming"])


@in_virtual_time
async def test_the_wait_for_an_instance_is_told_though_no_stream_has_ever_ended() -> None:
    """A camera's stream lasts until its deadline: who asks next must not wait for that, where another node is free."""
    line = Line()
    first = line.stream(left_ms=100_000.0)
    await line.first(first)
    line.answer(0)
    await asyncio.sleep(20.0)
    assert line.wait_ms == pytest.approx(20_000.0)
    await asyncio.sleep(81.0)
    line.runtime.end(0, RunFailed("the run was abandoned"))
    await first.aclose()
    await settle()
    assert line.wait_ms == 0.0
    second = await line.first(line.stream())
    assert line.wait_ms == pytest.approx(101_000.0)  # as long as the one before
    second.cancel()
    line.runtime.end(1)
    await settle()
    line.idle()


@in_virtual_time
async def test_streams_that_outlast_the_usual_are_believed_to_go_on_as_long_again() -> None:
    line = Line(instances=2)
    await line.lasts(1.0)
    tasks = [await line.first(line.stream())]
    await asyncio.sleep(30.0)
    tasks.append(await line.first(line.stream()))
    assert line.wait_ms == pytest.approx(500.0)  # the younger one is as all others until now
    await asyncio.sleep(10.0)
    assert line.wait_ms == pytest.approx(5_000.0)
    for number in (1, 2):
        line.runtime.end(number)
    await asyncio.gather(*tasks)
    await settle()
    line.idle()


@in_virtual_time
async def test_the_watchdogs_own_say_nothing_of_how_long_streams_last() -> None:
    line = Line()
    await line.lasts(60.0)
    for number in range(1, 30):
        probe = line.executor.streams.stream(line.m, [], (), Deadline.after_ms(1e3), 1 << 30, probe=True)
        task = await line.first(probe)
        line.answer(number)
        await task
        await probe.aclose()
        line.runtime.end(number, RunFailed("the run was abandoned"))
        await settle()
    task = await line.first(line.stream())
    assert line.wait_ms == pytest.approx(60_000.0)
    line.runtime.end(30)
    await task
    await settle()
    line.idle()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_in_any_order_every_instance_comes_back(seed: int) -> None:
    async def scene() -> None:
        luck = random.Random(seed)
        line = Line(instances=luck.randint(1, 3))
        tasks: list[asyncio.Task[int]] = []

        async def caller() -> int:
            stream = line.stream(left_ms=luck.choice([1.0, 50.0, 1000.0]), priority=luck.randint(0, 3))
            answers = 0
            try:
                async for _ in stream:
                    answers += 1
                    if luck.random() < 0.3:
                        break
            except MeshError:
                pass
            finally:
                await stream.aclose()
            return answers

        for _ in range(60):
            await asyncio.sleep(luck.choice([0.0, 0.0, 0.01, 0.2]))
            what = luck.random()
            running = [n for n, (_, future) in enumerate(line.runtime.runs) if not future.done()]
            if what < 0.4:
                tasks.append(asyncio.ensure_future(caller()))
            elif what < 0.6 and tasks:
                luck.choice(tasks).cancel()
            elif running and (number := luck.choice(running)) is not None:
                if what < 0.8 and line.parts[number]._part is None:
                    line.answer(number)
                elif what >= 0.8:
                    line.runtime.end(number, RunFailed("no") if luck.random() < 0.5 else ANSWER)
            assert line.m.running <= line.m.instances
        while not all(task.done() for task in tasks):
            for number, (_, future) in enumerate(line.runtime.runs):
                if not future.done():
                    line.runtime.end(number)
            await asyncio.sleep(0.1)
        for number, (_, future) in enumerate(line.runtime.runs):
            if not future.done():
                line.runtime.end(number)
        await settle()
        line.idle()

    run(scene(), ["edge.streaming"])
