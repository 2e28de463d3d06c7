"""Sending to a second place beside the first: when, how often, and that nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.errors import InferenceFailed, MeshError, NodeLost, NoReadyInstance, Overloaded
from mesh.estimator import Estimate
from mesh.hedging import SPAN_S, Hedges, after_ms, wants
from tests.builders import a_model_load
from tests.fakes import until
from tests.nats import soon
from tests.routing import ME, Routing

# When


def predicted(total_ms: float, sigma_ms: float = 0.0) -> Estimate:
    return Estimate(0.0, 0.0, total_ms, 0.0, sigma_ms)


def test_the_second_try_is_due_when_the_first_is_later_than_usual() -> None:
    assert after_ms(predicted(50.0, 10.0), 1000.0, 60.0) == 70.0
    assert after_ms(predicted(0.1), 1000.0, 60.0) == 1.0


def test_it_is_never_due_where_the_second_place_could_not_be_in_time() -> None:
    assert after_ms(predicted(50.0, 10.0), 130.0, 60.0) == 70.0
    assert after_ms(predicted(50.0, 10.0), 129.0, 60.0) is None
    assert after_ms(predicted(50.0, 10.0), 1000.0, 0.0) is None


def test_only_who_asks_for_it_gets_it_and_no_sequence() -> None:
    assert wants({"mesh_hedge": True})
    for parameters in ({}, {"mesh_hedge": False}, {"mesh_hedge": 1}, {"mesh_hedge": True, "sequence_id": 7}):
        assert not wants(parameters)


def test_two_requests_of_a_hundred_may_be_sent_twice_and_one_always() -> None:
    hedges = Hedges()
    assert [hedges.may(0.0), hedges.may(0.0)] == [True, False]
    for number in range(500):
        hedges.note_request(number / 100)
    assert [hedges.may(5.0) for _ in range(12)].count(True) == 9  # one was spent before
    assert hedges.may(5.0 + 2 * SPAN_S)


# Sending both


async def two(here: Routing) -> None:
    """The first is the one to ask; neither answers yet."""
    await here.on_bus("first", a_model_load(service_ms=1.0))
    await here.on_bus("second", a_model_load(service_ms=200.0))
    here.wire.hold = {"first": asyncio.Event(), "second": asyncio.Event()}


async def both_asked(here: Routing) -> None:
    await until(lambda: here.wire.asked == ["first", "second"])


async def nothing_left(here: Routing) -> None:
    await until(lambda: here.in_flight("first") == here.in_flight("second") == 0)
    for link in here.ways.outlook.links:
        assert link is None or link.up.own_bytes == 0
    assert here.wire.left == 0


async def test_the_first_answer_counts_and_the_other_try_is_called_off() -> None:
    async with Routing().running() as here:
        await two(here)
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        here.wire.hold["second"].set()
        assert (await soon(asked)).node == "second"
        assert here.wire.called_off == ["first"]
        await nothing_left(here)
        assert here.router.dispatch.reasons["beside a late one"] == 1
        assert not here.router.retries


async def test_the_first_may_still_be_the_first() -> None:
    async with Routing().running() as here:
        await two(here)
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        here.wire.hold["first"].set()
        assert (await soon(asked)).node == "first"
        assert here.wire.called_off == ["second"]
        await nothing_left(here)


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_an_error_of_one_waits_for_the_answer_of_the_other(failing: str) -> None:
    async with Routing().running() as here:
        await two(here)
        here.wire.outcomes[failing] = InferenceFailed("it failed")
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        here.wire.hold[failing].set()
        await until(lambda: here.in_flight(failing) == 0)
        assert not asked.done()
        other = {"first": "second", "second": "first"}[failing]
        here.wire.hold[other].set()
        assert (await soon(asked)).node == other
        await nothing_left(here)


async def test_where_both_fail_the_error_that_leaves_open_whether_it_ran_counts() -> None:
    async with Routing().running() as here:
        await two(here)
        here.wire.outcomes = {"first": Overloaded("busy"), "second": InferenceFailed("it failed")}
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        for event in here.wire.hold.values():
            event.set()
        with pytest.raises(InferenceFailed):
            await soon(asked)
        await nothing_left(here)


async def test_what_both_lost_is_tried_on_a_third() -> None:
    async with Routing().running() as here:
        await two(here)
        await here.on_bus("third", a_model_load(service_ms=20_000.0))
        here.wire.outcomes = {"first": NodeLost("cut"), "second": NodeLost("cut")}
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        for event in here.wire.hold.values():
            event.set()
        assert (await soon(asked)).node == "third"
        assert here.wire.asked == ["first", "second", "third"]
        await nothing_left(here)


async def test_a_caller_that_leaves_calls_off_both() -> None:
    async with Routing().running() as here:
        await two(here)
        others = asyncio.all_tasks()
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(asked)
        assert sorted(here.wire.called_off) == ["first", "second"]
        assert asyncio.all_tasks() <= others
        await nothing_left(here)


async def test_a_failed_first_is_not_waited_for() -> None:
    async with Routing().running() as here:
        await two(here)
        here.wire.outcomes["first"] = InferenceFailed("it failed")
        here.wire.hold["first"].set()
        with pytest.raises(InferenceFailed):
            await here.infer(mesh_hedge=True)
        assert here.wire.asked == ["first"]


@pytest.mark.parametrize(
    "options", [{}, {"mesh_hedge": False}, {"mesh_hedge": True, "sequence_id": 7}, {"mesh_hedge": True, "hops": 1}],
    ids=str,
)  # fmt: skip
async def test_no_second_try_where_none_is_asked_for(options: dict[str, Any]) -> None:
    async with Routing().running() as here:
        await two(here)
        asked = asyncio.ensure_future(here.infer(**options))
        await until(lambda: here.wire.asked == ["first"])
        await asyncio.sleep(0.1)
        assert here.wire.asked == ["first"]
        here.wire.hold["first"].set()
        assert (await soon(asked)).node == "first"


async def test_an_allowance_that_is_spent_sends_nothing_twice() -> None:
    async with Routing().running() as here:
        await two(here)
        spent = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await both_asked(here)
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True))
        await until(lambda: len(here.wire.asked) == 3)
        await asyncio.sleep(0.1)
        assert len(here.wire.asked) == 3
        for event in here.wire.hold.values():
            event.set()
        await soon(asyncio.gather(spent, asked))


async def test_a_second_try_stays_where_the_request_may_run() -> None:
    async with Routing(a_model_load()).running() as here:
        await two(here)
        here.models.waiting_ms = 5.0
        here.models.hold = asyncio.Event()
        asked = asyncio.ensure_future(here.infer(mesh_hedge=True, mesh_stay="node"))
        await until(lambda: len(here.models.served) == 1)
        await asyncio.sleep(0.1)
        assert here.wire.asked == []
        here.models.hold.set()
        assert (await soon(asked)).node == ME


async def test_with_nowhere_else_to_go_there_is_one_try() -> None:
    async with Routing().running() as here:
        with pytest.raises(NoReadyInstance):
            await here.infer(mesh_hedge=True)
        await here.on_bus("only")
        here.wire.outcomes["only"] = InferenceFailed("it failed")
        with pytest.raises(MeshError, match="it failed"):
            await here.infer(mesh_hedge=True)
        assert here.wire.asked == ["only"]
