"""The life of an SDK client among its calls: closed while they wait, left early, opened twice, used where it was not.

The models are scripted (``tests.streams``). Not here: plain code and its threads (``test_sync_client``), what is asked
and answered (``test_client``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from math import nan
from typing import Any

import numpy as np
import pytest

from mesh import client as under_test
from mesh import errors
from mesh.announcement import Found
from mesh.client import Client
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, NodeLost
from mesh.hop_http import HttpClient
from mesh.messages import ModelLoad
from mesh.nats_server import NatsServer
from mesh.oip.parts import CONTENT_TYPE
from mesh.oip.wire import WireBody
from mesh.result import Result
from mesh.values import ModelIdentity
from tests.builders import DIGEST
from tests.fakes import until
from tests.integration.doors import Door, router, until_served
from tests.nats import soon
from tests.streams import COUNT, CountingModels, asked, counting_node, counting_process

X = {"X": np.zeros(1, np.uint8)}
LONG_MS = 3_600_000.0
"""No test ends because a deadline passed."""
WAYS = pytest.mark.parametrize("way", ["http", "bus"])


def both(service_ms: float = 5.0) -> CountingModels:
    """The model that streams, and ``plain``, which answers once and says that it takes so long."""
    models = CountingModels()
    models.loads.append(ModelLoad("plain", "1", DIGEST, "READY", service_ms=service_ms))
    return models


class Served:
    def __init__(self, models: CountingModels, url: str) -> None:
        self.models = models
        self.url = url

    def client(self) -> Client:
        return Client(self.url, deadline_ms=LONG_MS)

    @staticmethod
    def stream(client: Client, **parameters: int) -> AsyncGenerator[Result, None]:
        return client.stream(COUNT, X, parameters={"times": 1000} | parameters)


@contextlib.asynccontextmanager
async def serving(way: str = "http", service_ms: float = 5.0) -> AsyncIterator[Served]:
    """A door over HTTP, or a router that only the bus reaches."""
    async with contextlib.AsyncExitStack() as stack:
        models = both(service_ms)
        if way == "http":
            door = await stack.enter_async_context(counting_node(models, "holder"))
            yield Served(models, door.address)
            return
        hidden = {"advertise": "none"}
        nats = await stack.enter_async_context(NatsServer())
        await stack.enter_async_context(counting_node(models, "holder", nats=nats.url, http=hidden))
        door = await stack.enter_async_context(router(nats.url, http=hidden))
        await until_served(door, COUNT)
        yield Served(models, nats.url)


@WAYS
@pytest.mark.parametrize("hold_at", [0, 3])
async def test_who_waits_for_a_stream_when_its_client_is_closed_is_told_at_once(way: str, hold_at: int) -> None:
    async with serving(way) as served:
        async with served.client() as client:
            results = served.stream(client, hold_at=hold_at)
            for _ in range(hold_at):
                await soon(anext(results))
            waiting = asyncio.ensure_future(anext(results))
            await until(lambda: served.models.running == 1)
        with pytest.raises(RuntimeError, match="the client was closed"):
            await soon(waiting)
        await served.models.ended()


@WAYS
async def test_a_stream_that_nobody_waits_for_ends_with_its_client(way: str) -> None:
    async with serving(way) as served:
        async with served.client() as client:
            results = served.stream(client, hold_at=3)
            await soon(anext(results))
            assert served.models.running == 1
        await served.models.ended()
        with pytest.raises(RuntimeError, match="not open"):
            await anext(results)


@WAYS
async def test_who_waits_for_an_answer_is_told_too(way: str) -> None:
    async with serving(way) as served:
        hold = served.models.hold = asyncio.Event()
        async with served.client() as client:
            waiting = asyncio.ensure_future(client.infer("plain", X))
            await until(lambda: bool(served.models.served))
        with pytest.raises(RuntimeError, match="the client was closed"):
            await soon(waiting)
        hold.set()


async def test_a_node_that_closes_its_connections_does_not_keep_who_reads_waiting() -> None:
    async with serving() as served:
        identity, headers = ModelIdentity(COUNT, "1", ""), {"accept": CONTENT_TYPE}
        body = WireBody((json.dumps(asked(1000, hold_at=3)).encode(),), None)
        async with HttpClient("other") as http:
            parts = http.stream_of(served.url, identity, headers, body, Deadline.after_ms(LONG_MS))
            for _ in range(3):
                await soon(anext(parts))
            waiting = asyncio.ensure_future(anext(parts))
            await asyncio.sleep(0)
        with pytest.raises(NodeLost):
            await soon(waiting)
        await served.models.ended()


async def _break(results: AsyncGenerator[Result, None]) -> None:
    async for _ in results:
        break


async def _raise(results: AsyncGenerator[Result, None]) -> None:
    try:
        async for _ in results:
            raise ZeroDivisionError  # noqa: TRY301 - as an application might
    except ZeroDivisionError:
        pass


@WAYS
@pytest.mark.parametrize("leave", [_break, _raise])
async def test_leaving_the_loop_ends_the_run_without_more_ado(
    way: str, leave: Callable[[AsyncGenerator[Result, None]], Awaitable[None]]
) -> None:
    async with serving(way) as served, served.client() as client:
        await soon(leave(served.stream(client, hold_at=3)))
        await served.models.ended()
        numbers = [int(result["N"][0]) async for result in client.stream(COUNT, X, parameters={"times": 3})]
        assert numbers == [0, 1, 2]


async def test_a_client_is_opened_once() -> None:
    async with serving() as served:
        client = served.client()
        async with client:
            with pytest.raises(RuntimeError, match="opened once"):
                await client.__aenter__()
            assert len(client.doors) == 1
        with pytest.raises(RuntimeError, match="opened once"):
            await client.__aenter__()


async def test_a_client_is_of_the_loop_that_it_was_opened_in() -> None:
    async with serving() as served, served.client() as client:

        def elsewhere() -> None:
            for work in (client.infer("plain", X), client.models(), anext(served.stream(client))):
                with pytest.raises(RuntimeError, match="another event loop"):
                    asyncio.run(_await(work))

        await asyncio.to_thread(elsewhere)


async def _await(work: Awaitable[Any]) -> None:
    await work


async def test_a_sequence_ends_with_its_client() -> None:
    async with serving() as served:
        async with served.client() as client:
            sequence = client.sequence("plain")
        with pytest.raises(RuntimeError, match="not open"):
            await sequence.infer(X)


async def test_a_deadline_that_is_no_number_is_refused() -> None:
    async with serving() as served, served.client() as client:
        for work in (client.infer("plain", X, deadline_ms=nan), anext(client.stream("plain", X, deadline_ms=nan))):
            with pytest.raises(InvalidRequest, match="deadline_ms"):
                await work


RECAST: dict[type[errors.MeshError], type[errors.MeshError]] = {
    errors.NodeUnreachable: errors.NoReadyInstance,
    errors.NodeLost: errors.InstanceLost,
    errors.BusUnavailable: errors.InstanceLost,
}
"""What a door lost itself is not lost between it and us."""


async def test_whatever_a_door_can_say_comes_as_its_class() -> None:
    async with serving() as served, served.client() as client:
        for kind in dict.fromkeys(errors.BY_CODE.values()):
            served.models.outcome = kind("why not", retry_after_s=2.0)
            for work in (client.infer("plain", X), anext(client.stream("plain", X))):
                with pytest.raises(errors.MeshError, match=r"^why not$") as caught:
                    await work
                assert (type(caught.value), caught.value.retry_after_s) == (RECAST.get(kind, kind), 2.0)


@contextlib.asynccontextmanager
async def cutting() -> AsyncIterator[tuple[Door, list[bytes]]]:
    """A door that says who it is, and hangs up on whoever asks for more, once it has read what."""
    async with counting_node(both(), "cutting", http={"advertise": "none"}) as door:
        heads: list[bytes] = []
        host, port = door.address.split(":")

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/mesh/v1/report" not in head:
                    heads.append(head)
                    return
                far_reader, far = await asyncio.open_connection(host, int(port))
                with contextlib.closing(far):
                    far.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                    writer.write(await far_reader.read())
                    await writer.drain()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        async with server:
            yield Door(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"), heads


@pytest.mark.parametrize("ratio", [0.0, 0.1])
async def test_what_may_have_run_is_never_tried_again_where_none_may_be(ratio: float) -> None:
    async with serving(service_ms=1_000.0) as served, cutting() as (first, heads):
        async with Client(first.address, served.url, retry_ratio=ratio) as client:
            if ratio:
                await client.infer("plain", X)
            else:
                with pytest.raises(NodeLost):
                    await client.infer("plain", X)
        assert (len(heads), len(served.models.served)) == (1, int(ratio > 0))


async def test_what_there_is_is_told_by_another_door_where_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "ASK_MS", 200.0)
    async with (
        serving() as served,
        counting_process("hangs") as (process, hanging),
        Client(hanging.address, served.url, deadline_ms=LONG_MS) as client,
    ):
        process.send_signal(signal.SIGSTOP)
        assert (await soon(client.metadata("plain"))).name == "plain"
        assert await soon(client.models()) == [COUNT, "plain"]


def found(mesh: str, address: str) -> Found:
    return Found(uuid.uuid4().hex, "box", mesh, "default", "edge", "agent", (address,))


class Announced:
    """In place of zeroconf: what is announced is what the test says."""

    def __init__(self, *found: Found) -> None:
        self._found = found
        self.take: Callable[[Found], None]

    def __call__(
        self, *, on_found: Callable[[Found], None], **_: object
    ) -> contextlib.AbstractAsyncContextManager[None]:
        self.take = on_found
        return self._run()

    @contextlib.asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        for one in self._found:
            self.take(one)
        yield


async def test_of_all_that_is_announced_the_mesh_that_answers_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was switched off stays announced for an hour."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = found("dead", f"127.0.0.1:{nobody.getsockname()[1]}")
        async with serving() as served, counting_node(both(), "stranger", site={"mesh": "other"}) as stranger:
            announced = Announced(dead, found("default", served.url))
            monkeypatch.setattr(under_test, "Discovery", announced)
            async with Client(deadline_ms=LONG_MS) as client:
                assert (await client.infer("plain", X)).node == "holder"
                announced.take(found("other", stranger.address))
                announced.take(found("default", stranger.address))  # anybody can say so
                await until(lambda: client._watcher.rejected > 0)
                assert client.doors == [served.url]
