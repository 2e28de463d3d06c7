"""What an agent counts of each version while its device works: runs, rows, waits, and every way to get no answer."""

from __future__ import annotations

import asyncio

from edge.tally import Tally
from hardware.errors import InvalidInput
from mesh.errors import DeadlineExceeded, InferenceFailed, InstanceLost, Overloaded
from tests.device import ANSWER, Device, failure, leave, rows, settle
from tests.nats import soon
from tests.virtual import in_virtual_time


def unanswered(tally: Tally) -> dict[str, int]:
    names = ("queue_full", "late", "dropped", "expired_queued", "expired_running", "runs_failed")
    return {name: count for name in names if (count := getattr(tally, name))}


@in_virtual_time
async def test_runs_count_their_rows_and_each_inference_its_wait() -> None:
    device = Device()
    tally = device.served("m", 20.0, max_rows=8).tally
    alone = await device.ask("before", service_ms=20.0)
    waiting = [await device.ask(inputs=rows(1)), await device.ask(inputs=rows(2, 3))]
    await asyncio.sleep(0.03)
    device.runtime.end(0, ANSWER)
    await soon(alone)
    await settle()
    await asyncio.sleep(0.2)
    await device.end(1)
    await asyncio.gather(*waiting)
    assert (tally.run_rows.count, tally.run_rows.sum) == (1, 3.0)
    assert tally.run_rows.counts[2] == 1  # in the bucket of 4
    assert round(tally.run_seconds, 6) == 0.2
    assert (tally.queue_seconds.count, round(tally.queue_seconds.sum, 6)) == (2, 0.06)
    before = device.served("before").tally
    assert (before.queue_seconds.count, before.queue_seconds.sum, before.run_rows.sum) == (1, 0.0, 1.0)
    assert unanswered(tally) == unanswered(before) == {}


async def test_a_full_queue_and_a_late_request_are_refused_for_different_reasons() -> None:
    device = Device(queue_limit=2)
    running = await device.ask(service_ms=100.0)
    tally = device.served().tally
    queued = await device.ask()
    assert isinstance(await failure(await device.ask(left_ms=150.0)), Overloaded)
    assert unanswered(tally) == {"late": 1}
    queued_too = await device.ask()
    assert isinstance(await failure(await device.ask()), Overloaded)
    assert unanswered(tally) == {"late": 1, "queue_full": 1}
    await leave(running, queued, queued_too)
    assert unanswered(tally) == {"late": 1, "queue_full": 1}


@in_virtual_time
async def test_deadlines_pass_in_the_queue_or_in_the_run_and_count_once() -> None:
    device = Device()
    tally = device.served().tally
    running = await device.ask(left_ms=100.0)
    waiting = await device.ask(left_ms=50.0)
    assert isinstance(await failure(waiting), DeadlineExceeded)
    assert unanswered(tally) == {"expired_queued": 1}
    assert isinstance(await failure(running), DeadlineExceeded)
    device.runtime.end(0, ANSWER)
    await settle()
    assert unanswered(tally) == {"expired_queued": 1, "expired_running": 1}


@in_virtual_time
async def test_what_is_given_up_so_that_others_are_in_time_is_dropped() -> None:
    device = Device()
    tally = device.served("m", 20.0).tally
    running = await device.ask("before", service_ms=20.0)
    hopeless = await device.ask(left_ms=50.0)
    fine = await device.ask(left_ms=60_000.0)
    await asyncio.sleep(0.04)
    device.runtime.end(0, ANSWER)
    assert isinstance(await failure(hopeless), Overloaded)
    assert unanswered(tally) == {"dropped": 1}
    await settle()
    device.runtime.end(1, ANSWER)
    await asyncio.gather(running, fine)
    assert unanswered(tally) == {"dropped": 1}


async def test_a_run_that_failed_counts_as_one_and_an_abandoned_one_does_not() -> None:
    device = Device()
    tally = device.served().tally
    task = await device.ask()
    device.runtime.end(0, InvalidInput("not like that"))
    await failure(task)
    assert unanswered(tally) == {"runs_failed": 1}
    task = await device.ask()
    device.runtime.die()
    assert isinstance(await failure(task), InstanceLost | InferenceFailed)
    assert unanswered(tally) == {"runs_failed": 2}
    assert tally.run_rows.count == tally.queue_seconds.count == 0
