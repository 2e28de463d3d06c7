"""The users of ``docs/operations.md`` on a real server: each does its work, none the others'."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from mesh import hop, subjects
from mesh.messages import encode_report
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.builders import a_report
from tests.integration.doors import Door, agent, repository, router, until, until_served
from tests.nats import PATIENCE_S

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
REQUEST = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}


def users() -> list[dict[str, Any]]:
    """As the page has them; the password of each is its name."""
    block = re.search(r"```text\n(authorization \{.*?\n\}\n)```", PAGE.read_text(), re.S)
    assert block is not None
    found = []
    for user, text in re.findall(r'\{ user: "([\w-]+)"(.*?)\} \}\n', block[1], re.S):
        lists = dict(re.findall(r"(publish|subscribe): \[(.*?)\]", text, re.S))
        permissions: dict[str, Any] = {what: re.findall(r'"(.*?)"', allowed) for what, allowed in lists.items()}
        if answers := re.search(r'allow_responses: \{ max: (\d+), expires: "(\w+)"', text):
            permissions["allow_responses"] = {"max": int(answers[1]), "expires": answers[2]}
        found.append({"user": user, "password": user, "permissions": permissions})
    assert [u["user"] for u in found] == ["edge-1", "router-1", "till"]
    return found


def login(server: NatsServer, user: str) -> dict[str, Any]:
    return {"url": server.url, "user": user, "password": user}


async def ready(door: Door, *, wanted: bool) -> bool:
    return ((await door.get("/v2/models/add/ready")).status == 200) is wanted


async def test_each_does_its_own_work_and_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = repository(tmp_path, {"add": onnx_models.add()})
    hidden = {"listen": "127.0.0.1:0", "advertise": "none", "grace_s": 1}
    async with NatsServer(extra={"authorization": {"users": users()}}) as server:
        trusting = login(server, "edge-1") | {"repository": True}
        async with (
            router(login(server, "router-1")) as front,
            agent(models, nats=trusting, site={"name": "shop"}, http=hidden) as edge,
        ):
            await until_served(front, "add")
            denied: list[str] = []
            application = await nats.connect(
                server.url, user="till", password="till", inbox_prefix=b"_INBOX_till", error_cb=partial(note, denied)
            )
            try:
                await works(application)
                await cannot(application, denied)
            finally:
                await application.close()
            assert (await front.infer("add", REQUEST)).headers["mesh-node"] == "edge-1"
            assert "edge-2" not in (await front.get("/mesh/v1/nodes")).body.decode()
            async with front.connect() as connection:
                unload = "/v2/repository/models/add/unload"
                assert (await connection.request("POST", unload)).status == 200
            await until(partial(ready, edge, wanted=False))
    assert [r.getMessage() for r in caplog.records if "permit" in r.getMessage()] == []


async def works(application: Client) -> None:
    answer = await application.request("mesh.v1.infer.add", json.dumps(REQUEST).encode(), timeout=PATIENCE_S)
    assert json.loads(answer.data)["outputs"][0]["data"] == [2.0] * 16


async def cannot(application: Client, denied: list[str]) -> None:
    """Be another node, change a model, ask a node past the routers, or hear anybody."""
    forged = encode_report(a_report("edge-2", mesh="default", site="shop"))
    await application.publish(subjects.report("shop", "edge-2"), forged)
    await application.publish(subjects.control("shop", "edge-1"), b"", headers={hop.OP: "unload", hop.MODEL: "add"})
    await application.publish(subjects.infer("shop", "edge-1"), b"{}", headers={hop.MODEL: "add"})
    await application.flush()
    for pattern in (">", "_INBOX_edge-1.>", subjects.all_reports()):
        await application.subscribe(pattern)
    await application.flush()
    assert len(denied) == 6, denied


async def note(denied: list[str], error: Exception) -> None:
    denied.append(str(error))
