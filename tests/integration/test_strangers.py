"""What somebody who is merely on the bus cannot do by publishing there. Real server, nodes and clients.

Not here: loading and unloading (``test_bus_changes``), messages that cannot be read (``test_nats_reader``).
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from mesh import subjects
from mesh.nats_bus import NatsBus
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import Door, repository, until
from tests.nats import Heard, connected_bus

SECRET = b"what a local application keeps in its shared memory, 64 bytes...".ljust(64)
GOOD: dict[str, Any] = {"inputs": [{"name": "INPUT", "datatype": "UINT8", "shape": [1, 64], "data": [7] * 64}]}
NODE = subjects.infer("shop", "edge-1")


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


@pytest.fixture
async def door(server: NatsServer, tmp_path: Path) -> AsyncIterator[Door]:
    models = repository(tmp_path / "models", {"same": onnx_models.identity("UINT8", (1, 64))})
    http = {"listen": "127.0.0.1:0", "grace_s": 1, "shared_memory": True}
    async with doors.agent(models, nats=server.url, site={"name": "shop"}, http=http) as door:
        await until(lambda: on_bus(door))
        yield door


@pytest.fixture
async def stranger(server: NatsServer) -> AsyncIterator[NatsBus]:
    async with connected_bus(server) as bus:
        yield bus


@pytest.fixture
def memory() -> Iterator[Path]:
    path = Path(f"/dev/shm/mesh-test-{uuid.uuid4().hex}")
    path.write_bytes(SECRET)
    yield path
    path.unlink()


def content(memory: Path) -> bytes:
    return memory.read_bytes()


async def on_bus(door: Door) -> bool:
    return "mesh_bus_connected 1.0" in (await door.get("/metrics")).body.decode()


async def test_shared_memory_is_not_for_those_who_ask_over_the_bus(door: Door, stranger: NatsBus, memory: Path) -> None:
    """It is allowed at a door that only this host reaches; that door was not the only one."""
    region = {"key": f"/{memory.name}", "offset": 0, "byte_size": 64}
    async with door.connect() as local:
        path = "/v2/systemsharedmemory/region/mine/register"
        assert (await local.request("POST", path, json.dumps(region).encode())).status == 200
    place = {"shared_memory_region": "mine", "shared_memory_byte_size": 64}
    tensor = {name: GOOD["inputs"][0][name] for name in ("name", "datatype", "shape")}
    reads = {"inputs": [tensor | {"parameters": place}]}
    writes = GOOD | {"outputs": [{"name": "OUTPUT", "parameters": place}]}
    heard = Heard()
    await stranger.subscribe("mesh.shop.result.>", heard)
    for asked in (reads, writes):
        await stranger.publish("mesh.shop.infer.same.7", json.dumps(asked).encode())
        document = json.loads((await heard.next()).payload)
        assert document.get("code") == "invalid_request", document
        assert "shared memory is for callers on this host" in document["error"]
    assert content(memory) == SECRET


@pytest.mark.parametrize(
    "reply", ["mesh.v1.shop.node.edge-1.control", "mesh.shop.infer.same", "$JS.API.INFO", "$SRV.PING"]
)
async def test_a_node_answers_into_inboxes_only(door: Door, stranger: NatsBus, reply: str) -> None:
    """By a user of its own it may publish where the one who asks may not."""
    heard = Heard()
    await stranger.subscribe(reply, heard)
    await stranger.subscribe("last", heard)
    await stranger.publish(NODE, json.dumps(GOOD).encode(), {"Mesh-Model": "same"}, reply=reply)
    await stranger.publish(NODE, b"", {"Mesh-Model": "same", "Mesh-Op": "metadata"}, reply=reply)
    await stranger.publish(subjects.stream("edge-1"), b"", {"Mesh-Stream": "none"}, reply=reply)
    await stranger.publish("$SRV.INFO", b"", reply=reply)
    await stranger.request(NODE, json.dumps(GOOD).encode(), {"Mesh-Model": "same"}, timeout_s=60)
    await stranger.publish("last", b"")
    assert (await heard.next()).subject == "last"


async def test_a_reply_that_is_no_subject_is_not_worth_a_word(
    door: Door, stranger: NatsBus, server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = await nats.connect(server.url)
    with caplog.at_level(logging.WARNING):
        for subject in (NODE, subjects.control("shop", "edge-1"), subjects.stream("edge-1"), "$SRV.PING"):
            for reply in ("a.*", ">", "a..b"):
                await client.publish(subject, b"", reply=reply)
        await client.flush()
        await client.close()
        await stranger.request(NODE, json.dumps(GOOD).encode(), {"Mesh-Model": "same"}, timeout_s=60)
        await stranger.request("$SRV.PING", b"", timeout_s=60)
    assert [record.getMessage() for record in caplog.records] == []
