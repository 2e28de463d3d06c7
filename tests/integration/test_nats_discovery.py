"""The fleet as NATS's own tools see it: ADR-32 questions asked with nats-py alone, and a plain request."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from mesh.nats_discovery import semantic
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration.doors import agent, repository, router, until, until_served
from tests.nats import soon

ROW = [[float(n) for n in range(16)]]
NAME = r"[a-zA-Z0-9_-]+"
SEMANTIC = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+)?"
REQUEST = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": ROW}]}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    models = repository(tmp_path, {"add": onnx_models.add()})
    async with (
        NatsServer() as server,
        agent(models, nats=server.url, node={"name": "shop.1"}, site={"name": "shop"}),
        agent(models, nats=server.url, node={"name": "shop.2"}, site={"name": "shop"}),
        router(server.url) as front,
    ):
        await until_served(front, "add")
        client = await nats.connect(server.url)

        async def all_there() -> bool:
            return len(await asked(client, "$SRV.PING", 3, patient=False)) == 3

        await until(all_there)
        yield client
        await client.close()


async def asked(client: Client, subject: str, count: int, *, patient: bool = True) -> list[dict[str, Any]]:
    """The first ``count`` answers to one question."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    answers = []
    try:
        for _ in range(count):
            message = await subscription.next_msg(timeout=60 if patient else 0.5)
            if message.headers:
                break  # nobody listens
            answers.append(json.loads(message.data))
    except nats.errors.TimeoutError:
        assert not patient
    finally:
        await subscription.unsubscribe()
    return answers


async def test_everybody_answers_a_ping(client: Client) -> None:
    answers = await asked(client, "$SRV.PING", 3)
    assert sorted(a["name"] for a in answers) == ["mesh-edge", "mesh-edge", "mesh-router"]
    assert {a["type"] for a in answers} == {"io.nats.micro.v1.ping_response"}
    assert len({a["id"] for a in answers}) == 3
    assert sorted(a["metadata"]["node"] for a in answers) == ["router-1", "shop.1", "shop.2"]


async def test_by_kind_and_by_id(client: Client) -> None:
    edges = await asked(client, "$SRV.INFO.mesh-edge", 2)
    assert {a["type"] for a in edges} == {"io.nats.micro.v1.info_response"}
    assert {a["metadata"]["models"] for a in edges} == {"add"}
    subjects = {endpoint["subject"] for answer in edges for endpoint in answer["endpoints"]}
    assert subjects == {"mesh.v1.shop.node.shop%2E1.infer", "mesh.v1.shop.node.shop%2E2.infer"}
    one = await client.request(f"$SRV.INFO.mesh-edge.{edges[0]['id']}", b"", timeout=60)
    assert json.loads(one.data) == edges[0]
    (front,) = await asked(client, "$SRV.INFO.mesh-router", 1)
    assert front["endpoints"][0]["subject"] == "mesh.v1.infer.*"
    assert front["endpoints"][0]["queue_group"] == "router"


async def test_what_was_done_is_counted(client: Client) -> None:
    for _ in range(3):
        reply = await soon(client.request("mesh.v1.infer.add", json.dumps(REQUEST).encode(), timeout=60))
        assert json.loads(reply.data)["outputs"][0]["data"] == [2.0 * n for n in range(16)]
    refused = await client.request("mesh.v1.infer.add", b"{}", timeout=60)
    assert refused.headers is not None
    assert refused.headers["Nats-Service-Error-Code"] == "400"
    (front,) = await asked(client, "$SRV.STATS.mesh-router", 1)
    counted = front["endpoints"][0]
    assert (counted["num_requests"], counted["num_errors"]) == (4, 1)
    assert counted["average_processing_time"] == counted["processing_time"] // 3 > 0  # of what was answered
    assert "inputs" in counted["last_error"]
    assert front["started"].endswith("Z")
    ran = await asked(client, "$SRV.STATS.mesh-edge", 2)
    assert sum(answer["endpoints"][0]["num_requests"] for answer in ran) == 3


async def test_nats_pys_own_types_read_every_answer(client: Client) -> None:
    for question, read in (("PING", ServicePing), ("INFO", ServiceInfo), ("STATS", ServiceStats)):
        for answer in await asked(client, f"$SRV.{question}", 3):
            seen = read.from_dict(answer)
            assert answer["type"] == seen.type
            assert re.fullmatch(NAME, seen.name)
            assert re.fullmatch(NAME, seen.id)
            assert re.fullmatch(SEMANTIC, seen.version)
            assert all(isinstance(value, str) for value in seen.metadata.values())
            for endpoint in answer.get("endpoints", ()):
                assert re.fullmatch(NAME, endpoint["name"])


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("0.1.0", "0.1.0"), ("1.2.0rc1", "1.2.0-rc1"), ("1.2.0.dev3+g1", "1.2.0-dev3-g1"), ("unknown", "0.0.0")],
)
def test_versions_are_semantic(version: str, wanted: str) -> None:
    assert semantic(version) == wanted
    assert re.fullmatch(SEMANTIC, wanted)


async def test_who_left_answers_no_more_and_who_comes_back_does(tmp_path: Path) -> None:
    models = repository(tmp_path, {"add": onnx_models.add()})
    async with NatsServer() as server:
        client = await nats.connect(server.url)

        async def there() -> bool:
            return len(await asked(client, "$SRV.PING.mesh-edge", 1, patient=False)) == 1

        async with agent(models, nats=server.url):
            await until(there)
            await client.close()
            await server.kill()
            await server.start()
            client = await nats.connect(server.url)
            await until(there)
        assert await asked(client, "$SRV.PING", 1, patient=False) == []
        await client.close()


async def test_other_questions_are_nobodys(client: Client) -> None:
    assert await asked(client, "$SRV.SCHEMA", 1, patient=False) == []
    assert await asked(client, "$SRV.PING.somebody-else", 1, patient=False) == []
