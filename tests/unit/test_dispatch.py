"""What a router learns from how its requests come out: loads, residuals, and which nodes to leave alone for now."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from mesh.dispatch import kind_of
from mesh.ejection import ERRORS, FIRST_S
from mesh.errors import (
    BusUnavailable,
    DeadlineExceeded,
    Draining,
    InferenceFailed,
    InstanceLost,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    Overloaded,
    ProtocolError,
)
from mesh.hop import Reply
from mesh.rules import Kind
from tests.builders import a_load, a_model_load
from tests.fakes import BODY, until
from tests.nats import soon
from tests.routing import Routing


class Clock:
    """The monotonic clock of the router, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        for module in ("router", "dispatch", "forwarding"):
            stack.enter_context(mock.patch(f"mesh.{module}.time", clock))
        yield clock


async def fails(here: Routing, times: int, kind: type[MeshError], node: str = "bad") -> None:
    for _ in range(times):
        with pytest.raises(kind):
            await here.infer(mesh_node=node)


@pytest.mark.parametrize("error", [Overloaded("busy"), InferenceFailed("bad rows"), DeadlineExceeded("late")])
async def test_the_load_beside_an_error_is_learned(error: MeshError) -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        error.load = a_load(seq=10_000, wait_ms=321.0)
        here.lan.outcomes["peer"] = error
        with pytest.raises(type(error)):
            await here.infer()
        assert here.view_of("peer").report.wait_ms == 321.0


async def test_the_load_of_another_node_behind_the_one_that_answered_is_not_taken_for_its_own() -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        load = a_load(seq=10_000, wait_ms=321.0)
        here.lan.reply = lambda target: Reply(BODY, "other", "peer", 2, load)
        assert (await here.infer()).node == "other"
        assert here.view_of("peer").report.wait_ms == 0.0


@pytest.mark.parametrize("error", [InferenceFailed("it failed"), ProtocolError("gibberish"), NodeLost("cut")])
async def test_a_node_is_left_alone_after_five_errors_in_a_row_and_then_tried_by_one_request(
    error: MeshError, clock: Clock
) -> None:
    async with Routing().running() as here:
        for node in ("bad", "good"):
            await here.on_bus(node)
        here.wire.outcomes["bad"] = error
        await fails(here, ERRORS, type(error))
        await fails(here, 3, NoReadyInstance)
        assert here.wire.asked == ["bad"] * ERRORS
        assert {(await here.infer()).node for _ in range(5)} == {"good"}

        clock.ahead_s = FIRST_S + 1.0
        del here.wire.outcomes["bad"]
        held = here.wire.hold["bad"] = asyncio.Event()
        trial = asyncio.ensure_future(here.infer(mesh_node="bad"))
        await until(lambda: here.wire.asked.count("bad") == ERRORS + 1)
        await fails(here, 3, NoReadyInstance)
        held.set()
        assert (await soon(trial)).node == "bad"
        assert {(await here.infer(mesh_node="bad")).node for _ in range(3)} == {"bad"}


async def test_a_trial_that_fails_leaves_the_node_alone_for_longer(clock: Clock) -> None:
    async with Routing().running() as here:
        for node in ("bad", "good"):
            await here.on_bus(node)
        here.wire.outcomes["bad"] = InferenceFailed("it failed")
        await fails(here, ERRORS, InferenceFailed)
        clock.ahead_s = FIRST_S + 1.0
        await fails(here, 1, InferenceFailed)
        clock.ahead_s += FIRST_S + 1.0
        await fails(here, 1, NoReadyInstance)
        clock.ahead_s += FIRST_S
        await fails(here, 1, InferenceFailed)


async def test_a_caller_that_leaves_its_trial_bars_the_node_no_longer(clock: Clock) -> None:
    async with Routing().running() as here:
        for node in ("bad", "good"):
            await here.on_bus(node)
        here.wire.outcomes["bad"] = InferenceFailed("it failed")
        await fails(here, ERRORS, InferenceFailed)
        clock.ahead_s = FIRST_S + 1.0
        here.wire.hold["bad"] = asyncio.Event()
        trial = asyncio.ensure_future(here.infer(mesh_node="bad"))
        await until(lambda: here.wire.asked.count("bad") == ERRORS + 1)
        trial.cancel()
        await asyncio.wait([trial])
        here.wire.hold["bad"].set()
        await fails(here, 1, InferenceFailed)


@pytest.mark.parametrize(
    "error", [DeadlineExceeded("late"), Overloaded("busy"), BusUnavailable("cut"), Draining("bye")]
)
async def test_lateness_refusals_and_our_own_bus_bar_no_node(error: MeshError) -> None:
    async with Routing().running() as here:
        for node in ("bad", "good"):
            await here.on_bus(node)
        here.wire.outcomes["bad"] = error
        await fails(here, 3 * ERRORS, type(error))
        assert here.wire.asked == ["bad"] * 3 * ERRORS


async def test_most_peers_are_never_barred() -> None:
    """Where most fail, the fault is not theirs."""
    async with Routing().running() as here:
        await here.on_bus("bad")
        here.wire.outcomes["bad"] = InferenceFailed("it failed")
        await fails(here, 3 * ERRORS, InferenceFailed)


async def test_a_node_that_left_and_came_back_begins_anew() -> None:
    async with Routing().running() as here:
        for node in ("bad", "good"):
            await here.on_bus(node)
        here.wire.outcomes["bad"] = InferenceFailed("it failed")
        await fails(here, ERRORS, InferenceFailed)
        await here.leaves("bad")
        await here.on_bus("bad", incarnation=2)
        await fails(here, 1, InferenceFailed)


async def test_who_fails_fast_attracts_nobody() -> None:
    async with Routing().running() as here:
        await here.on_bus("fast", a_model_load(service_ms=1.0))
        await here.on_bus("slow", a_model_load(service_ms=100.0))
        here.wire.outcomes["fast"] = InferenceFailed("it failed")
        with pytest.raises(InferenceFailed):
            await here.infer()
        assert {(await here.infer()).node for _ in range(10)} == {"slow"}


async def test_decisions_and_errors_of_prediction_are_counted() -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        await here.on_bus("cloud", tier="cloud", site="cloud")
        for _ in range(3):
            await here.infer()
        await here.infer(mesh_tier="cloud")
        with pytest.raises(NoReadyInstance):
            await here.infer(mesh_node="nobody")
        assert here.router.dispatch.reasons == {
            "peer is the cheapest tier near the best": 3,
            "cloud is the cheapest tier near the best": 1,
            "no candidates": 1,
        }
        residuals = here.router.dispatch.residuals
        assert {route: histogram.count for route, histogram in residuals.items()} == {"peer": 3, "cloud": 1}


KINDS: list[tuple[MeshError, Kind]] = [
    (DeadlineExceeded("late"), "late"),
    (NodeLost("cut"), "error"),
    (NodeUnreachable("refused"), "error"),
    (InstanceLost("it crashed"), "error"),
    (InferenceFailed("it failed"), "error"),
    (ProtocolError("gibberish"), "error"),
    (Overloaded("busy"), "refusal"),
    (Draining("bye"), "refusal"),
    (InvalidRequest("bad"), "refusal"),
    (ModelNotFound("gone"), "refusal"),
    (BusUnavailable("cut"), "refusal"),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=[error.code for error, _ in KINDS])
def test_what_an_error_says_of_the_node(error: MeshError, kind: Kind) -> None:
    assert kind_of(error) == kind
