"""The bus comes late, is found through a neighbour, goes away and comes back. All on one host, in real processes.

Not here: the connection by itself (``tests.contract.test_bus``, ``tests.integration.test_nats_server``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from mesh.client import Client
from mesh.cluster import Cluster
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration.doors import repository
from tests.system.processes import (
    ALONE,
    COUNT,
    Load,
    Site,
    cli_states,
    door,
    states,
    until_held,
    until_state,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = np.ones((1, 16), dtype=np.float32)


@pytest_asyncio.fixture(loop_scope="module")
async def stopped_bus(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server that has a port and does not run."""
    async with NatsServer() as server:
        await server.stop()
        yield server


async def test_agents_join_a_bus_that_appears_later(stopped_bus: NatsServer, tmp_path: Path) -> None:
    bus = stopped_bus
    with_sum = repository(tmp_path / "models", {"sum": onnx_models.add()})
    with_bus = ("--nats", f"nats://shop:secret@{bus.host}:{bus.port}")
    async with Site(tmp_path) as site:
        told = await site.agent("told", with_sum, *with_bus, environ=ALONE)
        await told.until_ready()
        seeds = ALONE | {"MESH_DISCOVERY__SEEDS": json.dumps([told.address])}
        untold = await site.agent("untold", with_sum, environ=seeds)
        router = await site.router("router", *with_bus, environ=ALONE)
        await asyncio.gather(untold.until_ready(), router.until_ready())
        for agent in (told, untold):
            async with Client(agent.url) as client:
                assert (await client.infer("sum", {"X": X}))["Y"].tolist() == (2 * X).tolist()
        await until_state(untold, "told", "ready")
        assert set(await states(router)) == {"router"}

        await bus.start()
        await until_held(router, "sum", "told", "untold")
        shown = await cli_states(router)
        assert (shown["told"], shown["untold"]) == ("ready", "ready")
        report = (await door(told).get("/mesh/v1/report")).body
        assert b"secret" not in report

        await untold.stop()
        await told.stop()
        await until_state(router, "untold", "left")
        again = await site.agent("untold", with_sum, environ=ALONE)
        await again.until_ready()
        await until_state(router, "untold", "ready")


async def test_an_outage_of_the_bus_is_survived(tmp_path: Path) -> None:
    hidden = ALONE | {"MESH_HTTP__ADVERTISE": "none", "MESH_MODELS__ISOLATION": "none"}
    async with Cluster(tmp_path / "run", agents=hidden) as cluster:
        asking = await cluster.agent("asking", repository(tmp_path / "mine", {"mine": COUNT()}))
        holding = await cluster.agent("holding", repository(tmp_path / "theirs", {"count": COUNT()}))
        await asyncio.gather(asking.until_ready(), holding.until_ready())
        await until_held(asking, "count", "holding")
        async with (
            Client(asking.url) as client,
            Load(client, callers=2, model="mine") as near,
            Load(client, callers=4) as far,
        ):
            await far.more(50, "holding")
            assert far.failed == []
            await cluster.bus.kill()
            await far.fails(8)
            await near.more(50, "asking")
            await cluster.bus.start()
            await far.more(50, "holding")
            failed = len(far.failed)
            await far.more(50, "holding")
            assert len(far.failed) == failed
    assert (near.failed, near.wrong, far.wrong) == ([], 0, 0)
    assert {(error.retryable, error.status) for error in far.failed} == {(True, 503)}
