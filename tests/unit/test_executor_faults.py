"""The device queue when things go wrong: callers that leave, hangs, deaths, errors of the runtime."""

from __future__ import annotations

import asyncio

import pytest

from edge.served import Served
from hardware.errors import DeviceFault, HardwareError, InvalidInput, RunFailed, WorkerDied
from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InstanceLost,
    InvalidRequest,
    MeshError,
    ModelNotReady,
)
from tests.device import ANSWER, Device, failure, leave, settle
from tests.fakes import ScriptedRuntime
from tests.nats import soon
from tests.virtual import in_virtual_time


async def test_a_caller_that_leaves_the_queue_takes_only_its_own_work_along() -> None:
    device = Device()
    running, leaving, staying = [await device.ask(name) for name in ("running", "leaving", "staying")]
    await leave(leaving)
    assert device.executor.in_flight == 2
    device.runtime.end(0, ANSWER)
    await soon(running)
    await settle()
    device.runtime.end(1, ANSWER)
    assert await soon(staying) == ANSWER
    assert device.runtime.keys == ["running", "staying"]
    device.nothing_left()


async def test_a_caller_that_leaves_a_run_does_not_free_the_device() -> None:
    device = Device()
    leaving = await device.ask("leaving")
    await leave(leaving)
    behind = await device.ask("behind")
    assert device.runtime.keys == ["leaving"]
    device.runtime.end(0, RunFailed("nobody wants to know"))
    await settle()
    device.runtime.end(1, ANSWER)
    assert await soon(behind) == ANSWER
    device.nothing_left()


@in_virtual_time
async def test_a_run_that_goes_on_after_its_deadline_hangs() -> None:
    device = Device(hang_s=0.01)
    error = await failure(await device.ask("stuck", left_ms=10))
    assert isinstance(error, DeadlineExceeded)
    await soon(device.hung.wait())
    assert device.hangs == ["stuck"]


@in_virtual_time
async def test_a_run_that_ends_in_time_after_its_deadline_does_not_hang_and_the_next_is_still_watched() -> None:
    device = Device(hang_s=0.2)
    assert isinstance(await failure(await device.ask("slow", left_ms=10)), DeadlineExceeded)
    device.runtime.end(0, ANSWER)
    await settle()
    assert isinstance(await failure(await device.ask("stuck", left_ms=10)), DeadlineExceeded)
    await soon(device.hung.wait())
    assert device.hangs == ["stuck"]


@in_virtual_time
async def test_a_hang_is_seen_though_its_caller_left() -> None:
    device = Device(hang_s=0.01)
    await leave(await device.ask("stuck", left_ms=50))
    await soon(device.hung.wait())
    assert device.hangs == ["stuck"]


@in_virtual_time
async def test_a_closed_executor_judges_nobody() -> None:
    device = Device(hang_s=0.01)
    assert isinstance(await failure(await device.ask("stuck", left_ms=10)), DeadlineExceeded)
    device.executor.close()
    await asyncio.sleep(0.05)
    assert device.hangs == []


async def test_a_death_fails_what_ran_and_what_waited() -> None:
    device = Device(concurrency=2)
    ran = [await device.ask(service_ms=50.0) for _ in range(2)]
    waited = [await device.ask(service_ms=50.0) for _ in range(3)]
    device.runtime.die("the worker process was ended by SIGSEGV")
    for task in ran:
        error = await failure(task)
        assert isinstance(error, InstanceLost)
        assert "SIGSEGV" in error.text
    for task in waited:
        assert isinstance(await failure(task), ModelNotReady)
    device.nothing_left()
    assert isinstance(await failure(await device.ask()), ModelNotReady)


async def test_a_death_leaves_the_other_runtimes_work_alone() -> None:
    device = Device()
    other = ScriptedRuntime()
    running = await device.ask("mine")
    waiting = asyncio.ensure_future(
        device.executor.infer(Served("other", "other", other), [], [], Deadline.after_ms(60_000), 0)
    )
    doomed = await device.ask("mine")
    device.runtime.die()
    assert isinstance(await failure(running), InstanceLost)
    await settle()
    assert len(other.runs) == 1  # the device is its now, and "doomed" would wait for it
    device.executor.lost(device.runtime)
    assert isinstance(await failure(doomed), ModelNotReady)
    await settle()
    other.end(0, ANSWER)
    assert await soon(waiting) == ANSWER
    device.nothing_left()


async def test_the_oldest_run_is_known_until_its_end_is_handled() -> None:
    device = Device(concurrency=2)
    tasks = [await device.ask("old"), await device.ask("young")]
    blamed: list[str] = []
    device.runtime.on_death = lambda _: blamed.append(getattr(device.executor.oldest(device.runtime), "name", ""))
    device.runtime.end(0, ANSWER)  # answered, but the loop has not handled it yet
    device.runtime.die()
    assert blamed == ["young"]
    assert await soon(tasks[0]) == ANSWER
    assert isinstance(await failure(tasks[1]), InstanceLost)
    assert device.executor.oldest(device.runtime) is None


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (InvalidInput("wrong shape"), InvalidRequest),
        (RunFailed("it failed"), InferenceFailed),
        (DeviceFault("an illegal memory access"), InstanceLost),
        (WorkerDied("gone"), InstanceLost),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_errors_of_the_runtime_arrive_translated_and_teach_nothing(
    raised: HardwareError, expected: type[MeshError], at_once: bool
) -> None:
    device = Device()
    served = device.served(service_ms=25.0)
    if at_once:
        device.runtime.at_once = raised
        task = await device.ask()
    else:
        task = await device.ask()
        device.runtime.end(0, raised)
    error = await failure(task)
    assert type(error) is expected
    assert error.text == raised.text
    assert device.executor.forecast.service_ms(served) == 25.0  # a refused input must not make the model look fast
    assert served.completed == 0
    device.nothing_left()


async def test_a_run_that_is_cancelled_by_its_runtime_does_not_stop_the_queue() -> None:
    device = Device()
    first, second = await device.ask("first"), await device.ask("second")
    device.runtime.runs[0][1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(first)
    await settle()
    device.runtime.end(1, ANSWER)
    assert await soon(second) == ANSWER
    device.nothing_left()
