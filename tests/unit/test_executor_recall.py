"""Requests that their router would rather have back than late: refused at once, or given back in time for another node.

All in virtual time, on a device whose model should take 10 ms a run.
"""

from __future__ import annotations

import asyncio

import pytest

from edge.served import Served
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, MeshError, Overloaded
from tests.device import rows, settle
from tests.unit.test_executor_times import Timed, fate
from tests.virtual import in_virtual_time

FOREVER_MS = 1e6


class Recalling(Timed):
    def send(self, name: str, served: Served, left_ms: float, elsewhere_ms: float) -> asyncio.Task[list[RawTensor]]:
        """A request that another node would answer in ``elsewhere_ms``."""
        deadline = Deadline.after_ms(left_ms).with_recall(elsewhere_ms)
        task = asyncio.get_running_loop().create_task(self.executor.infer(served, rows(1), (), deadline, 0))
        task.add_done_callback(lambda _: self.ends.setdefault(name, self.now_ms))
        return task

    async def hang(self, served: Served) -> asyncio.Task[list[RawTensor]]:
        """A run that takes much longer than it should."""
        self.runtime.cost = lambda count: FOREVER_MS
        running = self.ask("running", served, 2 * FOREVER_MS)
        await settle()
        return running


def refused(error: MeshError | None) -> bool:
    return isinstance(error, Overloaded) and error.refused


@in_virtual_time
async def test_what_waits_behind_a_run_that_hangs_is_given_back_while_another_node_can_still_be_in_time() -> None:
    device = Recalling()
    served = device.model("m")
    running = await device.hang(served)
    waiting = device.send("waiting", served, 1000.0, 100.0)
    other = device.ask("other", served, 1000.0)
    assert refused(await fate(waiting))
    assert device.ends["waiting"] == pytest.approx(880.0)  # a little before the last moment
    assert served.tally.late == 1
    assert isinstance(await fate(other), DeadlineExceeded)  # nobody has told of another node for this one
    assert await fate(running) is None
    assert device.executor.in_flight == 0


@in_virtual_time
async def test_what_will_be_in_time_stays() -> None:
    device = Recalling()
    long = device.model("long")
    long.latency.measured(((1, 2),), [(1, 950.0)])
    device.runtime.cost = lambda count: 950.0
    running = device.ask("running", long, 10_000.0)
    await settle()
    device.runtime.cost = lambda count: 10.0
    waiting = device.send("waiting", device.model("m"), 1000.0, 970.0)
    assert await fate(waiting) is None
    assert device.ends["waiting"] == pytest.approx(960.0)
    assert await fate(running) is None


@in_virtual_time
async def test_what_another_node_would_answer_sooner_is_refused_at_once() -> None:
    device = Recalling(lambda count: 500.0)
    served = device.model("m")
    running = device.ask("running", served, 10_000.0)
    await settle()
    error = await fate(device.send("sent", served, 10_000.0, 300.0))
    assert refused(error)
    assert error is not None
    assert error.retry_after_s == pytest.approx(0.7)
    assert device.ends["sent"] == 0.0
    assert await fate(device.send("here", served, 10_000.0, 1001.0)) is None
    assert await fate(running) is None


@in_virtual_time
async def test_an_idle_device_refuses_nothing_that_another_node_would_answer_sooner() -> None:
    device = Recalling(lambda count: 500.0)
    assert await fate(device.send("sent", device.model("m"), 10_000.0, 300.0)) is None


@in_virtual_time
async def test_nothing_is_given_back_once_it_is_too_late_for_other_nodes() -> None:
    device = Recalling()
    served = device.model("m")
    running = await device.hang(served)
    await asyncio.sleep(1.0)
    assert isinstance(await fate(device.send("waiting", served, 100.0, 200.0)), DeadlineExceeded)
    assert device.ends["waiting"] == pytest.approx(1100.0)
    assert await fate(running) is None


@in_virtual_time
async def test_what_runs_is_not_given_back() -> None:
    device = Recalling()
    served = device.model("m")
    running = device.ask("running", served, 1000.0)
    await settle()
    waiting = device.send("waiting", served, 1000.0, 100.0)
    device.runtime.cost = lambda count: FOREVER_MS
    assert isinstance(await fate(waiting), DeadlineExceeded)
    assert await fate(running) is None
    assert device.ends == {"running": pytest.approx(10.0), "waiting": pytest.approx(1000.0)}


@in_virtual_time
async def test_nothing_is_handed_over_behind_a_run_that_hangs() -> None:
    """A short run would be kept ready in the worker's pipe, from where nothing comes back."""
    device = Recalling(lambda count: 0.1)
    served = device.model("m")
    running = await device.hang(served)
    piped = device.send("piped", served, 1000.0, 100.0)  # before anybody can tell that it hangs
    await asyncio.sleep(0.01)
    waiting = device.send("waiting", served, 1000.0, 100.0)
    assert refused(await fate(waiting))
    assert isinstance(await fate(piped), DeadlineExceeded)
    assert device.runtime.runs == [1, 1]
    running.cancel()
