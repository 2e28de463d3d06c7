"""The device queue over time: whose turn it is, who waits for company, who is turned away. All in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from edge.batching import Batching
from edge.executor import Executor
from edge.lane import CLIMB_S
from edge.latency import Shapes
from edge.served import Served
from hardware.backend import RawTensor
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, MeshError, Overloaded
from tests.device import Device, failure, leave, rows, settle
from tests.virtual import VirtualRuntime, hold_up_the_loop, in_virtual_time

Cost = Callable[[int], float]


def affine(count: int) -> float:
    return 8.0 + 2.0 * count


class Timed:
    """An executor on a device that takes 8 ms a run and 2 ms a row, and when each request was answered or failed."""

    def __init__(self, cost: Cost = affine, *, queue_limit: int = 1024, concurrency: int = 1) -> None:
        self.runtime = VirtualRuntime(cost)
        self.executor = Executor(
            concurrency=concurrency, queue_limit=queue_limit, hang_s=60.0, on_hang=lambda runtime, served: None
        )
        self.begun = asyncio.get_running_loop().time()
        self.ends: dict[str, float] = {}
        """Milliseconds at which each request was done."""

    @property
    def now_ms(self) -> float:
        return (asyncio.get_running_loop().time() - self.begun) * 1e3

    def model(self, name: str, *, max_rows: int = 1, delay_ms: float = 0.0, priority: int = 0) -> Served:
        served = Served(name, name, cast("Runtime", self.runtime), 1, priority, Batching(max_rows, delay_ms))
        shapes: Shapes = ((2,),) if max_rows > 1 else ((1, 2),)
        served.latency.measured(shapes, [(n, self.runtime.cost(n)) for n in (1, 2, 4, 8, 16)])
        return served

    def ask(self, name: str, served: Served, left_ms: float, *, priority: int = 0) -> asyncio.Task[list[RawTensor]]:
        work = self.executor.infer(served, rows(1), (), Deadline.after_ms(left_ms), priority)
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: self.ends.setdefault(name, self.now_ms))
        return task

    @property
    def order(self) -> list[str]:
        return list(self.ends)


async def fate(task: asyncio.Task[list[RawTensor]]) -> MeshError | None:
    try:
        await task
    except MeshError as error:
        return error
    return None


@in_virtual_time
async def test_a_request_expires_in_the_queue_at_its_deadline_not_when_the_device_is_free() -> None:
    device = Timed(lambda count: 500.0)
    long, short = device.model("long"), device.model("short")
    running = device.ask("running", long, 900.0)
    await settle()
    waiting = device.ask("waiting", short, 100.0)
    assert isinstance(await fate(waiting), DeadlineExceeded)
    assert device.now_ms == pytest.approx(100.0)
    assert device.executor.in_flight == 1
    assert await fate(running) is None
    assert device.runtime.runs == [1]


@in_virtual_time
async def test_a_run_that_ends_after_the_deadline_is_no_success() -> None:
    device = Timed(lambda count: 500.0)
    assert isinstance(await fate(device.ask("late", device.model("m"), 100.0)), DeadlineExceeded)
    assert device.now_ms == pytest.approx(100.0)
    assert device.runtime.abandoned == 1


@in_virtual_time
async def test_what_would_be_late_behind_those_that_go_first_is_refused_at_the_door() -> None:
    device = Timed()
    served = device.model("m")
    tasks = [device.ask(str(n), served, 1000.0, priority=1) for n in range(10)]
    await settle()
    error = await fate(device.ask("late", served, 60.0, priority=2))  # 100 ms go before it, and it takes 10
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(0.05)
    assert device.ends["late"] == 0.0
    tasks += [device.ask("behind", served, 130.0, priority=2), device.ask("first", served, 60.0, priority=1)]
    assert [await fate(task) for task in tasks] == [None] * 12
    assert device.ends["behind"] == pytest.approx(120.0)
    assert device.ends["first"] == pytest.approx(20.0)


@in_virtual_time
async def test_who_is_dropped_for_others_is_told_when_to_come_back() -> None:
    device = Timed()
    served = device.model("m", max_rows=16)
    running = device.ask("running", served, 1000.0)
    await settle()
    tight = [device.ask(f"tight {left_ms}", served, left_ms) for left_ms in (21.0, 23.0)]
    roomy = [device.ask(f"roomy {n}", served, 100.0) for n in range(20)]
    assert await fate(running) is None
    errors = [await fate(task) for task in tight]
    for error in errors:
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == pytest.approx(0.04 + 4 * 0.04 / 16)  # sixteen run, and four are left
        assert error.refused
    assert [await fate(task) for task in roomy[:16]] == [None] * 16


@in_virtual_time
async def test_an_idle_device_turns_nobody_away_whatever_it_expects() -> None:
    device = Timed()
    served = device.model("m")
    served.latency.measured(((1, 2),), [(1, 5000.0)])  # far too much
    for number in range(3):
        assert await fate(device.ask(str(number), served, 50.0)) is None
    assert served.completed == 3


@in_virtual_time
async def test_a_wrong_expectation_is_corrected_under_load() -> None:
    device = Timed()
    served = device.model("m", max_rows=8)
    served.latency.measured(((2,),), [(1, 500.0), (8, 1200.0)])  # 10 and 24 ms really
    tasks = []
    for number in range(600):  # three fifths of what the device can do
        tasks.append(device.ask(str(number), served, 100.0))
        await asyncio.sleep(0.005)
    assert [await fate(task) for task in tasks][-200:] == [None] * 200


@in_virtual_time
async def test_of_two_models_the_one_with_least_slack_goes_first() -> None:
    device = Timed(lambda count: 50.0)
    quick, slow = device.model("quick"), device.model("slow")
    slow.latency.measured(((1, 2),), [(1, 400.0)])
    tasks = [device.ask("running", quick, 1000.0)]
    await settle()
    tasks += [device.ask("quick", quick, 500.0), device.ask("slow", slow, 600.0)]  # 450 and 200 ms of slack
    for task in tasks:
        await fate(task)
    assert device.order == ["running", "slow", "quick"]


@in_virtual_time
async def test_the_class_of_a_model_or_a_request_goes_before_slack() -> None:
    device = Timed(lambda count: 50.0)
    plain, important = device.model("plain"), device.model("important", priority=2)
    tasks = [device.ask("running", plain, 1000.0)]
    await settle()
    asked = (("late", plain, 0), ("important", important, 0), ("urgent", plain, 1), ("unimportant", important, 3))
    tasks += [device.ask(name, served, 900.0, priority=priority) for name, served, priority in asked]
    for task in tasks:
        await fate(task)
    assert device.order == ["running", "urgent", "important", "unimportant", "late"]


@in_virtual_time
async def test_a_stream_of_urgent_requests_starves_nobody() -> None:
    device = Timed(lambda count: 50.0)
    served = device.model("m")
    flood: list[asyncio.Task[list[RawTensor]]] = []

    async def urgent() -> None:
        for number in range(200):  # twice what the device can do
            flood.append(device.ask(f"urgent {number}", served, 400.0, priority=1))
            await asyncio.sleep(0.025)

    stream = asyncio.ensure_future(urgent())
    await asyncio.sleep(0.2)
    low = [device.ask(f"low {n}", served, 8000.0, priority=4) for n in range(2)]
    assert [await fate(task) for task in low] == [None, None]
    assert device.ends["low 0"] / 1e3 == pytest.approx(0.2 + 4 * CLIMB_S, abs=0.11)
    assert device.ends["low 1"] / 1e3 == pytest.approx(0.2 + 8 * CLIMB_S, abs=0.21)  # one at a time
    await stream
    served_in_time = [await fate(task) is None for task in flood]
    assert sum(served_in_time) >= 95
    assert device.executor.in_flight == 0


@in_virtual_time
async def test_slow_models_stay_at_their_goodput_however_long_their_requests_wait() -> None:
    device = Timed(lambda count: 200.0 + 25.0 * count)  # a run waits longer than a class takes to climb
    served = device.model("m", max_rows=16)
    tasks = []
    for number in range(400):  # twice what the device can do in its largest batches
        tasks.append(device.ask(str(number), served, 1350.0))
        await asyncio.sleep(0.0375 / 2)
    good = sum([await fate(task) is None for task in tasks])
    assert good / 400 >= 0.45
    assert sum(device.runtime.runs) / len(device.runtime.runs) > 8


@in_virtual_time
async def test_no_company_is_waited_for_by_default() -> None:
    device = Timed()
    assert await fate(device.ask("a", device.model("m", max_rows=8), 1000.0)) is None
    assert device.ends["a"] == pytest.approx(10.0)


@in_virtual_time
async def test_a_declared_delay_waits_for_company() -> None:
    device = Timed()
    served = device.model("m", max_rows=8, delay_ms=30.0)
    tasks = [device.ask("a", served, 1000.0)]
    await asyncio.sleep(0.02)
    tasks.append(device.ask("b", served, 1000.0))
    for task in tasks:
        await fate(task)
    await settle()
    assert device.runtime.runs == [2]
    assert device.ends["a"] == device.ends["b"] == pytest.approx(30.0 + 12.0)


@in_virtual_time
async def test_a_delay_ends_where_the_batch_is_full() -> None:
    device = Timed()
    served = device.model("m", max_rows=4, delay_ms=30.0)
    for task in [device.ask(str(n), served, 1000.0) for n in range(4)]:
        await fate(task)
    assert device.runtime.runs == [4]
    assert device.now_ms == pytest.approx(16.0)


@in_virtual_time
async def test_nobody_is_delayed_past_its_slack() -> None:
    device = Timed()
    served = device.model("m", max_rows=8, delay_ms=500.0)
    first = device.ask("a", served, 1000.0)
    await asyncio.sleep(0.01)
    tight = device.ask("b", served, 40.0)
    assert await fate(first) is None
    assert await fate(tight) is None
    assert device.runtime.runs == [2]
    assert 10.0 + 12.0 <= device.ends["b"] <= 50.0


@in_virtual_time
async def test_who_can_have_no_company_does_not_wait_for_it() -> None:
    device = Timed()
    served = device.model("m", max_rows=8, delay_ms=500.0)
    scalar = RawTensor("K", "UINT8", (), b"k")
    other = device.ask("running", device.model("other"), 1000.0)
    await settle()
    await device.executor.infer(served, [*rows(1), scalar], (), Deadline.after_ms(1000.0), 0)
    assert await fate(other) is None
    assert device.now_ms < 50.0


@in_virtual_time
async def test_a_delay_of_one_model_does_not_hold_up_another() -> None:
    device = Timed()
    delayed, other = device.model("delayed", max_rows=8, delay_ms=100.0), device.model("other")
    waits = device.ask("waits", delayed, 1000.0)
    await settle()
    assert await fate(device.ask("goes", other, 1000.0)) is None
    assert device.now_ms == pytest.approx(10.0)
    assert await fate(waits) is None
    assert device.ends["waits"] == pytest.approx(110.0)


@in_virtual_time
async def test_runs_go_on_at_the_same_time_on_as_many_places_as_there_are() -> None:
    device = Timed(lambda count: 50.0, concurrency=2)
    models = [device.model("a"), device.model("b")]
    second = VirtualRuntime(lambda count: 50.0)
    models[1].runtime = cast("Runtime", second)
    for task in [device.ask(f"{n}", models[n % 2], 1000.0) for n in range(4)]:
        assert await fate(task) is None
    assert device.now_ms == pytest.approx(100.0)


@in_virtual_time
async def test_closing_leaves_no_timer_of_the_executors_own() -> None:
    device = Device(hang_s=5.0)
    device.served("delayed", 20.0, max_rows=8, delay_ms=100.0)
    held = await device.ask("delayed", inputs=rows(1), left_ms=50_000.0)
    stuck = await device.ask("stuck", left_ms=10.0)
    assert isinstance(await failure(stuck), DeadlineExceeded)
    left = await device.ask("waits", left_ms=20_000.0)
    device.executor.close()
    await leave(held, left)
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in timers if not timer.cancelled()] == []


@in_virtual_time
async def test_a_run_that_is_left_after_closing_sets_no_timer() -> None:
    device = Device(hang_s=5.0)
    running = await device.ask("m", left_ms=50_000.0)
    device.executor.close()
    await leave(running)
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in timers if not timer.cancelled()] == []
    hold_up_the_loop(60.0)
    await settle()
    assert device.hangs == []
