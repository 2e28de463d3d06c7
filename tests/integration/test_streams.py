"""Streams through the mesh on real sockets and a real bus: every answer in order, at the pace of who reads, to its end.

The model is scripted (``tests.streams``). Not here: how it looks on HTTP (``test_http_streams``) and to a plain NATS
client (``test_bus_streams``), models that stream for real.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.client import Client
from mesh.errors import DeadlineExceeded, InferenceFailed, Unavailable, Unsupported
from mesh.nats_server import NatsServer
from mesh.result import Result
from tests import python_steps
from tests.fakes import until
from tests.integration.doors import Door, agent, router, until_served
from tests.integration.doors import until as doors_until
from tests.nats import soon
from tests.streams import COUNT, CountingModels, counting_node, counting_process

HIDDEN = {"advertise": "none"}
KEY = {"key": "a secret of the whole site"}
X = {"X": np.zeros(1, np.uint8)}
WAYS = pytest.mark.parametrize("way", ["own", "lan", "bus", "bus and lan"])
MB = 1 << 20
STUCK = 60
"""Answers of a megabyte that may be on their way to somebody who does not read: windows, and the kernel's buffers."""


class Mesh:
    """A node that holds the model, and the door at which applications ask for it."""

    def __init__(
        self, models: CountingModels, door: Door, client: Client, holder: contextlib.AsyncExitStack | None = None
    ) -> None:
        self.models = models
        self.door = door
        self.client = client
        self._holder = holder

    async def leave(self) -> None:
        """The node that holds the model does."""
        assert self._holder is not None
        await self._holder.aclose()

    def stream(self, times: int, *, deadline_ms: float = 60_000.0, **parameters: int) -> AsyncGenerator[Result, None]:
        return self.client.stream(COUNT, X, parameters={"times": times} | parameters, deadline_ms=deadline_ms)

    async def numbers(self, times: int, **parameters: int) -> list[int]:
        async with contextlib.aclosing(self.stream(times, **parameters)) as results:
            return [int(result["N"][0]) async for result in results]

    async def until_error(self, error: type[Exception], times: int, **options: Any) -> list[int]:
        """What came before the stream ended with it."""
        numbers: list[int] = []
        async with contextlib.aclosing(self.stream(times, **options)) as results:
            with pytest.raises(error):
                await soon(_drain(results, numbers))
        return numbers


async def _drain(results: AsyncGenerator[Result, None], numbers: list[int]) -> None:
    async for result in results:
        numbers.append(int(result["N"][0]))  # noqa: PERF401 - what came before an error counts


@contextlib.asynccontextmanager
async def meshed(way: str, **groups: Any) -> AsyncIterator[Mesh]:
    """The model is at the door's own node, at a peer on the LAN, behind the bus, or at a node known from the bus."""
    async with contextlib.AsyncExitStack() as stack:
        models = CountingModels()
        nats = await stack.enter_async_context(NatsServer()) if "bus" in way else None
        url = nats.url if nats is not None else ""
        leaving = await stack.enter_async_context(contextlib.AsyncExitStack())
        holder = await leaving.enter_async_context(
            counting_node(models, "holder", nats=url, http=HIDDEN if way == "bus" else {}, site=KEY, **groups)
        )
        if way == "own":
            door = holder
        elif way == "lan":
            empty = CountingModels()
            empty.loads.clear()
            seeds = {"seeds": [holder.address]}
            door = await stack.enter_async_context(counting_node(empty, "asked", site=KEY, discovery=seeds))
        else:
            door = await stack.enter_async_context(router(url))
        await until_served(door, COUNT)
        client = await stack.enter_async_context(Client(door.address))
        yield Mesh(models, door, client, leaving)


@WAYS
@pytest.mark.parametrize("times", [0, 1, 1000])
async def test_every_answer_comes_in_order(way: str, times: int) -> None:
    async with meshed(way) as mesh:
        assert await soon(mesh.numbers(times)) == list(range(times))
        assert (mesh.models.produced, mesh.models.running) == (times, 0)
        assert await soon(mesh.numbers(3, pad=100_000)) == [0, 1, 2]


@pytest.mark.parametrize(("way", "hops", "route"), [("own", 0, "local"), ("lan", 1, "peer"), ("bus", 1, "peer")])
async def test_each_answer_says_where_it_was_made(way: str, hops: int, route: str) -> None:
    async with meshed(way) as mesh, contextlib.aclosing(mesh.stream(20)) as results:
        said = {(result.node, result.hops, result.route) async for result in results}
        assert said == {("holder", hops, route)}


@WAYS
async def test_who_reads_slowly_holds_back_who_makes_the_answers(way: str) -> None:
    async with meshed(way) as mesh:
        async with contextlib.aclosing(mesh.stream(200, pad=MB)) as results:
            assert (await soon(anext(results)))["N"].tolist() == [0]
            for _ in range(3):  # time for the first to get further, if anything allows it
                assert await soon(mesh.numbers(100, pad=1000)) == list(range(100))
            assert mesh.models.produced - 300 < STUCK
            async for result in results:
                last = result["N"].tolist()
        assert (last, mesh.models.produced) == ([199], 500)


@WAYS
@pytest.mark.parametrize("hold_at", [0, 1, 5])
async def test_who_leaves_ends_the_run(way: str, hold_at: int) -> None:
    async with meshed(way) as mesh:
        for _ in range(3):
            results = mesh.stream(1000, hold_at=hold_at)
            for _ in range(hold_at):
                await soon(anext(results))
            waiting = asyncio.ensure_future(anext(results))
            await until(lambda: mesh.models.running == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
            await results.aclose()
            await mesh.models.ended()
        results = mesh.stream(1000, pad=MB)
        await soon(anext(results))
        await results.aclose()
        await mesh.models.ended()
        assert await soon(mesh.numbers(3)) == [0, 1, 2]


@WAYS
@pytest.mark.parametrize("hold_at", [0, 3])
async def test_the_deadline_is_for_all_answers(way: str, hold_at: int) -> None:
    async with meshed(way) as mesh:
        numbers = await mesh.until_error(DeadlineExceeded, 9, hold_at=hold_at, deadline_ms=400.0)
        assert numbers == list(range(hold_at))
        await mesh.models.ended()


@WAYS
@pytest.mark.parametrize("fail_at", [0, 1, 20])
async def test_an_error_ends_the_stream_behind_what_was_answered(way: str, fail_at: int) -> None:
    async with meshed(way) as mesh:
        assert await mesh.until_error(InferenceFailed, 50, fail_at=fail_at) == list(range(fail_at))
        assert mesh.models.begun == 1


@WAYS
async def test_an_ordinary_request_is_told_to_ask_for_a_stream(way: str) -> None:
    async with meshed(way) as mesh:
        with pytest.raises(Unsupported, match="stream"):
            await mesh.client.infer(COUNT, X, parameters={"times": 1})
        assert mesh.models.begun == 0


@pytest.mark.parametrize("way", ["own", "lan", "bus"])
async def test_a_node_that_leaves_finishes_its_streams(way: str) -> None:
    async with meshed(way) as mesh:
        results = mesh.stream(100, hold_at=2)
        for _ in range(2):
            await soon(anext(results))
        leaving = asyncio.ensure_future(mesh.leave())
        await until_at(mesh.door, "/mesh/v1/nodes", b'"left"' if way == "bus" else b"holder")
        mesh.models.go.set()
        numbers = [int((await soon(anext(results)))["N"][0]) for _ in range(2, 100)]
        assert numbers == list(range(2, 100))
        assert await soon(anext(results, None)) is None
        await soon(leaving)


async def until_at(door: Door, path: str, text: bytes) -> None:
    async def reached() -> bool:
        return text in (await door.get(path)).body

    await doors_until(reached)


@pytest.mark.parametrize("way", ["lan", "bus"])
@pytest.mark.parametrize("hold_at", [0, 2])
async def test_a_node_that_is_killed(way: str, hold_at: int) -> None:
    """Before its first answer another takes over; after it that is the end, soon and with an error."""
    async with contextlib.AsyncExitStack() as stack:
        nats = await stack.enter_async_context(NatsServer())
        http = HIDDEN if way == "bus" else {}
        process, killed = await stack.enter_async_context(counting_process("killed", nats=nats.url, http=http))
        door = await stack.enter_async_context(router(nats.url))
        await until_served(door, COUNT)
        client = await stack.enter_async_context(Client(door.address))
        mesh = Mesh(CountingModels(), door, client)
        results = mesh.stream(5, hold_at=hold_at)
        got = [int((await soon(anext(results)))["N"][0]) for _ in range(hold_at)]
        waiting = asyncio.ensure_future(anext(results))
        if hold_at == 0:
            await until_at(killed, "/metrics", b"mesh_requests_in_flight 1")
            mesh.models.go.set()
            await stack.enter_async_context(counting_node(mesh.models, "other", nats=nats.url, http=http))
            await until_at(door, "/mesh/v1/nodes", b"other")
        process.kill()
        if hold_at:
            with pytest.raises(Unavailable):
                await soon(waiting)
            assert got == [0, 1]
        else:
            assert int((await soon(waiting))["N"][0]) == 0
            assert [int(result["N"][0]) async for result in results] == [1, 2, 3, 4]
            assert mesh.models.begun == 1


@pytest.mark.parametrize("http", [HIDDEN, {}])
async def test_a_step_in_python_streams_through_the_mesh(tmp_path: Path, http: dict[str, str]) -> None:
    """A real agent and its worker; who leaves early ends the generator in there."""
    python_steps.save(tmp_path, python_steps.REPEAT, name="repeat")
    python_steps.save(tmp_path, python_steps.NOTED, name="noted")
    values = np.arange(500, dtype=np.int32)
    async with NatsServer() as nats, agent(tmp_path, nats=nats.url, http=http), router(nats.url) as door:
        for model in ("repeat", "noted"):
            await until_served(door, model)
        async with Client(door.address, deadline_ms=60_000.0) as client:
            for count in (0, 1, 500):
                answers = [answer async for answer in client.stream("repeat", {"IN": values[:count]})]
                assert [int(answer["OUT"][0]) for answer in answers] == list(range(count))
            notes = tmp_path / "noted" / "1" / "notes"
            warm_ups = notes.read_text().count("left\n")
            left = client.stream("noted", {"IN": values})
            assert int((await soon(anext(left)))["OUT"][0]) == 0
            await left.aclose()
            await until(lambda: notes.read_text().count("left\n") > warm_ups)
            _, _, asked = notes.read_text().rpartition("began\n")
            assert "made 0\n" in asked
            assert "was read to its end" not in asked
