"""Where a request goes, and where it goes next when that fails: the router on scripted models and transports."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import (
    DeadlineExceeded,
    DigestMismatch,
    Draining,
    InferenceFailed,
    InstanceLost,
    InvalidRequest,
    MeshError,
    ModelNotReady,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    Overloaded,
    ProtocolError,
)
from mesh.hop import Reply
from tests.builders import a_load, a_model_load, an_identity
from tests.fakes import BODY, until
from tests.nats import soon
from tests.routing import ME, Routing

RETRYABLE = (
    NodeLost("broken"),
    NodeUnreachable("refused"),
    Overloaded("busy", retry_after_s=1.0),
    Draining("leaving"),
    DigestMismatch("other bytes"),
    InstanceLost("it crashed"),
    ModelNotReady("loading"),
    NoReadyInstance("none there"),
)


async def test_an_idle_box_serves_itself() -> None:
    async with Routing(a_model_load()).running() as here:
        await here.peer("peer")
        await here.on_bus("cloud", tier="cloud")
        reply = await here.infer()
        assert (reply.node, reply.route, reply.hops) == (ME, "local", 0)
        assert (here.lan.asked, here.wire.asked) == ([], [])


async def test_a_long_queue_here_sends_to_an_idle_peer() -> None:
    async with Routing(a_model_load()).running() as here:
        await here.peer("peer")
        here.models.waiting_ms = 500.0
        reply = await here.infer()
        assert (reply.node, reply.route) == ("peer", "peer")


async def test_a_node_that_only_the_bus_reaches_is_asked_over_the_bus() -> None:
    async with Routing().running() as here:
        await here.on_bus("far", tier="cloud")
        reply = await here.infer()
        assert (reply.node, reply.route) == ("far", "cloud")
        assert (here.lan.asked, here.wire.asked) == ([], ["far"])


async def test_a_door_is_preferred_to_the_bus() -> None:
    async with Routing().running() as here:
        await here.on_bus("near")
        await here.peer("near")
        await here.infer()
        assert (here.lan.asked, here.wire.asked) == (["near"], [])


@pytest.mark.parametrize("error", RETRYABLE, ids=lambda e: e.code)
async def test_what_another_node_may_do_is_tried_elsewhere(error: MeshError) -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        here.lan.outcomes = {"peer": error}
        here.models.loads = [a_model_load()]
        here.models.waiting_ms = 1000.0
        assert (await here.infer()).route == "local"
        assert here.lan.asked == ["peer"]


@pytest.mark.parametrize("error", [InvalidRequest("bad"), InferenceFailed("it failed"), DeadlineExceeded("late")])
async def test_what_no_other_node_would_do_better_is_not_tried_again(error: MeshError) -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.peer(node)
        here.lan.outcomes = {"one": error, "two": error}
        with pytest.raises(type(error)):
            await here.infer()
        assert len(here.lan.asked) == 1


async def test_a_lost_local_worker_is_retried_at_a_peer() -> None:
    async with Routing(a_model_load()).running() as here:
        await here.peer("peer")
        here.models.outcome = InstanceLost("it crashed")
        assert (await here.infer()).node == "peer"


async def test_everything_in_flight_to_a_node_that_dies_may_be_retried() -> None:
    async with Routing(a_model_load()).running() as here:
        await here.peer("dies")
        here.models.waiting_ms = 10_000.0
        here.lan.hold["dies"] = asyncio.Event()
        here.lan.outcomes["dies"] = NodeLost("killed")
        asked = [asyncio.ensure_future(here.infer()) for _ in range(20)]
        await until(lambda: len(here.lan.asked) == 20)
        here.prober.doors["dies:1"] = NodeUnreachable("refused")
        here.lan.hold["dies"].set()
        replies = await soon(asyncio.gather(*asked))
        assert {reply.route for reply in replies} == {"local"}
        assert here.neighbours.direct("dies") is None


async def test_retries_that_a_node_caused_by_failing_stay_within_the_budget() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.peer(node)
        here.lan.outcomes = dict.fromkeys(("one", "two"), ProtocolError("retryable, and nobody's connection broke"))
        for _ in range(100):
            with pytest.raises(MeshError):
                await here.infer()
        assert 100 < len(here.lan.asked) <= 111


async def test_only_the_first_door_tries_other_nodes() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.peer(node)
        here.lan.outcomes = dict.fromkeys(("one", "two"), Overloaded("busy"))
        with pytest.raises(Overloaded):
            await here.infer(hops=1, visited=("first",))
        assert len(here.lan.asked) == 1
        with pytest.raises(Overloaded):
            await here.infer()
        assert len(here.lan.asked) == 3


async def test_a_request_never_goes_back() -> None:
    async with Routing().running() as here:
        await here.peer("first")
        await here.on_bus("second")
        with pytest.raises(NoReadyInstance, match="had the request before"):
            await here.infer(hops=1, visited=("first", "second"))
        assert (here.lan.asked, here.wire.asked) == ([], [])


async def test_a_request_is_passed_on_twice_at_most() -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        assert (await here.infer(hops=1)).node == "peer"
        with pytest.raises(NoReadyInstance, match="passed on 2 times"):
            await here.infer(hops=2)


async def test_late_work_is_sent_nowhere() -> None:
    async with Routing(a_model_load()).running() as here:
        await here.peer("peer")
        with pytest.raises(DeadlineExceeded):
            await here.infer(left_ms=0)
        assert (here.models.served, here.lan.asked) == ([], [])


async def test_no_retry_after_the_deadline() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.peer(node)
            here.lan.hold[node] = asyncio.Event()
        here.lan.outcomes = dict.fromkeys(("one", "two"), Overloaded("busy"))
        asked = asyncio.ensure_future(here.infer(left_ms=50))
        await asyncio.sleep(0.1)
        for event in here.lan.hold.values():
            event.set()
        with pytest.raises(Overloaded):
            await soon(asked)
        assert len(here.lan.asked) == 1


async def test_a_suspect_node_is_the_last_resort() -> None:
    async with Routing().running() as here:
        await here.on_bus("doubtful")
        await here.on_bus("slow", a_model_load(service_ms=500.0))
        here.watcher.suspect("doubtful")
        for _ in range(5):
            assert (await here.infer()).node == "slow"
        here.wire.outcomes["slow"] = NodeUnreachable("gone too")
        assert (await here.infer()).node == "doubtful"


async def test_a_refused_connection_is_no_way_any_more() -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        await here.on_bus("peer")
        here.prober.doors["peer:1"] = NodeUnreachable("refused")
        here.lan.outcomes["peer"] = NodeUnreachable("refused")
        assert (await here.infer()).node == "peer"  # over the bus, in the same request
        assert (here.lan.asked, here.wire.asked) == (["peer"], ["peer"])
        await here.infer()
        assert here.lan.asked == ["peer"]


async def test_nobody_on_a_nodes_subject_makes_it_suspect() -> None:
    async with Routing().running() as here:
        await here.on_bus("gone")
        here.wire.outcomes["gone"] = NodeUnreachable("no responders")
        with pytest.raises(NodeUnreachable):
            await here.infer()
        assert here.view_of("gone").state == "suspect"


async def test_what_was_sent_counts_until_it_is_answered() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.peer(node, a_model_load(service_ms=50.0))
            here.lan.hold[node] = asyncio.Event()
        asked = [asyncio.ensure_future(here.infer()) for _ in range(6)]
        await until(lambda: len(here.lan.asked) == 6)
        assert sorted(here.lan.asked) == ["one"] * 3 + ["two"] * 3  # not all to the one that looked idle
        assert (here.in_flight("one"), here.in_flight("two")) == (3, 3)
        asked[0].cancel()
        for event in here.lan.hold.values():
            event.set()
        await asyncio.wait(asked)
        assert (here.in_flight("one"), here.in_flight("two")) == (0, 0)
        links = [door.link.up.own_bytes for door in here.neighbours.doors()]
        assert links == [0, 0]


async def test_the_load_on_a_reply_is_learned() -> None:
    async with Routing().running() as here:
        await here.peer("peer")
        load = a_load(seq=10_000, wait_ms=321.0)
        here.lan.reply = lambda target: Reply(BODY, target.node, "peer", 1, load)
        await here.infer()
        assert here.view_of("peer").report.wait_ms == 321.0


async def test_a_request_too_large_for_the_bus_says_so() -> None:
    async with Routing(max_payload=64 * 1024).running() as here:
        await here.on_bus("far")
        assert (await here.infer(nbytes=16)).node == "far"
        with pytest.raises(NoReadyInstance, match="node far can only be reached over the bus, which takes 57344 bytes"):
            await here.infer(nbytes=64 * 1024)
        assert here.wire.asked == ["far"]
        await here.peer("far")
        assert (await here.infer(nbytes=64 * 1024)).node == "far"
        assert here.lan.asked == ["far"]


async def test_without_a_bus_its_nodes_are_out_of_reach_and_that_is_said() -> None:
    async with Routing().running() as here:
        await here.on_bus("far")
        here.broker.stop()
        with pytest.raises(NoReadyInstance, match="node far has no door that answers here"):
            await here.infer()
        here.broker.start()
        assert (await here.infer()).node == "far"


async def test_nowhere_says_what_the_model_is_doing() -> None:
    async with Routing().running() as here:
        with pytest.raises(NoReadyInstance, match="no node holds it"):
            await here.infer()
        await here.peer("peer", a_model_load(state="LOADING"))
        with pytest.raises(NoReadyInstance, match="on node peer it is LOADING"):
            await here.infer()
        here.models.loads = [a_model_load(state="WARMING")]
        with pytest.raises(ModelNotReady, match="WARMING on this node"):
            await here.infer()


async def test_a_cloud_router_holds_nothing_and_routes_to_all() -> None:
    async with Routing(router_only=True).running() as here:
        await here.on_bus("edge", site="shop")
        reply = await here.infer(an_identity())
        assert (reply.node, reply.route) == ("edge", "peer")
