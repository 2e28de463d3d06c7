"""The SDK on a bus: doors learned from reports, the routers asked over the bus where no door can be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh import client
from mesh.client import Client
from mesh.errors import BusUnavailable, ModelNotFound, NodeUnreachable, NoReadyInstance
from mesh.nats_bus import NatsOptions
from mesh.nats_server import NatsServer
from mesh.sync_client import SyncClient
from tests import onnx_models
from tests.fakes import until
from tests.integration.doors import agent, repository, router, until_served
from tests.nats import soon

X = np.arange(16, dtype=np.float32).reshape(1, 16)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds no door waits no longer than needed."""
    monkeypatch.setattr(client, "DISCOVERY_S", 1.0)


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return repository(tmp_path / "models", {"add": onnx_models.add()})


async def test_doors_are_learned_from_reports(server: NatsServer, models: Path) -> None:
    async with agent(models, nats=server.url) as door, Client(server.url) as client:
        await until(lambda: client.doors == [door.address])
        result = await client.infer("add", {"X": X})
        assert (result["Y"].tolist(), result.node, result.hops) == ((2 * X).tolist(), "edge-1", 0)
        assert (await client.metadata("add")).name == "add"


async def test_without_any_door_the_routers_are_asked_over_the_bus(server: NatsServer, models: Path) -> None:
    hidden: dict[str, Any] = {"advertise": "none"}
    async with agent(models, nats=server.url, http=hidden), router(server.url, http=hidden) as front:
        await until_served(front, "add")
        async with Client(server.url) as client:
            result = await client.infer("add", {"X": X}, version="1")
            assert client.doors == []
            assert (result["Y"].tolist(), result.node, result.route) == ((2 * X).tolist(), "edge-1", "peer")
            assert [t.name for t in (await client.metadata("add", "1")).inputs] == ["X"]
            for work in (client.infer("nope", {"X": X}), client.metadata("nope")):
                with pytest.raises(ModelNotFound):
                    await work
            large = np.zeros((3 << 20,), dtype=np.float32)
            with pytest.raises(NoReadyInstance):
                await client.infer("add", {"X": large})


async def test_a_router_that_comes_later_is_found(server: NatsServer, models: Path) -> None:
    hidden: dict[str, Any] = {"advertise": "none"}
    async with agent(models, nats=server.url, http=hidden), Client(server.url) as client:
        with pytest.raises(NodeUnreachable, match="no router listens on the bus"):
            await soon(client.infer("add", {"X": X}))
        async with router(server.url, http=hidden) as front:
            await until_served(front, "add")
            assert (await client.infer("add", {"X": X})).node == "edge-1"


async def test_a_token_opens_the_bus_and_its_absence_is_said(models: Path) -> None:
    async with NatsServer(token="let me in please") as guarded:
        with pytest.raises(BusUnavailable, match="uthoriz"):
            await Client(guarded.url).__aenter__()
        async with Client(guarded.url, nats_token="let me in please") as client:
            assert client.doors == []
        options = NatsOptions((guarded.url,), "me", token="let me in please")
        async with Client(nats=options) as client:
            assert client.doors == []


async def test_a_bus_beside_a_door_may_be_down(models: Path) -> None:
    async with agent(models) as door, Client(door.address, "nats://127.0.0.1:1") as client:
        assert (await client.infer("add", {"X": X})).node == "edge-1"


def test_plain_code_takes_the_same_options() -> None:
    with pytest.raises(BusUnavailable):
        SyncClient("nats://127.0.0.1:1").__enter__()
