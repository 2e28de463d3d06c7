"""What every door offers, whatever its protocol: readiness, deadlines, refusals while leaving, loads for neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from mesh import hop
from mesh.dataplane import Dataplane, Identity
from mesh.errors import DeadlineExceeded, DigestMismatch, Draining, InvalidRequest, MeshError, ModelNotFound, Overloaded
from mesh.heartbeat import Reporter
from mesh.messages import ModelLoad
from mesh.oip.wire import Limits
from mesh.trust import Trust
from mesh.values import ModelRef
from tests.builders import DIGEST, OTHER_DIGEST, a_load, a_model_load, a_report
from tests.fakes import a_request, until
from tests.nats import soon
from tests.routing import ME, Routing

HOP = {hop.DIGEST: DIGEST, hop.HOPS: "1", hop.VISITED: "first", hop.DEADLINE: "60000"}


@dataclass
class Doors:
    dataplane: Dataplane
    routing: Routing
    coming: list[str]


@contextlib.asynccontextmanager
async def serving(*held: ModelLoad, deadline_ms: float = 60_000.0) -> AsyncIterator[Doors]:
    coming: list[str] = []
    async with Routing(*held).running() as routing:
        yield Doors(
            Dataplane(
                identity=Identity(ME, "test", "1"),
                router=routing.router,
                view=routing.view,
                trust=Trust("demo", ME, 1, None),
                reporter=Reporter(a_report(ME, seq=0), models=lambda: tuple(held), work=routing.models.work),
                still_coming=lambda: tuple(coming),
                deadline_ms=deadline_ms,
                limits=Limits(),
                inquiry=routing.inquiry,
            ),
            routing,
            coming,
        )


async def left_ms(doors: Doors, *, timeout_us: int | None = None, headers: dict[str, str] | None = None) -> float:
    """Time the model was given for a request that came just now."""
    now = time.monotonic()
    request = a_request(timeout_us=timeout_us)
    request.version = "1"
    await doors.dataplane.infer(request, now, headers, want_load=False)
    return (doors.routing.models.served[-1].at - now) * 1e3


async def test_ready_once_nothing_is_on_its_way_and_until_it_leaves() -> None:
    async with serving() as doors:
        doors.coming.append("resnet/1")
        assert not doors.dataplane.ready()
        doors.coming.clear()
        assert doors.dataplane.ready()
        doors.dataplane.serving = False
        assert not doors.dataplane.ready()


async def test_the_deadline_is_the_hops_else_the_requests_else_the_models_else_the_setting() -> None:
    declared = ModelLoad("resnet", "1", DIGEST, "READY", deadline_ms=5_000.0)
    async with serving(a_model_load(), deadline_ms=50_000) as doors:
        assert await left_ms(doors) == pytest.approx(50_000)
    async with serving(declared, deadline_ms=50_000) as doors:
        assert await left_ms(doors) == pytest.approx(5_000)
        assert await left_ms(doors, timeout_us=0) == pytest.approx(5_000)
        assert await left_ms(doors, timeout_us=20_000_000) == pytest.approx(20_000)
        assert await left_ms(doors, timeout_us=20_000_000, headers=HOP) == pytest.approx(60_000, rel=0.5)
        assert await left_ms(doors, timeout_us=2**63) == pytest.approx(86_400_000)


async def test_time_spent_before_the_request_was_whole_counts() -> None:
    async with serving(a_model_load()) as doors:
        long_ago = time.monotonic() - 1.0
        with pytest.raises(DeadlineExceeded):
            await doors.dataplane.infer(a_request(timeout_us=500_000), long_ago, None, want_load=False)
        assert doors.routing.models.served == []


async def test_a_proven_hop_decides_the_digest_and_an_application_cannot() -> None:
    async with serving(a_model_load()) as doors:
        request = a_request()
        request.version = "1"
        with pytest.raises(DigestMismatch):
            await doors.dataplane.infer(request, time.monotonic(), HOP | {hop.DIGEST: OTHER_DIGEST}, want_load=False)
        reply = await doors.dataplane.infer(request, time.monotonic(), HOP, want_load=True)
        assert (reply.node, reply.hops) == (ME, 1)
        assert reply.load is not None
        assert reply.load.service_ms == 5.0
        assert reply.time_ms >= 0
        plain = await doors.dataplane.infer(request, time.monotonic(), None, want_load=False)
        assert (plain.hops, plain.load) == (0, None)


async def test_what_was_answered_elsewhere_says_nothing_of_our_load() -> None:
    async with serving() as doors:
        await doors.routing.peer("peer")
        reply = await doors.dataplane.infer(a_request(), time.monotonic(), None, want_load=True)
        assert (reply.node, reply.load) == ("peer", None)


async def refused(
    doors: Doors, model: str = "resnet", headers: dict[str, str] | None = None, *, want_load: bool = True
) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await doors.dataplane.infer(a_request(model), time.monotonic(), headers, want_load=want_load)
    return caught.value


async def test_an_error_says_how_busy_the_node_is_to_who_wants_to_know() -> None:
    async with serving(a_model_load(in_flight=3)) as doors:
        models = doors.routing.models
        models.outcome, models.waiting_ms = Overloaded("full", retry_after_s=1.0), 800.0
        error = await refused(doors)
        assert isinstance(error, Overloaded)
        assert error.load is not None
        assert (error.load.wait_ms, error.load.in_flight, error.load.service_ms) == (800.0, 3, 5.0)
        assert (await refused(doors, want_load=False)).load is None
        unknown = await refused(doors, "nobody")
        assert isinstance(unknown, ModelNotFound)
        assert unknown.load is not None
        assert (unknown.load.wait_ms, unknown.load.in_flight) == (800.0, 0)
        doors.dataplane.serving = False
        leaving = await refused(doors, headers=HOP)
        assert isinstance(leaving, Draining)
        assert leaving.load is not None


async def test_an_error_that_was_passed_on_says_how_busy_the_one_who_passed_it_on_is() -> None:
    for held, expected in (((), None), ((a_model_load("other"),), 5.0)):
        async with serving(*held) as doors:
            doors.routing.models.waiting_ms = 5.0
            if not held:
                doors.routing.view.local = None
            await doors.routing.peer("peer")
            theirs = doors.routing.lan.outcomes["peer"] = Overloaded("full")
            theirs.load = a_load(wait_ms=999.0)
            error = await refused(doors)
            assert isinstance(error, Overloaded)
            assert (error.load.wait_ms if error.load else None) == expected


async def test_a_proven_callers_load_is_heard_and_an_applications_is_not() -> None:
    async with serving(a_model_load()) as doors:
        await doors.routing.peer("peer")
        said = a_load(seq=10_000, wait_ms=321.0, in_flight=9).header()
        request, headers = a_request(), HOP | {hop.VISITED: "first,peer", hop.LOAD: said}
        request.version = "1"
        await doors.dataplane.infer(request, time.monotonic(), None, want_load=False)
        assert doors.routing.view_of("peer").report.wait_ms == 0.0
        await doors.dataplane.infer(request, time.monotonic(), headers | {hop.LOAD: "x"}, want_load=False)
        assert doors.routing.view_of("peer").report.wait_ms == 0.0
        await doors.dataplane.infer(request, time.monotonic(), headers, want_load=False)
        view = doors.routing.view_of("peer")
        assert (view.report.wait_ms, view.models[0].in_flight) == (321.0, 9)
        doors.routing.models.outcome = Overloaded("full")
        louder = headers | {hop.LOAD: a_load(seq=10_001, wait_ms=654.0).header()}
        with pytest.raises(MeshError):  # heard even where the request itself is refused
            await doors.dataplane.infer(request, time.monotonic(), louder, want_load=True)
        assert doors.routing.view_of("peer").report.wait_ms == 654.0


async def test_leaving_refuses_neighbours_and_waits_for_what_is_in_flight() -> None:
    async with serving() as doors:
        await doors.routing.peer("peer")
        event = doors.routing.lan.hold["peer"] = asyncio.Event()
        work = doors.dataplane.infer(a_request(), time.monotonic(), None, want_load=False)
        running = asyncio.ensure_future(work)
        await until(lambda: doors.routing.lan.asked == ["peer"])
        doors.dataplane.serving = False
        with pytest.raises(Draining, match=f"node {ME} is draining"):
            await doors.dataplane.infer(a_request(), time.monotonic(), HOP, want_load=False)
        assert await doors.dataplane.idle(0.01) == 1
        idle = asyncio.ensure_future(doors.dataplane.idle(60))
        event.set()
        assert await soon(idle) == 0
        assert (await running).node == "peer"


async def test_models_are_those_held_anywhere_that_can_be_seen() -> None:
    async with serving(a_model_load("mine")) as doors:
        await doors.routing.peer("peer", a_model_load("theirs"), a_model_load("mine"))
        await doors.routing.on_bus("gone", a_model_load("lost"))
        doors.routing.watcher.heard(doors.routing.report("gone", a_model_load("lost"), state="left"))
        assert doors.dataplane.models() == ["mine", "theirs"]
        assert doors.dataplane.model_ready(ModelRef("theirs"))
        with pytest.raises(ModelNotFound):
            doors.dataplane.model_ready(ModelRef("lost"))


@pytest.mark.parametrize("length", ["", "x", "-1", "1.0", "1e3", "٣", " 5", "0x10"])
async def test_a_header_length_that_is_no_count_is_refused(length: str) -> None:
    async with serving() as doors:
        with pytest.raises(InvalidRequest, match="must be a count of bytes"):
            doors.dataplane.decode(ModelRef("m"), b"{}", length)


async def test_a_header_length_of_any_number_of_digits_is_only_too_long() -> None:
    async with serving() as doors:
        with pytest.raises(InvalidRequest):
            doors.dataplane.decode(ModelRef("m"), b"{}", "9" * 10_000)
