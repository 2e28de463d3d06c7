"""Streams over a bus, in memory and real: windows, order, silence, loss, and what a plain NATS client sees.

The door and the hop are whole, the model is scripted. Not here: streams through the mesh (``test_streams``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import nats
import pytest

from mesh import bus_streams, hop_bus, subjects
from mesh.bus import Bus
from mesh.bus_door import BusDoor
from mesh.dataplane import Dataplane, Identity
from mesh.deadline import Deadline
from mesh.door_bus import RouterHop
from mesh.errors import (
    BusUnavailable,
    DeadlineExceeded,
    InferenceFailed,
    InstanceLost,
    Internal,
    InvalidRequest,
    MeshError,
    NodeLost,
    NodeUnreachable,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
)
from mesh.heartbeat import Reporter
from mesh.hop import Context, Reply, Target
from mesh.hop_bus import BusHop
from mesh.nats_server import NatsServer
from mesh.oip.request import InferRequest, decode_request
from mesh.oip.response import decode_response
from mesh.oip.wire import Limits
from mesh.trust import Trust
from mesh.values import ModelIdentity
from tests.builders import DIGEST, a_report
from tests.fakes import until
from tests.integration.doors import router, until_served
from tests.nats import MemoryWorld, NatsWorld, World, soon, until_state
from tests.routing import ME, Routing
from tests.streams import COUNT, LOAD, CountingModels, asked, counting_node

MAX_PAYLOAD = 256 * 1024
COUNT_1 = ModelIdentity(COUNT, "1", DIGEST)
TARGET = Target(ME, "shop", "peer")


class Pair:
    """The node that answers, and the caller's hop on a bus of its own."""

    def __init__(self, models: CountingModels, dataplane: Dataplane, theirs: Bus, ours: Bus) -> None:
        self.models = models
        self.dataplane = dataplane
        self.theirs = theirs
        self.ours = ours
        self.hop = BusHop(ours, "caller")
        self.door = contextlib.AsyncExitStack()
        """Open while the node answers."""

    def stream(self, times: int, *, deadline_ms: float = 60_000.0, **parameters: Any) -> AsyncGenerator[Reply, None]:
        context = Context(Deadline.after_ms(deadline_ms), 0, (), DIGEST)
        return self.hop.stream(TARGET, a_request(times, **parameters), COUNT_1, context, 0.0)

    async def numbers(self, times: int, **parameters: Any) -> list[int]:
        return [number async for number in numbers(self.stream(times, **parameters))]


def a_request(times: int, **parameters: Any) -> InferRequest:
    body = asked(times, **parameters)
    body["parameters"]["binary_data_output"] = True
    return decode_request(COUNT, "1", json.dumps(body).encode(), None, Limits())


async def numbers(replies: AsyncGenerator[Reply, None]) -> AsyncIterator[int]:
    async with contextlib.aclosing(replies):
        async for reply in replies:
            yield number(reply)


async def gather(
    replies: AsyncGenerator[Reply, None], got: list[int], between: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Keep the numbers until the end or the error."""
    async for each in numbers(replies):
        got.append(each)
        if between is not None:
            await between()


def number(reply: Reply | None) -> int:
    assert reply is not None
    response = decode_response(reply.body.joined(), reply.body.header_length)
    return int(response.outputs[0].numpy()[0])


@pytest.fixture(params=[MemoryWorld, NatsWorld])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with request.param(MAX_PAYLOAD) as world:
        yield world


@pytest.fixture
async def pair(world: World) -> AsyncIterator[Pair]:
    models = CountingModels()
    async with Routing(LOAD).running() as routing:
        routing.view.local = models
        dataplane = Dataplane(
            identity=Identity(ME, "test", "1"),
            router=routing.router,
            view=routing.view,
            trust=Trust("demo", ME, 1, None),
            reporter=Reporter(a_report(ME, seq=0), models=lambda: (LOAD,), work=models.work),
            still_coming=tuple,
            deadline_ms=60_000,
            limits=Limits(),
            inquiry=routing.inquiry,
        )
        theirs, ours = await world.bus(), await world.bus()
        pair, door = Pair(models, dataplane, theirs, ours), BusDoor(dataplane, theirs)
        async with pair.door as serving:
            await serving.enter_async_context(door.serving_node("shop", ME))
            await serving.enter_async_context(door.serving_applications())
            await theirs.flush()
            yield pair


@pytest.mark.parametrize("times", [0, 1, 300])
async def test_all_answers_in_order(pair: Pair, times: int) -> None:
    assert await soon(pair.numbers(times)) == list(range(times))
    assert await soon(pair.numbers(5, pad=100_000)) == [0, 1, 2, 3, 4]
    assert (pair.models.produced, pair.models.running, pair.dataplane.in_flight) == (times + 5, 0, 0)


async def test_the_first_answer_says_where_it_was_made_and_how_busy_that_is(pair: Pair) -> None:
    replies = [reply async for reply in pair.stream(40)]
    assert {(reply.node, reply.route, reply.hops) for reply in replies} == {(ME, "peer", 1)}
    assert [reply.load is not None for reply in replies] == [True] + [False] * 39


async def test_no_more_is_made_than_the_window_holds(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = pair.stream(1000)
    assert number(await soon(anext(stuck))) == 0
    assert await soon(pair.numbers(300)) == list(range(300))
    most = 3 * bus_streams.WINDOW  # two fetched, one that waits
    assert pair.models.produced <= 300 + most
    assert [number async for number in numbers(stuck)] == list(range(1, 1000))

    monkeypatch.setattr(bus_streams, "WINDOW_BYTES", 100_000)
    pair.models.produced = 0
    stuck = pair.stream(1000, pad=60_000)
    assert number(await soon(anext(stuck))) == 0
    assert await soon(pair.numbers(300)) == list(range(300))
    assert pair.models.produced <= 300 + 12
    await stuck.aclose()
    await pair.models.ended()


@pytest.mark.parametrize("hold_at", [0, 1, 20])
async def test_who_leaves_ends_the_run(pair: Pair, hold_at: int) -> None:
    stream = pair.stream(100, hold_at=hold_at)
    for _ in range(hold_at):
        await soon(anext(stream))
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: pair.models.running == 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    await pair.models.ended()
    await until(lambda: pair.dataplane.in_flight == 0)


async def test_who_vanished_is_noticed_and_who_is_slow_is_not_taken_for_that(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_streams, "IDLE_S", 0.3)
    monkeypatch.setattr(hop_bus, "KEEP_S", 0.01)
    slow = pair.stream(1000)
    await soon(anext(slow))
    gone = {"Mesh-Op": "stream", "Mesh-Model": COUNT, "Mesh-Version": "1", "Mesh-Stream": "who-asks-once-only"}
    body = json.dumps(asked(1000)).encode()
    await pair.ours.request(subjects.infer("shop", ME), body, gone, timeout_s=60.0)
    assert pair.models.running == 2
    await until(lambda: pair.models.running == 1)
    assert [number async for number in numbers(slow)] == list(range(1, 1000))
    late = await pair.ours.request(subjects.stream(ME), b"", gone, timeout_s=60.0)
    error = hop_bus.read_error(hop_bus.lower(late.headers))
    assert isinstance(error, InstanceLost)
    assert "not here any more" in error.text


@pytest.mark.parametrize("hold_at", [0, 1])
async def test_who_vanished_is_noticed_though_nothing_is_there_for_him(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, hold_at: int
) -> None:
    monkeypatch.setattr(bus_streams, "IDLE_S", 0.3)
    monkeypatch.setattr(bus_streams, "FIRST_S", 0.05)
    gone = {"Mesh-Op": "stream", "Mesh-Model": COUNT, "Mesh-Version": "1"}
    body = json.dumps(asked(3, hold_at=hold_at, timeout=3_600_000_000)).encode()
    await pair.ours.request(subjects.infer("shop", ME), body, gone, timeout_s=60.0)
    assert pair.models.running == 1
    await pair.models.ended()
    assert not pair.models.go.is_set()


@pytest.mark.parametrize("hold_at", [0, 1])
async def test_a_silent_stream_goes_on_for_who_fetches(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, hold_at: int
) -> None:
    monkeypatch.setattr(bus_streams, "IDLE_S", 0.1)
    monkeypatch.setattr(bus_streams, "FIRST_S", 0.01)
    stream = pair.stream(3, hold_at=hold_at)
    for _ in range(hold_at):
        await soon(anext(stream))
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.wait([waiting], timeout=0.5)
    pair.models.go.set()
    assert number(await soon(waiting)) == hold_at
    assert [number async for number in numbers(stream)] == list(range(hold_at + 1, 3))


@pytest.mark.parametrize("streams", [False, True])
async def test_an_application_that_leaves_before_anything_came_ends_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *, streams: bool
) -> None:
    """It does not know yet who answers."""
    for limit in ("FIRST_S", "IDLE_S"):
        monkeypatch.setattr(bus_streams, limit, 3600.0)
    routers, context = RouterHop(pair.ours), Context(Deadline.after_ms(3.6e6))
    if streams:
        asking = asyncio.ensure_future(anext(routers.stream(TARGET, a_request(1, hold_at=0), COUNT_1, context, 0.0)))
        await until(lambda: pair.models.running == 1)
    else:
        pair.models.hold = asyncio.Event()
        pair.models.loads[0] = msgspec.structs.replace(LOAD, decoupled=False)
        asking = asyncio.ensure_future(routers.infer(TARGET, a_request(1), COUNT_1, context, 0.0))
        await until(lambda: pair.dataplane.in_flight == 1)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: pair.dataplane.in_flight == 0)


async def test_who_is_cancelled_while_he_leaves_has_left(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a connection closes whose stream is being closed already."""
    monkeypatch.setattr(bus_streams, "IDLE_S", 3600.0)
    stream = pair.stream(1000)
    await soon(anext(stream))
    leaving = asyncio.ensure_future(stream.aclose())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await pair.models.ended()


@pytest.mark.parametrize("streams", [False, True])
async def test_who_left_before_his_request_was_taken_up_is_not_served(pair: Pair, *, streams: bool) -> None:
    """They come on subjects of their own, which are not taken up in the order of sending."""
    if not streams:
        pair.models.loads[0] = msgspec.structs.replace(LOAD, decoupled=False)
    asks = {"Mesh-Model": COUNT, "Mesh-Version": "1"} | ({"Mesh-Op": "stream"} if streams else {})
    body, name = json.dumps(asked(1)).encode(), "Mesh-Stream" if streams else "Mesh-Request"
    ends = {"a" * 16: subjects.left()} | ({"b" * 16: subjects.stream(ME)} if streams else {})
    ends |= {} if streams else {"c" * 16: subjects.cancel("shop", ME)}
    for called, subject in ends.items():
        await pair.ours.publish(subject, b"", {name: called, "Mesh-Op": "end"})
    await pair.theirs.flush()
    await pair.ours.flush()
    for called in ends:
        headers = asks | {name: called, "Mesh-Request": called}
        with pytest.raises(DeadlineExceeded):
            await pair.ours.request(subjects.infer("shop", ME), body, headers, timeout_s=0.2)
        if streams:
            answer = await pair.ours.request(subjects.infer("shop", ME), body, asks | {name: called}, timeout_s=60.0)
            assert isinstance(hop_bus.read_error(hop_bus.lower(answer.headers)), InvalidRequest)
    assert (pair.models.begun, pair.models.served, pair.dataplane.in_flight) == (0, [], 0)
    await pair.ours.request(subjects.infer("shop", ME), body, asks | {name: "d" * 16}, timeout_s=60.0)
    await until(lambda: pair.dataplane.in_flight == 0)


async def test_a_node_that_is_done_leaving_says_so_to_who_waits(pair: Pair) -> None:
    stream = pair.stream(2, hold_at=1)
    await soon(anext(stream))
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: pair.models.running == 1)
    await pair.theirs.flush()
    await pair.door.aclose()
    with pytest.raises(InstanceLost, match="not here any more"):
        await soon(waiting)
    assert pair.models.running == 0


@pytest.mark.parametrize("hold_at", [0, 2])
async def test_the_deadline_ends_it_at_both_ends(pair: Pair, hold_at: int) -> None:
    stream = pair.stream(9, hold_at=hold_at, deadline_ms=400.0)
    for _ in range(hold_at):
        await soon(anext(stream))
    with pytest.raises(DeadlineExceeded):
        await soon(anext(stream))
    await pair.models.ended()


@pytest.mark.parametrize("fail_at", [0, 1, 40])
async def test_an_error_comes_behind_the_answers_before_it(pair: Pair, fail_at: int) -> None:
    got: list[int] = []
    with pytest.raises(InferenceFailed, match=f"fails at {fail_at}") as caught:
        await soon(gather(pair.stream(50, fail_at=fail_at), got))
    assert got == list(range(fail_at))
    assert caught.value.load is not None


async def test_an_unexpected_error_is_told_by_an_id_alone(pair: Pair) -> None:
    with pytest.raises(Internal) as caught:
        await soon(pair.numbers(3, pad="a secret"))
    assert "secret" not in caught.value.text


async def test_an_answer_that_no_message_holds_is_said_to_be_so(pair: Pair) -> None:
    with pytest.raises(PayloadTooLarge, match="ask by HTTP"):
        await soon(pair.numbers(2, pad=MAX_PAYLOAD))
    await pair.models.ended()


async def test_a_lost_bus_ends_it_at_both_ends_at_once(pair: Pair, world: World) -> None:
    waiting = pair.stream(1000, hold_at=2)
    for _ in range(2):
        await soon(anext(waiting))
    full = pair.stream(1000)
    await soon(anext(full))
    pending = asyncio.ensure_future(anext(waiting))
    await until(lambda: pair.models.running == 2)
    await world.cut()
    with pytest.raises(BusUnavailable):
        await soon(pending)
    await pair.models.ended()
    with pytest.raises(BusUnavailable):
        async for _ in full:
            pass
    with pytest.raises(BusUnavailable):
        await soon(anext(pair.stream(1)))
    await world.restore()
    for bus in (pair.theirs, pair.ours):
        await until_state(bus, connected=True)
    await pair.theirs.flush()
    assert await soon(pair.numbers(3)) == [0, 1, 2]


async def test_nobody_there_is_known_at_once(pair: Pair) -> None:
    context = Context(Deadline.after_ms(60_000), 0, (), DIGEST)
    stream = pair.hop.stream(Target("nobody", "shop", "peer"), a_request(1), COUNT_1, context, 0.0)
    with pytest.raises(NodeUnreachable):
        await soon(anext(stream))


async def test_a_node_that_falls_silent_or_leaves_the_bus_was_lost(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not refused: what it did before, nobody knows."""
    monkeypatch.setattr(hop_bus, "FETCH_S", 0.05)
    monkeypatch.setattr(hop_bus, "SILENT_S", 0.05)
    stream = pair.stream(5, hold_at=1)
    await soon(anext(stream))
    with pytest.raises(NodeLost, match="silent") as silent:
        await soon(anext(stream))
    assert not silent.value.refused


async def test_parts_that_were_lost_are_missed(pair: Pair) -> None:
    stream = pair.stream(1000)
    await soon(anext(stream))
    names: list[str] = []

    async def overhear(message: Any) -> None:
        names.append({k.lower(): v for k, v in message.headers.items()}[bus_streams.NAME])

    await pair.theirs.subscribe(subjects.stream(ME), overhear)
    await pair.theirs.flush()

    async def steal() -> None:
        """Another takes what was meant for this one."""
        if names:
            await pair.ours.request(subjects.stream(ME), b"", {bus_streams.NAME: names.pop()}, timeout_s=60.0)

    got: list[int] = []
    with pytest.raises(NodeLost, match="were lost"):
        await soon(gather(stream, got, steal))
    assert got == list(range(1, len(got) + 1))


async def test_who_knows_no_streams_says_so(pair: Pair) -> None:
    async def answer(message: Any) -> None:
        await pair.theirs.publish(message.reply, b"{}")

    await pair.theirs.subscribe(subjects.infer("shop", "old"), answer)
    await pair.theirs.flush()
    context = Context(Deadline.after_ms(60_000), 0, (), DIGEST)
    stream = pair.hop.stream(Target("old", "shop", "peer"), a_request(1), COUNT_1, context, 0.0)
    with pytest.raises(ProtocolError, match="knows no streams"):
        await soon(anext(stream))


async def test_names_are_checked_and_streams_are_not_without_end(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(asked(9, hold_at=1)).encode()

    async def ask(name: str) -> MeshError | None:
        headers = {"Mesh-Op": "stream", "Mesh-Model": COUNT, "Mesh-Version": "1", "Mesh-Stream": name}
        answer = await pair.ours.request(subjects.infer("shop", ME), body, headers, timeout_s=60.0)
        return hop_bus.read_error(hop_bus.lower(answer.headers))

    assert await ask("a" * 16) is None
    for name in ("a" * 16, "short", "b" * 65, "with a space in it"):
        assert isinstance(await ask(name), InvalidRequest)
    monkeypatch.setattr(bus_streams, "MOST", 1)
    assert isinstance(await ask("c" * 16), Overloaded)
    for name in ("a" * 16, "unknown" * 3):
        end = {"Mesh-Op": "end", "Mesh-Stream": name}
        await pair.ours.publish(subjects.stream(ME), b"", end)
    await pair.models.ended()


async def test_an_ordinary_request_can_be_called_off(pair: Pair) -> None:
    held = pair.models.hold = asyncio.Event()
    pair.models.loads[0] = msgspec.structs.replace(LOAD, decoupled=False)
    context = Context(Deadline.after_ms(60_000), 0, (), DIGEST)
    asking = asyncio.ensure_future(pair.hop.infer(TARGET, a_request(1), COUNT_1, context, 0.0))
    await until(lambda: pair.dataplane.in_flight == 1)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: pair.dataplane.in_flight == 0)
    held.set()
    again = await soon(pair.hop.infer(TARGET, a_request(1), COUNT_1, context, 0.0))
    assert again.node == ME


async def test_a_plain_nats_client_asks_the_routers() -> None:
    """As documented, with nats-py and ``struct`` alone."""
    models = CountingModels()
    async with NatsServer() as server, counting_node(models, "edge-1", nats=server.url), router(server.url) as door:
        await until_served(door, COUNT)
        client = await nats.connect(server.url)
        try:
            found, end = [], False
            body = json.dumps(asked(100)).encode()
            answer = await client.request(subjects.model_infer(COUNT), body, timeout=60, headers={"Mesh-Op": "stream"})
            headers = {name.lower(): value for name, value in (answer.headers or {}).items()}
            fetch, stream = headers["mesh-fetch"], {"Mesh-Stream": headers["mesh-stream"]}
            while True:
                data = answer.data
                while data:
                    kind, _, size = struct.unpack_from("<BII", data)
                    part, data = data[9 : 9 + size], data[9 + size :]
                    end = kind != 1
                    if kind == 1:
                        found.append(json.loads(part)["outputs"][0]["data"][0])
                if end:
                    break
                answer = await client.request(fetch, b"", timeout=60, headers=stream)
            assert found == list(range(100))
        finally:
            await client.close()
