"""Several doors of which anybody chooses any: a step is taken by the door that holds its sequence, or by none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput

from edge.models import Models
from mesh.errors import SequenceUnknown
from mesh.nats_server import NatsServer
from tests.integration.doors import Door, agent, repository, request, router, until_served
from tests.integration.test_shared_memory import Shared, register, tensor
from tests.mqtt import Device
from tests.nats import PATIENCE_S, soon
from tests.sequence_models import CHAIN_TOML, chain, chained, head

Asking = Callable[[int, dict[str, Any]], Awaitable[int]]
DOOR: dict[str, Any] = {"listen": "127.0.0.1:0", "grace_s": 1}
HIDDEN, SHARING = DOOR | {"advertise": "none"}, DOOR | {"shared_memory": True}
NUMBERS = list(range(3, 27))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return repository(tmp_path, {"chain": chain()}, {"chain": CHAIN_TOML})


def by_http(door: Door) -> Asking:
    async def ask(number: int, said: dict[str, Any]) -> int:
        answer = await door.infer("chain", head(number, **said))
        assert answer.status == 200, answer.body
        assert answer.headers["mesh-node"] == "edge-1"
        return int(answer.json()["outputs"][0]["data"][0])

    return ask


def by_grpc(client: triton.InferenceServerClient) -> Asking:
    async def ask(number: int, said: dict[str, Any]) -> int:
        given = InferInput("INPUT", [1, 1], "INT64")
        given.set_data_from_numpy(np.array([[number]], np.int64))
        result = await soon(client.infer("chain", [given], sequence_id=1, **said))
        return int(result.as_numpy("OUTPUT")[0, 0])

    return ask


def by_nats(application: Any) -> Asking:
    async def ask(number: int, said: dict[str, Any]) -> int:
        body = json.dumps(head(number, **said)).encode()
        answer = await application.request("mesh.v1.infer.chain", body, timeout=PATIENCE_S)
        return int(json.loads(answer.data)["outputs"][0]["data"][0])

    return ask


@contextlib.asynccontextmanager
async def two_routers(models: Path, url: str) -> AsyncIterator[tuple[Door, Door]]:
    async with (
        agent(models, nats=url, http=HIDDEN),
        router(url, node={"name": "left"}, grpc={"listen": "127.0.0.1:0"}) as left,
        router(
            url, node={"name": "right"}, grpc={"listen": "127.0.0.1:0"}, http=DOOR | {"shared_memory": True}
        ) as right,
    ):
        await until_served(left, "chain")
        await until_served(right, "chain")
        yield left, right


async def steps(asking: list[Asking], first: Asking) -> None:
    """The first at one door, the others at all in turn."""
    turns = itertools.chain([first], itertools.cycle(asking))
    got = []
    for at, number in enumerate(NUMBERS):
        said = {"sequence_start": True} if at == 0 else {"sequence_end": True} if at == len(NUMBERS) - 1 else {}
        got.append(await next(turns)(number, said))
    assert got == list(chained(NUMBERS, ends=len(NUMBERS)))


async def test_steps_by_http_grpc_and_nats_at_two_routers(models: Path) -> None:
    async with NatsServer() as server, two_routers(models, server.url) as (left, right):
        application = await nats.connect(server.url)
        async with triton.InferenceServerClient(left.grpc) as one, triton.InferenceServerClient(right.grpc) as other:
            asking = [by_http(right), by_grpc(one), by_nats(application), by_grpc(other), by_http(left)]
            for first in asking:  # each time the same id, which the other door may have had before
                await steps(asking, first)
        await application.close()


async def test_a_step_whose_door_is_gone_and_one_that_nobody_holds(models: Path) -> None:
    async with (
        NatsServer() as server,
        agent(models, nats=server.url, http=HIDDEN),
        router(server.url, node={"name": "right"}) as right,
    ):
        async with router(server.url, node={"name": "left"}) as left:
            await until_served(left, "chain")
            await until_served(right, "chain")
            await by_http(left)(5, {"sequence_start": True})
            assert await by_http(right)(6, {}) == list(chained([5, 6]))[-1]
        answer = await right.infer("chain", head(7))
        assert (answer.status, "is held by the door" in answer.error) == (409, True)
        answer = await right.infer("chain", head(7))
        assert (answer.status, "START flag" in answer.error) == (409, True)


async def test_devices_at_two_agents(models: Path) -> None:
    async with NatsServer(mqtt="127.0.0.1:0") as server:
        shop = {"name": "shop"}
        async with (
            agent(models, nats=server.url, site=shop) as one,
            agent(models, nats=server.url, site=shop, node={"name": "edge-2"}) as two,
            Device(int(server.mqtt.rpartition(":")[2]), "meter", "mesh/shop/result/#") as device,
        ):
            await until_served(one, "chain")
            await until_served(two, "chain")
            got = []
            for at, number in enumerate(NUMBERS):
                _, result = await device.ask("mesh/shop/infer/chain/meter", head(number, sequence_start=at == 0))
                got.append(int(np.ravel(result["outputs"][0]["data"])[0]))
            assert got == list(chained(NUMBERS))


class Gate:
    """In front of the models of all agents here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed = False
        """Whether the next request waits for ever."""
        self.forgets = False
        """Whether it meets a node that holds no sequence."""
        self.reached, self.left = asyncio.Event(), asyncio.Event()
        self._infer = Models.infer
        monkeypatch.setattr(Models, "infer", lambda *asked: self._pass(*asked))

    async def _pass(self, *asked: Any) -> Any:
        if self.forgets:
            self.forgets = False
            raise SequenceUnknown("as told")
        if self.closed:
            self.closed = False
            self.reached.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        return await self._infer(*asked)


async def test_a_caller_that_leaves_is_heard_of_where_its_step_runs(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    async with NatsServer() as server, two_routers(models, server.url) as (left, right):
        await by_http(left)(5, {"sequence_start": True})
        gate.closed = True
        async with right.connect() as connection:
            body = json.dumps(head(1000, timeout=600_000_000)).encode()
            await connection.send(request("POST", "/v2/models/chain/infer", body))
            await soon(gate.reached.wait())
            connection.reset()
        await soon(gate.left.wait())
        assert await by_http(right)(6, {}) == list(chained([5, 6]))[-1]


async def test_what_a_handed_on_step_tells_and_takes_is_of_the_door_it_came_to(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, wanted = Gate(monkeypatch), list(chained([5, 6, 7]))
    with contextlib.ExitStack() as stack:
        shared = Shared()
        stack.callback(shared.clear)
        key = shared.make("out", bytes(8))
        async with NatsServer() as server, two_routers(models, server.url) as (left, right):
            await by_http(left)(5, {"sequence_start": True})
            await register(right, "in", shared.make("in", (6).to_bytes(8, "little")), 8)
            await register(right, "out", key, 8)
            asked = head(6) | {"outputs": [tensor("OUTPUT", "out", 8)]}
            asked["inputs"] = [tensor("INPUT", "in", 8, datatype="INT64", shape=[1, 1])]
            gate.forgets = True
            answer = await right.infer("chain", asked)
            assert answer.status == 200, answer.body
            assert int.from_bytes(shared.read(key), "little") == wanted[1]
            said = "resumed; checkpoint=0; replayed=1"
            assert (answer.headers["mesh-sequence"], answer.json()["parameters"]["mesh_sequence"]) == (said, said)
            assert await by_http(left)(7, {}) == wanted[2]
