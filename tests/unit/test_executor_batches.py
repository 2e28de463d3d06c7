"""The device queue when requests run together: who does, who gets what, and what a bad neighbour does to the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hardware.backend import RawTensor
from hardware.errors import DeviceFault, HardwareError, InvalidInput, RunFailed, TensorTooLarge, WorkerDied
from mesh.errors import DeadlineExceeded, InferenceFailed, InstanceLost, InvalidRequest, MeshError, ModelNotReady
from tests.device import ANSWER, Device, Task, answer, failure, leave, rows, settle, values_of
from tests.fakes import ScriptedRuntime
from tests.nats import soon
from tests.virtual import in_virtual_time


async def busy(device: Device, *asked: Sequence[RawTensor], max_rows: int = 8) -> list[Task]:
    """The device at work on another model, and requests that wait for it."""
    device.served("m", 20.0, max_rows=max_rows)
    await device.ask("before", service_ms=20.0)
    return [await device.ask(inputs=inputs) for inputs in asked]


async def answered(tasks: Sequence[Task]) -> list[list[int]]:
    return [values_of(await soon(task)) for task in tasks]


async def test_what_waits_runs_together_and_each_gets_its_own_rows() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2, 3), rows(4))
    device.runtime.end(0, ANSWER)
    await settle()
    assert device.runtime.keys == ["before", "m"]
    assert device.rows_of(1) == 4
    await device.end(1)
    assert await answered(tasks) == [[1], [2, 3], [4]]
    assert device.served("m").completed == 3
    device.nothing_left()


async def test_a_run_has_no_more_rows_than_the_model_takes() -> None:
    device = Device()
    tasks = await busy(device, *[rows(n) for n in range(7)], max_rows=4)
    device.runtime.end(0, ANSWER)
    await settle()
    await device.end(1)
    await device.end(2)
    assert [device.rows_of(run) for run in (1, 2)] == [4, 3]
    assert await answered(tasks) == [[n] for n in range(7)]
    device.nothing_left()


async def test_a_request_of_more_rows_than_a_run_may_have_runs_alone() -> None:
    device = Device()
    tasks = await busy(device, rows(*range(9)), rows(1), rows(2), max_rows=4)
    device.runtime.end(0, ANSWER)
    await settle()
    await device.end(1)
    await device.end(2)
    assert [device.rows_of(run) for run in (1, 2)] == [9, 2]
    assert await answered(tasks) == [list(range(9)), [1], [2]]


async def test_no_more_rows_than_pay_run_together() -> None:
    device = Device()
    device.served("m", 20.0, max_rows=8, row_ms=20.0)  # every row costs the same
    before = await device.ask("before", service_ms=20.0)
    tasks = [await device.ask(inputs=rows(n)) for n in range(3)]
    device.runtime.end(0, ANSWER)
    await soon(before)
    for run in (1, 2, 3):
        await device.end(run)
    assert [device.rows_of(run) for run in (1, 2, 3)] == [1, 1, 1]
    assert await answered(tasks) == [[0], [1], [2]]


async def test_only_alike_requests_run_together() -> None:
    """Other shapes, types, inputs, an other order of them, or other outputs: each runs on its own."""
    x, other = rows(1), rows(9, name="Z")
    kinds: list[tuple[Sequence[RawTensor], Sequence[str]]] = [
        (x, ()),
        (rows(1, width=3), ()),
        ([RawTensor("X", "INT8", (1, 2), b"\x01\x01")], ()),
        ([*x, *other], ()),
        ([*other, *x], ()),
        (x, ("Y",)),
        ([*x, RawTensor("K", "UINT8", (), b"k")], ()),
    ]
    device = Device(queue_limit=64)
    await busy(device)
    tasks = [await device.ask(inputs=inputs, outputs=outputs) for inputs, outputs in kinds for _ in range(2)]
    device.runtime.end(0, ANSWER)
    await settle()
    run = 1
    while run < len(device.runtime.runs):
        await device.end(run)
        run += 1
    sizes = sorted(device.rows_of(number) for number in range(1, run))
    assert sizes == [1, 1, 2, 2, 2, 2, 2, 2]  # those with a scalar cannot run together at all
    for task in tasks:
        assert len(await soon(task)) == 1
    device.nothing_left()


@pytest.mark.parametrize(
    ("raised", "expected"), [(InvalidInput("a bad value"), InvalidRequest), (RunFailed("it failed"), InferenceFailed)]
)
async def test_a_failed_run_is_repeated_one_by_one_and_only_the_bad_request_fails(
    raised: HardwareError, expected: type[MeshError]
) -> None:
    device = Device()
    good, bad, other = await busy(device, rows(1), rows(2), rows(3))
    device.runtime.end(0, ANSWER)
    await settle()
    device.runtime.end(1, raised)
    await settle()
    for run in (2, 3, 4):
        inputs = device.runtime.inputs[run]
        device.runtime.end(run, raised if inputs == rows(2) else answer(inputs))
        await settle()
    assert await answered([good, other]) == [[1], [3]]
    assert type(await failure(bad)) is expected
    assert len(device.runtime.runs) == 5
    device.nothing_left()


async def test_requests_that_do_not_fit_a_slot_together_run_one_by_one() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    device.runtime.end(1, TensorTooLarge("the inputs are larger than a slot"))
    await settle()
    await device.end(2)
    await device.end(3)
    assert await answered(tasks) == [[1], [2]]


async def test_an_answer_of_other_rows_is_given_to_nobody() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    device.runtime.end(1, [RawTensor("Y", "UINT8", (1, 2), b"\x01\x02")])
    await settle()
    await device.end(2)
    await device.end(3)
    assert await answered(tasks) == [[1], [2]]
    device.nothing_left()


async def test_wrong_sizes_that_add_up_harm_nobody_else() -> None:
    device = Device()
    short, long = [RawTensor("X", "UINT8", (1, 2), b"s")], [RawTensor("X", "UINT8", (1, 2), b"lll")]
    good, *wrong = await busy(device, rows(1), short, long)
    device.runtime.end(0, ANSWER)
    await settle()
    for run in range(1, 4):
        inputs = device.runtime.inputs[run]
        device.runtime.end(run, answer(inputs) if inputs == rows(1) else InvalidInput("wrong size"))
        await settle()
    assert await answered([good]) == [[1]]
    for task in wrong:
        assert isinstance(await failure(task), InvalidRequest)
    device.nothing_left()


@pytest.mark.parametrize("raised", [WorkerDied("gone"), DeviceFault("an illegal memory access")])
async def test_what_ran_in_a_runtime_that_is_lost_may_be_tried_elsewhere(raised: HardwareError) -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    device.runtime.end(1, raised)
    for task in tasks:
        error = await failure(task)
        assert isinstance(error, InstanceLost)
        assert error.retryable
    assert len(device.runtime.runs) == 2
    device.nothing_left()


async def test_what_should_run_again_does_not_in_a_runtime_that_died_meanwhile() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    device.runtime.end(1, RunFailed("it failed"))
    device.runtime.alive = False
    for task in tasks:
        assert isinstance(await failure(task), ModelNotReady)
    device.nothing_left()


@in_virtual_time
async def test_neighbours_that_leave_or_expire_while_they_run_harm_nobody() -> None:
    device = Device()
    device.served("m", 1.0, max_rows=8)
    first = await device.ask("before", service_ms=1.0)
    leaves, expires, stays = [
        await device.ask(inputs=rows(n), left_ms=left_ms) for n, left_ms in ((1, 60_000), (2, 300), (3, 60_000))
    ]
    device.runtime.end(0, ANSWER)
    await soon(first)
    await settle()
    assert device.rows_of(1) == 3
    await leave(leaves)
    assert isinstance(await failure(expires), DeadlineExceeded)
    assert device.executor.in_flight == 1
    assert device.runtime.abandoned == []
    await device.end(1)
    assert await answered([stays]) == [[3]]
    device.nothing_left()


async def test_a_run_is_abandoned_when_the_last_who_wanted_it_leaves_and_not_before() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    await leave(tasks[0])
    assert device.runtime.abandoned == []
    await leave(tasks[1])
    assert device.runtime.abandoned == [device.runtime.runs[1][1]]
    assert device.executor.in_flight == 0
    behind = await device.ask("before")
    assert len(device.runtime.runs) == 2  # the device is not free yet
    device.runtime.end(1, RunFailed("abandoned"))
    await settle()
    device.runtime.end(2, ANSWER)
    assert await soon(behind) == ANSWER
    device.nothing_left()


async def test_nobody_abandons_a_run_that_is_done() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    device.runtime.end(1, answer(device.runtime.inputs[1]))
    await leave(*tasks)
    assert device.runtime.abandoned == []
    device.nothing_left()


async def test_who_leaves_before_the_repetition_is_not_repeated() -> None:
    device = Device()
    tasks = await busy(device, rows(1), rows(2), rows(3))
    device.runtime.end(0, ANSWER)
    await settle()
    await leave(tasks[0])
    device.runtime.end(1, RunFailed("it failed"))
    tasks[1].cancel()  # in the same turn
    await settle()
    await device.end(2)
    assert await answered(tasks[2:]) == [[3]]
    assert len(device.runtime.runs) == 3
    device.nothing_left()


async def test_lower_classes_ride_along_where_there_is_room() -> None:
    device = Device()
    device.served("m", 20.0, max_rows=4)
    await device.ask("before", service_ms=20.0)
    low = [await device.ask(inputs=rows(n)) for n in range(4)]
    high = [await device.ask(inputs=rows(n), priority=1) for n in (7, 8)]
    device.runtime.end(0, ANSWER)
    await settle()
    await device.end(1)
    await device.end(2)
    assert bytes(device.runtime.inputs[1][0].whole)[::2] == b"\x07\x08\x00\x01"
    assert await answered([*high, *low]) == [[7], [8], [0], [1], [2], [3]]


async def test_those_who_usually_come_along_are_waited_for_until_the_end_of_the_turn() -> None:
    device = Device()
    served = device.served("m", 20.0, max_rows=8)
    at_once = 0
    for _ in range(12):
        number = len(device.runtime.runs)
        tasks = [device.start(inputs=rows(n)) for n in range(4)]
        await settle()
        if device.rows_of(number) == 4:
            at_once += 1
        await device.end(number)
        if len(device.runtime.runs) > number + 1:
            await device.end(number + 1)
        assert await answered(tasks) == [[0], [1], [2], [3]]
    assert served.company > 2.0
    assert at_once == 11  # all but the first time
    for _ in range(20):
        number = len(device.runtime.runs)
        task = await device.ask(inputs=rows(1))
        await device.end(number)
        await soon(task)
    assert served.company < 0.1
    device.nothing_left()


async def test_the_turn_is_not_waited_for_where_company_does_not_pay() -> None:
    device = Device()
    served = device.served("m", 20.0, max_rows=8, row_ms=20.0)
    served.company = 5.0
    tasks = [device.start(inputs=rows(n)) for n in range(2)]
    await asyncio.sleep(0)
    assert len(device.runtime.runs) == 1
    await device.end(0)
    await device.end(1)
    assert await answered(tasks) == [[0], [1]]


async def test_instances_run_at_the_same_time_and_no_more_of_them() -> None:
    device = Device(concurrency=3)
    device.served("m", 20.0, max_rows=2, instances=2)
    tasks = [await device.ask(inputs=rows(n)) for n in range(6)]
    assert [device.rows_of(run) for run in range(2)] == [1, 1]
    assert len(device.runtime.runs) == 2
    other = await device.ask("other", service_ms=20.0)
    assert device.runtime.keys == ["m", "m", "other"]
    await device.end(1)
    assert device.rows_of(3) == 2
    await device.end(0)
    device.runtime.end(2, ANSWER)
    await soon(other)
    await device.end(3)
    await device.end(4)
    assert await answered(tasks) == [[n] for n in range(6)]
    device.nothing_left()


async def test_a_model_moves_to_another_runtime_and_its_runs_are_waited_for() -> None:
    device = Device()
    served = device.served("m", 20.0, max_rows=4)
    running, waiting = [await device.ask(inputs=rows(n)) for n in range(2)]
    other = ScriptedRuntime()
    moved = asyncio.ensure_future(device.executor.swap(served, "m2", other))
    await settle()
    assert not moved.done()
    await device.end(0)
    await soon(moved)
    assert other.keys == ["m2"]
    other.end(0, answer(other.inputs[0]))
    assert await answered([running, waiting]) == [[0], [1]]
    await soon(device.executor.swap(served, "m3", device.runtime))
    device.nothing_left()


async def test_a_failed_run_is_repeated_where_the_model_is_by_then() -> None:
    device = Device()
    served = device.served("m", 20.0, max_rows=4)
    tasks = await busy(device, rows(1), rows(2))
    device.runtime.end(0, ANSWER)
    await settle()
    other = ScriptedRuntime()
    moved = asyncio.ensure_future(device.executor.swap(served, "m2", other))
    await settle()
    device.runtime.end(1, RunFailed("it failed"))
    await soon(moved)
    await settle()
    for run in range(2):
        other.end(run, answer(other.inputs[run]))
        await settle()
    assert await answered(tasks) == [[1], [2]]
    device.nothing_left()
