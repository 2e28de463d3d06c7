"""What is predicted of a device, and what its runs teach. All in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from edge.forecast import KEPT_S, PAUSE_S
from edge.lane import admit
from edge.served import Served
from hardware.errors import RunFailed
from mesh.deadline import Deadline
from mesh.messages import CLASSES, IDLE, Queued
from tests.device import ANSWER, Device, failure, leave, rows, settle
from tests.virtual import in_virtual_time


async def ran(device: Device, name: str, ms: float) -> None:
    """One request whose run takes so long."""
    number = len(device.runtime.runs)
    task = await device.ask(name)
    await asyncio.sleep(ms / 1e3)
    device.runtime.end(number, ANSWER)
    await task


@in_virtual_time
async def test_an_idle_device_is_ready_at_once() -> None:
    device = Device()
    forecast = device.executor.forecast
    assert forecast.wait_ms() == forecast.rest_ms() == forecast.running_ms() == 0.0
    assert forecast.work() is IDLE
    assert forecast.service_ms(device.served("m", 30.0)) == 30.0
    assert forecast.costs(device.served("m")) == (30.0, 30.0)
    assert forecast.service_ms(device.served("unknown")) == 0.0


@in_virtual_time
async def test_the_rest_of_a_run_shrinks_as_it_goes_on_and_is_never_negative() -> None:
    device = Device()
    task = await device.ask(service_ms=100.0)
    forecast = device.executor.forecast
    assert [forecast.rest_ms(), forecast.running_ms()] == pytest.approx([100.0, 100.0])
    await asyncio.sleep(0.06)
    assert [forecast.rest_ms(), forecast.running_ms()] == pytest.approx([40.0, 100.0])
    await asyncio.sleep(0.06)
    assert forecast.rest_ms() == forecast.wait_ms() == 0.0
    await leave(task)


@in_virtual_time
async def test_the_wait_counts_what_waits_in_the_batches_it_will_run_in() -> None:
    device = Device(queue_limit=64)
    device.served("m", 20.0, max_rows=8)
    tasks = [await device.ask("before", service_ms=50.0)]
    tasks += [await device.ask("m", inputs=rows(n)) for n in range(16)]
    assert device.executor.forecast.wait_ms() == pytest.approx(50.0 + 2 * (20.0 + 7 * 2.0))
    await leave(*tasks)


@in_virtual_time
async def test_a_slow_device_is_noticed_and_told_of() -> None:
    device = Device()
    served = device.served("m", 10.0)
    for _ in range(30):
        await ran(device, "m", 30.0)
    forecast = device.executor.forecast
    assert forecast.service_ms(served) == pytest.approx(30.0, rel=0.1)
    assert forecast.slowdown.factor > 1.2


@in_virtual_time
async def test_the_first_run_after_a_pause_says_nothing_of_the_speed() -> None:
    device = Device()
    device.served("m", 10.0)
    slowdown = device.executor.forecast.slowdown
    for _ in range(10):
        await asyncio.sleep(PAUSE_S * 1.5)
        await ran(device, "m", 25.0)
    assert slowdown.factor == 1.0
    await ran(device, "m", 50.0)
    assert slowdown.factor > 1.0


@in_virtual_time
async def test_runs_that_failed_teach_nothing() -> None:
    device = Device()
    served = device.served("m", 10.0)
    for number in range(20):
        task = await device.ask()
        device.runtime.end(number, RunFailed("at once"))
        await failure(task)
    assert device.executor.forecast.service_ms(served) == 10.0
    assert served.completed == 0


@in_virtual_time
async def test_an_abandoned_run_that_was_ended_early_does_not_make_the_model_look_fast() -> None:
    device = Device()
    served = device.served("m", 100.0)
    for number in range(20):
        task = await device.ask()
        await leave(task)
        device.runtime.end(number, RunFailed("abandoned"))
        await settle()
    assert device.executor.forecast.service_ms(served) == 100.0


@in_virtual_time
async def test_a_lane_is_held_for_its_delay_and_no_longer_than_the_first_slack() -> None:
    device = Device()
    served = device.served("m", 20.0, max_rows=8, delay_ms=100.0)
    begin = asyncio.get_running_loop().time()
    running = await device.ask("before", service_ms=50.0)
    waiting = [await device.ask("m", inputs=rows(1), left_ms=10_000.0)]
    (lane,) = device.executor._queue.lanes.values()
    forecast = device.executor.forecast
    assert forecast.held_until(lane) == pytest.approx(begin + 0.1)
    waiting.append(await device.ask("m", inputs=rows(1), left_ms=80.0))
    assert forecast.held_until(lane) == pytest.approx(begin + 0.08 - 0.022 * 1.05)
    waiting += [await device.ask("m", inputs=rows(*range(6)))]
    assert (lane.rows, forecast.held_until(lane)) == (8, 0.0)
    await leave(running, *waiting)
    assert served.in_flight == 0


@in_virtual_time
async def test_predictions_hold_a_margin_and_the_slowdown() -> None:
    device = Device()
    device.served("m", 20.0, max_rows=8)
    running = await device.ask("before", service_ms=50.0)
    waiting = await device.ask("m", inputs=rows(1))
    (lane,) = device.executor._queue.lanes.values()
    forecast = device.executor.forecast
    forecast.slowdown.factor = 2.0
    assert forecast.cost(lane)(4) == pytest.approx(26.0 * 2.0 * 1.05)
    await leave(running, waiting)


@in_virtual_time
async def test_what_goes_behind_is_predicted_behind() -> None:
    device = Device()
    tasks = [await device.ask("m", service_ms=50.0, left_ms=1000.0) for _ in range(4)]
    forecast = device.executor.forecast
    await asyncio.sleep(0.02)

    def finish_ms(left_ms: float, priority: int = 0) -> float:
        served: Served = device.served("m")
        item = admit(served, [], (), Deadline.after_ms(left_ms), priority, 0.0, 99)
        return forecast.finish_ms(item)

    assert finish_ms(2000.0) == pytest.approx(30.0 + 3 * 50.0 + 50.0)
    assert finish_ms(500.0) == pytest.approx(30.0 + 50.0)
    assert finish_ms(2000.0, priority=1) == pytest.approx(30.0 + 50.0)
    await leave(*tasks)


def queued_ms(queued: Queued) -> float:
    return sum(sum(bins) for _, bins in queued)


@in_virtual_time
async def test_the_wait_is_the_rest_of_what_runs_and_all_that_is_queued() -> None:
    device = Device(concurrency=2, queue_limit=64)
    batched = device.served("m", 20.0, max_rows=8)
    forecast = device.executor.forecast
    tasks = [await device.ask("before", service_ms=50.0) for _ in range(2)]
    tasks += [await device.ask("m", inputs=rows(n), left_ms=500.0 * (n + 1), priority=n % 3) for n in range(16)]
    forecast.slowdown.factor = 2.0
    await asyncio.sleep(0.03)
    work = forecast.work()
    assert [level for level, _ in work.queued] == [1, 2, CLASSES]
    assert queued_ms(work.queued) == pytest.approx(2 * (20.0 + 7 * 2.0) * 2.0 / 2)
    assert work.wait_ms == forecast.wait_ms() == pytest.approx(forecast.rest_ms() / 2 + queued_ms(work.queued))
    assert forecast.costs(batched) == pytest.approx((40.0, 2.0 * 34.0 / 8))
    await leave(*tasks)


@in_virtual_time
async def test_a_queue_is_looked_at_once_for_each_change_and_as_its_deadlines_come_nearer() -> None:
    device = Device()
    tasks = [await device.ask(service_ms=50.0, left_ms=9_000.0) for _ in range(4)]
    forecast, queue = device.executor.forecast, device.executor.forecast.queue
    before = forecast.work()
    assert forecast.work().queued is before.queued
    await leave(tasks.pop())
    after = forecast.work()
    assert queued_ms(after.queued) == pytest.approx(queued_ms(before.queued) - 50.0)
    await asyncio.sleep(2 * KEPT_S)
    assert forecast.work().queued is not after.queued
    assert queue.waiting == 2
    forecast.slowdown.factor = 3.0
    device.runtime.end(0, ANSWER)
    await settle()
    assert queued_ms(forecast.work().queued) == pytest.approx(forecast.service_ms(device.served()))
    await leave(*tasks)
