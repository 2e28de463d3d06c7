"""Background tasks have an owner, die loudly, and end with it; signals stop a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from mesh.lifecycle import Tasks, stop_on_signals, within
from tests.fakes import until
from tests.nats import soon


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)  # leaving may take more than a moment
        ended.append("ended")


async def test_leaving_ends_every_task_and_waits_for_it() -> None:
    ended: list[str] = []
    async with Tasks("owner") as tasks:
        for _ in range(3):
            tasks.start(forever(ended), "work")
        await asyncio.sleep(0)
    assert ended == ["ended"] * 3


async def test_a_task_that_is_started_while_the_others_end_ends_too() -> None:
    tasks = Tasks("owner")

    async def last_will() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.start(forever([]), "late")

    async with tasks:
        tasks.start(last_will(), "first")
        await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("owner.")]


async def test_a_task_that_fails_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[BaseException] = []

    async def fail() -> None:
        raise RuntimeError("on its own")

    async with Tasks("owner", failed.append) as tasks:
        tasks.start(fail(), "work")
        await until(lambda: bool(failed))
    assert "owner.work ended with an error" in caplog.text
    assert "on its own" in caplog.text


async def test_a_task_may_end_its_own_owner() -> None:
    tasks = Tasks("owner")
    done = asyncio.Event()

    async def last() -> None:
        await tasks.cancel()
        done.set()

    tasks.start(last(), "last")
    await soon(done.wait())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_sets_the_event_and_the_handlers_are_given_back(number: signal.Signals) -> None:
    async with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        await soon(stop.wait())
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


async def test_a_cancellation_that_meets_the_end_of_the_work_is_not_lost() -> None:
    """``asyncio.wait_for`` swallows it before Python 3.12: a loop built on that went on for ever."""
    for steps in range(6):
        event = asyncio.Event()

        async def loop(event: asyncio.Event = event) -> None:
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(60.0, event.wait())
                event.clear()

        task = asyncio.create_task(loop())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        event.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=60.0)
        assert done


async def test_within_gives_the_result_or_the_timeout() -> None:
    assert await within(60.0, asyncio.sleep(0, "done")) == "done"
    assert await within(None, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, asyncio.Event().wait())
