"""Streams in the router and the dataplane: when another place is tried, what is learned, what is counted.

Transports are scripted. Not here: real ones (``integration/test_streams``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from mesh.deadline import Deadline
from mesh.ejection import ERRORS
from mesh.errors import (
    DeadlineExceeded,
    Draining,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    NodeLost,
    NoReadyInstance,
    Overloaded,
    Unsupported,
)
from mesh.hop import Context, Reply
from mesh.membership import Change
from tests.builders import a_load, a_model_load, an_identity
from tests.fakes import BODY, a_request, until
from tests.nats import soon
from tests.routing import ME, Routing
from tests.unit.test_dataplane import HOP, Doors, serving

DECOUPLED = msgspec.structs.replace(a_model_load(), decoupled=True)


def stream(
    here: Routing, *, left_ms: float = 60_000.0, hops: int = 0, **parameters: Any
) -> AsyncGenerator[Reply, None]:
    request, context = a_request(), Context(Deadline.after_ms(left_ms), hops)
    request.parameters.update(parameters)
    return here.router.stream(request, an_identity(), context)


async def nodes(replies: AsyncGenerator[Reply, None]) -> list[str]:
    return [reply.node async for reply in replies]


def part(node: str = "") -> Reply:
    return Reply(BODY, node, "peer", 1)


@contextlib.asynccontextmanager
async def two_nodes() -> Any:
    """``bad`` is asked first: the other one takes longer."""
    async with Routing().running() as here:
        await here.peer("bad")
        await here.peer("good", a_model_load(service_ms=500.0))
        yield here


@pytest.mark.parametrize("error", [Overloaded("busy"), Draining("leaving"), NodeLost("cut"), ModelNotFound("gone")])
async def test_before_the_first_answer_another_place_is_tried(error: MeshError) -> None:
    async with two_nodes() as here:
        here.lan.outcomes["bad"] = error
        here.lan.streams["good"] = [part(), part()]
        assert await soon(nodes(stream(here))) == ["good", "good"]
        assert here.lan.asked == ["bad", "good"]
        assert here.in_flight("bad") == here.in_flight("good") == 0


@pytest.mark.parametrize("error", [Overloaded("busy"), NodeLost("cut"), InferenceFailed("bad rows")])
async def test_after_the_first_answer_an_error_is_final(error: MeshError) -> None:
    async with two_nodes() as here:
        here.lan.streams["bad"] = [part()]
        here.lan.outcomes["bad"] = error
        replies = stream(here)
        assert (await soon(anext(replies))).node == "bad"
        with pytest.raises(type(error)):
            await soon(anext(replies))
        assert here.lan.asked == ["bad"]


async def test_what_is_no_fault_of_the_place_is_not_tried_elsewhere() -> None:
    async with two_nodes() as here:
        here.lan.outcomes["bad"] = InvalidRequest("no such input")
        with pytest.raises(InvalidRequest):
            await soon(nodes(stream(here)))
        assert here.lan.asked == ["bad"]


async def test_a_later_door_does_not_try_elsewhere() -> None:
    async with two_nodes() as here:
        here.lan.outcomes["bad"] = Overloaded("busy")
        with pytest.raises((Overloaded, NoReadyInstance)):
            await soon(nodes(stream(here, hops=1)))
        assert here.lan.asked == ["bad"]


async def test_nothing_at_all_is_an_answer_too() -> None:
    async with two_nodes() as here:
        assert await soon(nodes(stream(here))) == []
        assert here.lan.asked == ["bad"]


async def test_what_is_learned_is_the_time_to_the_first_answer() -> None:
    async with two_nodes() as here:
        here.lan.streams["bad"] = [part()]
        before = here.router.dispatch.residuals.get("peer")
        held = here.lan.hold["bad"] = asyncio.Event()
        replies = stream(here, mesh_node="bad")
        await soon(anext(replies))
        assert before is None
        seen = here.router.dispatch.residuals["peer"]
        assert seen.count == 1
        held.set()
        assert await soon(nodes(replies)) == []
        assert here.router.dispatch.residuals["peer"].count == 1


@pytest.mark.parametrize("parts", [0, 1])
async def test_a_node_whose_streams_break_is_left_alone(parts: int) -> None:
    async with two_nodes() as here:
        here.lan.streams["bad"] = [part()] * parts
        here.lan.outcomes["bad"] = InferenceFailed("it failed")
        for _ in range(ERRORS):
            with pytest.raises(InferenceFailed):
                await soon(nodes(stream(here, mesh_node="bad")))
        with pytest.raises(NoReadyInstance):
            await soon(nodes(stream(here, mesh_node="bad")))


async def test_the_load_beside_an_answer_and_an_error_is_learned() -> None:
    async with two_nodes() as here:
        first = part()
        first.load = a_load(seq=10_000, wait_ms=321.0)
        error = Overloaded("busy")
        error.load = a_load(seq=10_001, wait_ms=654.0)
        here.lan.streams["bad"], here.lan.outcomes["bad"] = [first], error
        replies = stream(here, mesh_node="bad")
        await soon(anext(replies))
        assert here.view_of("bad").report.wait_ms == 321.0
        with pytest.raises(Overloaded):
            await soon(anext(replies))
        assert here.view_of("bad").report.wait_ms == 654.0


@pytest.mark.parametrize("parts", [0, 1])
async def test_a_node_that_is_lost_meanwhile_ends_its_stream(parts: int) -> None:
    async with Routing().running() as here:
        await here.on_bus("bad")
        here.wire.streams["bad"] = [part()] * parts
        here.wire.hold["bad"] = asyncio.Event()
        replies = stream(here)
        for _ in range(parts):
            await soon(anext(replies))
        waiting = asyncio.ensure_future(anext(replies))
        await until(lambda: here.wire.left == 1)
        here.router.dispatch._forwarding.on_change(Change("bad", "ready", "lost"))
        with pytest.raises(NodeLost):
            await soon(waiting)
        assert here.wire.called_off == ["bad"]


async def test_a_node_that_was_lost_while_the_caller_was_busy_ends_its_stream_too() -> None:
    """And when it is there again: what it held is gone."""
    async with Routing().running() as here:
        await here.on_bus("bad")
        here.wire.streams["bad"] = [part(), part()]
        here.wire.hold["bad"] = asyncio.Event()
        replies = stream(here)
        await soon(anext(replies))
        here.router.dispatch._forwarding.on_change(Change("bad", "ready", "lost"))
        here.router.dispatch._forwarding.on_change(Change("bad", "lost", "ready"))
        again = stream(here)
        assert (await soon(anext(again))).node == "bad"
        with pytest.raises(NodeLost):
            await soon(anext(replies))
        assert here.in_flight("bad") == 1
        assert (await soon(anext(again))).node == "bad"
        await again.aclose()
        assert here.in_flight("bad") == 0
        assert not here.router.dispatch._forwarding._under_way._nodes


async def test_who_leaves_calls_it_off() -> None:
    async with two_nodes() as here:
        here.lan.streams["bad"] = [part()]
        here.lan.hold["bad"] = asyncio.Event()
        replies = stream(here)
        await soon(anext(replies))
        assert here.in_flight("bad") == 1
        waiting = asyncio.ensure_future(anext(replies))
        await until(lambda: here.lan.left == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (here.lan.called_off, here.in_flight("bad")) == (["bad"], 0)


async def test_a_deadline_that_has_passed_is_not_even_sent() -> None:
    async with two_nodes() as here:
        with pytest.raises(DeadlineExceeded):
            await soon(nodes(stream(here, left_ms=0.0)))
        assert here.lan.asked == []


def ask(doors: Doors, headers: dict[str, str] | None = None, model: str = "resnet") -> AsyncGenerator[Reply, None]:
    request = a_request(model)
    request.version = "1"
    return doors.dataplane.stream(request, time.monotonic(), headers, want_load=headers is not None)


async def test_a_decoupled_model_is_asked_by_stream_and_any_other_answers_once() -> None:
    async with serving(DECOUPLED) as doors:
        with pytest.raises(Unsupported, match="ask for a stream"):
            await doors.dataplane.infer(a_request(), time.monotonic(), None, want_load=False)
        assert await nodes(ask(doors)) == [ME]
        assert doors.dataplane.decoupled(a_request())
        assert not doors.dataplane.decoupled(a_request("nobody"))
        with pytest.raises(ModelNotFound):
            await nodes(ask(doors, model="nobody"))
    async with serving(a_model_load()) as doors:
        assert await nodes(ask(doors)) == [ME]


async def test_a_neighbour_is_told_how_busy_this_node_is() -> None:
    async with serving(DECOUPLED) as doors:
        (reply,) = [reply async for reply in ask(doors, HOP)]
        assert (reply.hops, reply.load is not None) == (1, True)
        assert reply.time_ms > 0.0
        (reply,) = [reply async for reply in ask(doors)]
        assert (reply.hops, reply.load) == (0, None)
        doors.routing.models.outcome = InferenceFailed("bad rows")
        for headers in (HOP, None):
            with pytest.raises(InferenceFailed) as caught:
                await nodes(ask(doors, headers))
            assert (caught.value.load is not None) == (headers is not None)


async def test_a_stream_counts_until_it_ends_and_a_drain_waits_for_it() -> None:
    async with serving(DECOUPLED) as doors:
        replies = ask(doors)
        await anext(replies)
        assert doors.dataplane.in_flight == 1
        doors.dataplane.serving = False
        assert await doors.dataplane.idle(0.0) == 1
        with pytest.raises(Draining):
            await nodes(ask(doors, HOP))
        waiting = asyncio.ensure_future(doors.dataplane.idle(60.0))
        assert await nodes(replies) == []
        assert await soon(waiting) == 0


async def test_every_stream_is_counted_once_by_how_it_ended() -> None:
    async with serving(DECOUPLED) as doors:
        requests = doors.dataplane.requests
        assert await nodes(ask(doors)) == [ME]
        left = ask(doors)
        await anext(left)
        await left.aclose()
        doors.routing.models.outcome = InferenceFailed("bad rows")
        with pytest.raises(InferenceFailed):
            await nodes(ask(doors))
        with pytest.raises(ModelNotFound):
            await nodes(ask(doors, model="nobody"))
        assert [histogram.count for histogram in requests.answered.values()] == [1]
        assert {key[2]: count for key, count in requests.failed.items()} == {
            "cancelled": 1,
            "inference_failed": 1,
            "model_not_found": 1,
        }
