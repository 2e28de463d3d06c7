"""The device queue, each request by itself: order, bounds, expiry, prediction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from edge.executor import MAX_PIPELINED
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    MeshError,
    Overloaded,
)
from tests.device import ANSWER, Device, failure, leave, settle
from tests.nats import soon
from tests.virtual import hold_up_the_loop, in_virtual_time


async def test_an_idle_device_runs_at_once_and_answers() -> None:
    device = Device()
    task = await device.ask()
    assert device.runtime.keys == ["m"]
    device.runtime.end(0, ANSWER)
    assert await soon(task) == ANSWER
    device.nothing_left()


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_runs_than_the_concurrency(concurrency: int) -> None:
    device = Device(concurrency=concurrency)
    tasks = [await device.ask(service_ms=50.0) for _ in range(concurrency + 2)]
    for done in range(len(tasks)):
        assert len(device.runtime.runs) == min(done + concurrency, len(tasks))
        device.runtime.end(done, ANSWER)
        await soon(tasks[done])
        await settle()
    device.nothing_left()


async def test_the_earliest_deadline_goes_first_inside_a_priority() -> None:
    device = Device()
    first = await device.ask("first")
    late = await device.ask("late", left_ms=50_000)
    early = await device.ask("early", left_ms=40_000)
    urgent = await device.ask("urgent", left_ms=59_000, priority=1)
    less_urgent = await device.ask("less urgent", left_ms=30_000, priority=2)
    for number, task in enumerate((first, urgent, less_urgent, early, late)):
        device.runtime.end(number, ANSWER)
        await soon(task)
        await settle()
    assert device.runtime.keys == ["first", "urgent", "less urgent", "early", "late"]


async def test_equal_deadlines_go_in_the_order_of_arrival() -> None:
    device = Device()
    deadline = Deadline.after_ms(60_000)
    names = ["running", "a", "b", "c"]
    work = [device.executor.infer(device.served(name), [], [], deadline, 0) for name in names]
    together = asyncio.gather(*work)
    for number in range(len(names)):
        await settle()
        device.runtime.end(number, ANSWER)
    await soon(together)
    assert device.runtime.keys == names


@in_virtual_time
async def test_short_runs_fill_the_workers_pipe_and_long_ones_do_not() -> None:
    device = Device()
    short = [await device.ask("short", service_ms=0.5) for _ in range(6)]
    assert len(device.runtime.runs) == 4  # 2 ms of work
    for number, task in enumerate(short):
        device.runtime.end(number, ANSWER)
        await soon(task)
        await settle()
    long = [await device.ask("long", service_ms=5.0) for _ in range(2)]
    assert device.runtime.keys.count("long") == 1
    device.runtime.end(6, ANSWER)
    await soon(long[0])
    device.runtime.end(7, ANSWER)
    await soon(long[1])
    device.nothing_left()


async def test_the_pipe_is_bounded_by_count_too() -> None:
    device = Device()
    tasks = [await device.ask("tiny", service_ms=0.001) for _ in range(MAX_PIPELINED + 4)]
    assert len(device.runtime.runs) == MAX_PIPELINED
    await leave(*tasks)


@in_virtual_time
async def test_a_full_queue_refuses_with_the_time_to_wait() -> None:
    device = Device(queue_limit=2)
    tasks = [await device.ask(service_ms=100.0) for _ in range(3)]
    error = await failure(await device.ask())
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(0.3)
    assert "2 requests are waiting" in error.text
    await leave(*tasks)
    device.runtime.end(0, ANSWER)
    await settle()
    device.nothing_left()


@in_virtual_time
async def test_what_expires_in_the_queue_never_runs() -> None:
    device = Device()
    running = await device.ask("running")
    late = await device.ask("late", left_ms=20)
    error = await failure(late)
    assert isinstance(error, DeadlineExceeded)
    assert "queue" in error.text
    assert device.executor.in_flight == 1
    device.runtime.end(0, ANSWER)
    await soon(running)
    await settle()
    assert device.runtime.keys == ["running"]
    device.nothing_left()


@in_virtual_time
async def test_what_expires_while_it_runs_is_answered_at_its_deadline_and_keeps_the_device() -> None:
    device = Device()
    late = await device.ask("late", left_ms=20)
    error = await failure(late)
    assert isinstance(error, DeadlineExceeded)
    assert "ran" in error.text
    behind = await device.ask("behind")
    assert device.runtime.keys == ["late"]
    device.runtime.end(0, ANSWER)
    await settle()
    assert device.runtime.keys == ["late", "behind"]
    device.runtime.end(1, ANSWER)
    assert await soon(behind) == ANSWER
    device.nothing_left()


@in_virtual_time
async def test_late_work_is_refused_at_the_door_of_the_queue() -> None:
    device = Device()
    assert isinstance(await failure(await device.ask(left_ms=0)), DeadlineExceeded)
    assert device.runtime.runs == []
    device.nothing_left()


@in_virtual_time
async def test_work_that_is_late_when_its_turn_comes_is_not_run_even_before_its_timer_fires() -> None:
    device = Device()
    running = await device.ask("running")
    late = await device.ask("late", left_ms=30)
    device.runtime.end(0, ANSWER)
    hold_up_the_loop(0.05)  # the loop is busy past the deadline: the end of the run is handled before the timer
    assert isinstance(await failure(late), DeadlineExceeded)
    await soon(running)
    assert device.runtime.keys == ["running"]
    device.nothing_left()


@in_virtual_time
async def test_a_run_that_held_up_the_loop_past_the_deadline_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.runtime.at_once = ANSWER
    run = device.runtime.run

    def slow_run(key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[list[RawTensor]]:
        hold_up_the_loop(0.05)
        return run(key, inputs, outputs)

    monkeypatch.setattr(device.runtime, "run", slow_run)
    assert isinstance(await failure(await device.ask(left_ms=40.0)), DeadlineExceeded)
    assert await (await device.ask(left_ms=60.0)) == ANSWER
    device.nothing_left()


async def test_runs_that_end_at_once_do_not_pile_up() -> None:
    device = Device()
    device.runtime.at_once = ANSWER
    for _ in range(100):
        assert await device.executor.infer(device.served(), [], [], Deadline.after_ms(60_000), 0) == ANSWER
    assert device.executor.forecast.service_ms(device.served()) > 0.0
    assert device.served().completed == 100
    device.nothing_left()


@in_virtual_time
async def test_the_wait_is_the_admitted_work_over_the_concurrency() -> None:
    device = Device(concurrency=2)
    assert device.executor.forecast.wait_ms() == 0.0
    tasks = [await device.ask(service_ms=1000.0) for _ in range(6)]
    assert device.executor.forecast.wait_ms() == pytest.approx(3000.0)
    await leave(*tasks[2:])
    assert device.executor.forecast.wait_ms() == pytest.approx(1000.0)
    for number in range(2):
        device.runtime.end(number, ANSWER)
        await soon(tasks[number])
    device.nothing_left()


@in_virtual_time
async def test_a_run_over_its_expected_time_counts_as_nearly_done() -> None:
    device = Device()
    task = await device.ask(service_ms=0.01)
    await asyncio.sleep(0.01)
    assert device.executor.forecast.wait_ms() == 0.0
    await leave(task)


@in_virtual_time
async def test_time_in_the_workers_pipe_is_not_service_time() -> None:
    device = Device()
    served = device.served("m", 0.5)
    tasks = [await device.ask("m") for _ in range(4)]
    await asyncio.sleep(0.1)  # the first run takes this long; the others wait in the pipe for it
    for number in range(4):
        device.runtime.end(number, ANSWER)
    for task in tasks:
        await soon(task)
    assert device.executor.forecast.service_ms(served) < 1.0  # one slow run and three quick ones, not four slow ones


async def test_in_flight_counts_waiting_and_running_requests_of_the_model() -> None:
    device = Device()
    tasks = [await device.ask("a"), await device.ask("a"), await device.ask("b")]
    assert (device.served("a").in_flight, device.served("b").in_flight) == (2, 1)
    await leave(*tasks)
    with contextlib.suppress(MeshError):
        device.runtime.die()
    await settle()
    device.nothing_left()
