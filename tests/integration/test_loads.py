"""How busy a node is, on every exchange with another: answers, errors and requests, over HTTP and over the bus alike.

Real sockets, a real dataplane, scripted models. Not here: what is done with it (``membership``, the router).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from mesh.bus_door import BusDoor
from mesh.dataplane import Dataplane, Identity
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Draining, MeshError, NodeUnreachable, Overloaded
from mesh.heartbeat import Reporter
from mesh.hop import Context, Hop, Target
from mesh.hop_bus import BusHop
from mesh.hop_http import HttpClient
from mesh.http_door import HttpDoor
from mesh.http_server import HttpServer
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.messages import Load, Work
from mesh.oip.request import InferRequest, encode_request
from mesh.oip.wire import Limits
from mesh.trust import Trust
from tests.builders import a_load, a_model_load, a_report, an_identity
from tests.fakes import a_request
from tests.nats import soon
from tests.routing import ME, Routing

KEY = b"0123456789abcdef"
BUSY = Work(80.0, ((2, (0.0, 30.0)), (16, (40.0,))))
OURS = a_load(seq=10_000, wait_ms=123.0, in_flight=2)
PATHS = pytest.mark.parametrize("path", ["http", "bus"])


@dataclass
class Pair:
    """The node that is asked, and a caller's way to it."""

    routing: Routing
    dataplane: Dataplane
    hop: Hop
    target: Target

    async def ask(self) -> Load | None:
        context = Context(Deadline.after_ms(60_000), 0, (), an_identity().digest)
        return (await soon(self.hop.infer(self.target, request(), an_identity(), context, 0.0))).load

    async def refused(self) -> MeshError:
        with pytest.raises(MeshError) as caught:
            await self.ask()
        return caught.value


def request() -> InferRequest:
    asked = a_request()
    asked.version = "1"
    asked.wire = encode_request(asked)
    return asked


@contextlib.asynccontextmanager
async def pair(path: str, load: Callable[[object], Load | None] = lambda _: OURS) -> AsyncIterator[Pair]:
    model = a_model_load(in_flight=4)
    async with contextlib.AsyncExitStack() as stack:
        routing = await stack.enter_async_context(Routing(model).running())
        trust = Trust("demo", ME, 1, KEY)
        dataplane = Dataplane(
            identity=Identity(ME, "test", "1"),
            router=routing.router,
            view=routing.view,
            trust=trust,
            reporter=Reporter(a_report(ME, seq=0), work=lambda: BUSY, uplink_bytes=lambda: 4096),
            still_coming=tuple,
            deadline_ms=60_000,
            limits=Limits(),
            inquiry=routing.inquiry,
        )
        await routing.peer("caller")
        if path == "http":
            door = HttpServer(HttpDoor(dataplane), "127.0.0.1:0", max_body_bytes=1 << 20, grace_s=1.0)
            server = await stack.enter_async_context(door)
            token = Trust("demo", "caller", 1, KEY).token_for(ME, 1, None)
            assert token is not None
            hop: Hop = await stack.enter_async_context(HttpClient("caller", load=load))
            yield Pair(routing, dataplane, hop, Target(ME, "shop", "peer", server.address, token))
        else:
            bus = await stack.enter_async_context(MemoryBus(MemoryBroker()))
            await stack.enter_async_context(BusDoor(dataplane, bus).serving_node("shop", ME))
            yield Pair(routing, dataplane, BusHop(bus, "caller", load), Target(ME, "shop", "peer"))


def of_the_node(load: Load | None) -> tuple[object, ...]:
    assert load is not None
    return load.work, load.in_flight, load.service_ms, load.uplink_bytes


EXPECTED = (BUSY, 4, 5.0, 4096)


@PATHS
async def test_an_answer_says_how_busy_the_node_is(path: str) -> None:
    async with pair(path) as asked:
        assert of_the_node(await asked.ask()) == EXPECTED


@PATHS
async def test_every_refusal_says_how_busy_the_node_is(path: str) -> None:
    async with pair(path) as asked:
        for outcome in (Overloaded("full", retry_after_s=1.0), DeadlineExceeded("too late")):
            asked.routing.models.outcome = outcome
            error = await asked.refused()
            assert (type(error), of_the_node(error.load)) == (type(outcome), EXPECTED)
        asked.dataplane.serving = False
        error = await asked.refused()
        assert isinstance(error, Draining)
        assert of_the_node(error.load) == EXPECTED


@PATHS
async def test_a_request_says_how_busy_the_caller_is(path: str) -> None:
    async with pair(path) as asked:
        assert asked.routing.view_of("caller").report.wait_ms == 0.0
        await asked.ask()
        view = asked.routing.view_of("caller")
        assert (view.report.wait_ms, view.models[0].in_flight) == (OURS.wait_ms, OURS.in_flight)


@PATHS
async def test_a_caller_without_models_says_nothing(path: str) -> None:
    async with pair(path, lambda _: None) as asked:
        before = asked.routing.view_of("caller")
        await asked.ask()
        assert asked.routing.view_of("caller") == before


async def test_a_caller_that_proves_nothing_is_not_heard() -> None:
    async with pair("http") as asked:
        before = asked.routing.view_of("caller")
        target = Target(ME, "shop", "peer", asked.target.address, "site:caller:" + "0" * 64)
        with pytest.raises(MeshError):
            await soon(asked.hop.infer(target, request(), an_identity(), Context(Deadline.after_ms(60_000)), 0.0))
        assert asked.routing.view_of("caller") == before


async def test_what_the_transport_says_carries_no_load() -> None:
    async with MemoryBus(MemoryBroker()) as bus, HttpClient("caller") as http:
        ways: list[tuple[Hop, Target]] = [
            (BusHop(bus, "caller"), Target("gone", "shop", "peer")),
            (http, Target("gone", "shop", "peer", "127.0.0.1:9", "t")),
        ]
        for hop, target in ways:
            with pytest.raises(NodeUnreachable) as caught:
                await soon(hop.infer(target, request(), an_identity(), Context(Deadline.after_ms(60_000)), 0.0))
            assert caught.value.load is None
