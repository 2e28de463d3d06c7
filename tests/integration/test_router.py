"""Agents and a cloud router on a real NATS server: who answers whom, by which way, and what each refusal says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh import hop, subjects
from mesh.client import Client
from mesh.errors import DeadlineExceeded, ModelNotFound, NoReadyInstance, from_wire
from mesh.hop_bus import ERROR_STATUS, ERROR_TEXT
from mesh.nats_bus import NatsBus
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.contract.tensors import ENDLESS
from tests.integration.doors import Door, agent, repository, router, until, until_served
from tests.nats import connected_bus, soon

X = np.ones((1, 16), dtype=np.float32)
ADD = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
HIDDEN = {"listen": "127.0.0.1:0", "advertise": "none"}


@pytest.fixture
async def nats() -> AsyncIterator[NatsServer]:
    async with NatsServer(max_payload=256 * 1024) as server:
        yield server


class Mesh:
    """A router on the bus, and agents that join it."""

    def __init__(self, nats: NatsServer, tmp_path: Path, stack: contextlib.AsyncExitStack) -> None:
        self._nats = nats
        self._tmp = tmp_path
        self.stack = stack

    async def start(self) -> None:
        self.router = await self.stack.enter_async_context(router(self._nats.url))
        self.client = await self.stack.enter_async_context(Client(self.router.address, deadline_ms=60_000))
        self.bus: NatsBus = await self.stack.enter_async_context(connected_bus(self._nats))

    async def agent(self, name: str, toml: dict[str, str] | None = None, /, **options: Any) -> Door:
        models = repository(self._tmp / name, options.pop("holds"), toml)
        options["node"] = {"name": name}
        return await self.stack.enter_async_context(agent(models, nats=self._nats.url, **options))

    async def ask(self, subject: str, headers: dict[str, str] | None = None) -> Any:
        """As a plain NATS application; the JSON answered, or the error rebuilt and raised."""
        answer = await self.bus.request(subject, json.dumps(ADD).encode(), headers, timeout_s=60.0)
        if (status := answer.headers.get(ERROR_STATUS)) is not None:
            raise from_wire(_get(answer.headers, hop.ERROR), answer.headers[ERROR_TEXT], int(status))
        return json.loads(answer.payload)


def _get(headers: Any, name: str) -> str:
    return str({key.lower(): value for key, value in headers.items()}.get(name, ""))


@pytest.fixture
async def mesh(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with contextlib.AsyncExitStack() as stack:
        mesh = Mesh(nats, tmp_path, stack)
        await mesh.start()
        yield mesh


async def test_a_router_holds_nothing_and_answers_from_who_does(mesh: Mesh) -> None:
    with pytest.raises(ModelNotFound, match=r"^Request for unknown model"):
        await mesh.client.infer("add", {"X": X})
    assert (await mesh.router.get("/v2/health/ready")).status == 200
    await mesh.agent("edge-1", holds={"add": onnx_models.add()})
    await until_served(mesh.router, "add")
    result = await mesh.client.infer("add", {"X": X})
    assert result["Y"].tolist() == (2 * X).tolist()
    assert (result.node, result.route, result.hops) == ("edge-1", "peer", 1)
    assert (await mesh.client.metadata("add")).inputs[0].name == "X"


async def test_an_agent_passes_on_what_it_does_not_hold(mesh: Mesh) -> None:
    one = await mesh.agent("edge-1", holds={"add": onnx_models.add()})
    two = await mesh.agent("edge-2", holds={"simple": onnx_models.simple()})
    await until_served(two, "add")
    await until_served(one, "simple")
    async with Client(two.address) as client:
        result = await client.infer("add", {"X": X})
        assert (result.node, result.route, result.hops) == ("edge-1", "peer", 1)
        assert (await client.metadata("add")).name == "add"
        assert await client.models() == ["add", "simple"]
        await until_met(two, "edge-1")
        for name, value in {"mesh_node": "edge-1", "mesh_stay": "site"}.items():
            assert (await client.infer("add", {"X": X}, parameters={name: value})).node == "edge-1"
        for name, value in {"mesh_node": "edge-2", "mesh_stay": "node", "mesh_tier": "cloud"}.items():
            with pytest.raises(NoReadyInstance, match="it may not go to those that hold it"):
                await client.infer("add", {"X": X}, parameters={name: value})


async def test_a_hidden_node_is_reached_over_the_bus_and_what_is_too_large_says_so(mesh: Mesh) -> None:
    await mesh.agent("hidden", holds={"same": onnx_models.identity("UINT8")}, http=HIDDEN)
    await until_served(mesh.router, "same")
    small = np.arange(100, dtype=np.uint8)
    result = await mesh.client.infer("same", {"INPUT": small})
    assert (result.node, result["OUTPUT"].tolist()) == ("hidden", small.tolist())
    assert (await mesh.client.metadata("same")).name == "same"
    with pytest.raises(NoReadyInstance, match="node hidden can only be reached over the bus, which takes 253952 bytes"):
        await mesh.client.infer("same", {"INPUT": np.zeros(300_000, dtype=np.uint8)})


async def test_an_application_on_nats_asks_the_routers(mesh: Mesh) -> None:
    await mesh.agent("edge-1", holds={"add.v1": onnx_models.add()})
    await until_served(mesh.router, "add.v1")
    answer = await mesh.ask(subjects.model_infer("add.v1"))
    assert answer["outputs"][0]["data"] == [2.0] * 16
    with pytest.raises(ModelNotFound, match=r"^Request for unknown model"):
        await mesh.ask(subjects.model_infer("nope"))


async def test_a_node_refuses_other_bytes_and_a_third_hop_on_its_own_subject(mesh: Mesh) -> None:
    await mesh.agent("edge-1", holds={"add": onnx_models.add()})
    await until_served(mesh.router, "add")
    subject = subjects.infer("default", "edge-1")
    digest = (await mesh.router.get("/mesh/v1/nodes")).json()["nodes"]
    held = next(m["digest"] for n in digest for m in n["models"])
    named = {hop.MODEL: "add", hop.VERSION: "1"}
    assert await mesh.ask(subject, named | {hop.DIGEST: held, hop.HOPS: "2"})
    with pytest.raises(Exception, match="holds other bytes as add/1"):
        await mesh.ask(subject, named | {hop.DIGEST: "ab" * 32, hop.HOPS: "1"})
    with pytest.raises(Exception, match="Mesh-Model is missing"):
        await mesh.ask(subject)


async def test_two_digests_under_one_name_are_never_mixed(mesh: Mesh) -> None:
    one = await mesh.agent("edge-1", holds={"m": onnx_models.add()})
    two = await mesh.agent("edge-2", holds={"m": onnx_models.simple()})
    await until_served(mesh.router, "m")
    x = np.ones((1, 16), dtype=np.int32)
    async with Client(one.address) as first, Client(two.address) as second:
        assert (await first.infer("m", {"X": X})).node == "edge-1"
        assert (await second.infer("m", {"INPUT0": x, "INPUT1": x})).node == "edge-2"


async def test_a_model_that_is_broken_here_is_answered_by_who_has_it(mesh: Mesh) -> None:
    await mesh.agent("edge-1", holds={"add": onnx_models.add()})
    broken = await mesh.agent("edge-2", {"add": "no toml"}, holds={"add": onnx_models.add()})
    await until_served(broken, "add")
    async with Client(broken.address) as client:
        assert (await client.infer("add", {"X": X})).node == "edge-1"
        assert (await client.metadata("add")).name == "add"


async def test_the_deadline_travels(mesh: Mesh) -> None:
    loop = {"models": {"isolation": "device", "hang_s": 0.1}}
    await mesh.agent("edge-1", holds={"loop": onnx_models.loop()}, **loop)
    await until_served(mesh.router, "loop")
    with pytest.raises(DeadlineExceeded):
        await soon(mesh.client.infer("loop", {"N": np.array(ENDLESS, dtype=np.int64)}, deadline_ms=300))


async def test_what_waits_behind_a_run_that_hangs_is_answered_by_another_node(mesh: Mesh) -> None:
    loop = {"loop": onnx_models.loop()}
    options = {"models": {"isolation": "device", "hang_s": 60.0}}
    one = await mesh.agent("edge-1", holds=loop, **options)
    await mesh.agent("edge-2", holds=loop, **options)
    await until_met(one, "edge-2")
    async with Client(one.address) as client:
        for _ in range(5):  # slower than expected, so that there is time enough to be given back even on a slow machine
            there, slow = {"mesh_node": "edge-2"}, {"N": np.array(300_000, dtype=np.int64)}
            assert (await soon(client.infer("loop", slow, parameters=there, deadline_ms=60_000))).node == "edge-2"
        hung = asyncio.ensure_future(client.infer("loop", {"N": np.array(ENDLESS, dtype=np.int64)}, deadline_ms=60_000))
        await one.until_in_flight("loop", 1)
        await asyncio.sleep(0.1)  # until it has taken too long to keep the next one ready behind it
        result = await soon(client.infer("loop", {"N": np.array(5, dtype=np.int64)}, deadline_ms=5000))
        assert (result.node, result["Y"].tolist()) == ("edge-2", 5)
        assert not hung.done()
        hung.cancel()
        await asyncio.wait([hung])


async def until_met(door: Door, node: str) -> None:
    """Wait until the door's node sees the other as ready."""

    async def met() -> bool:
        rows = (await door.get("/mesh/v1/nodes")).json()["nodes"]
        return any((row["node"], row["state"]) == (node, "ready") for row in rows)

    await until(met)


async def test_a_node_that_leaves_is_not_asked_any_more(mesh: Mesh) -> None:
    async with contextlib.AsyncExitStack() as leaving:
        stack, mesh.stack = mesh.stack, leaving
        await mesh.agent("edge-1", holds={"add": onnx_models.add()})
        mesh.stack = stack
        await mesh.agent("edge-2", holds={"add": onnx_models.add()})
        await until_served(mesh.router, "add")

    async def left() -> bool:
        """The other one has to be known by then: a router may have heard of the first alone so far."""
        rows = (await mesh.router.get("/mesh/v1/nodes")).json()["nodes"]
        states = {n["node"]: n["state"] for n in rows}
        return (states.get("edge-1"), states.get("edge-2")) == ("left", "ready")

    await until(left)
    assert {(await mesh.client.infer("add", {"X": X})).node for _ in range(5)} == {"edge-2"}
