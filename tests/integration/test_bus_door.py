"""The bus door as a plain NATS client meets it: inference and metadata by subject and headers, errors as ADR-32 says.

Not here: hops between nodes (``test_router``), malformed requests (``test_malformed``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from mesh import subjects
from mesh.messages import Load
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import Door
from tests.malformed import HEADER, binary_input, good_json, joined, json_input
from tests.nats import PATIENCE_S, soon

MAX_PAYLOAD = 64 * 1024
SIMPLE = subjects.model_infer("simple")
NODE = subjects.infer("default", "edge-1")
GOOD = json.dumps(good_json()).encode()
TWOS = [2] * 16


@dataclass(frozen=True)
class Mesh:
    """An agent and a router on a bus, and a client of that bus that knows nothing of meshes."""

    server: NatsServer
    router: Door
    client: Nats

    async def ask(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> Msg:
        return await self.client.request(subject, body, timeout=PATIENCE_S, headers=headers)


@contextlib.asynccontextmanager
async def plain_client(server: NatsServer) -> AsyncIterator[Nats]:
    client = await nats.connect(server.url)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    models = {
        "simple": onnx_models.simple(),
        "same.v1": onnx_models.identity("UINT8"),
        "zeros": onnx_models.memory_bomb(),
    }
    async with (
        NatsServer(max_payload=MAX_PAYLOAD) as server,
        doors.router(server.url) as router,
        doors.agent(doors.repository(tmp_path, models), nats=server.url),
        plain_client(server) as client,
    ):
        for model in models:
            await doors.until_served(router, model)
        yield Mesh(server, router, client)


def error(answer: Msg) -> tuple[int, str, str]:
    """Status, code and text of an error, which must be all there is."""
    assert answer.data == b""
    headers = answer.headers or {}
    code = {name.lower(): value for name, value in headers.items()}["mesh-error"]
    return int(headers["Nats-Service-Error-Code"]), code, headers["Nats-Service-Error"]


def lower(answer: Msg) -> dict[str, str]:
    headers = {name.lower(): value for name, value in (answer.headers or {}).items()}
    assert "nats-service-error-code" not in headers, headers
    return headers


async def test_an_application_asks_in_json(mesh: Mesh) -> None:
    answer = await mesh.ask(SIMPLE, GOOD)
    headers, document = lower(answer), json.loads(answer.data)
    assert document["outputs"][0]["data"] == TWOS
    assert (document["model_name"], document["model_version"]) == ("simple", "1")
    assert (headers["mesh-node"], headers["mesh-route"], headers["mesh-hops"]) == ("edge-1", "peer", "1")
    assert HEADER.lower() not in headers


async def test_an_application_asks_in_binary(mesh: Mesh) -> None:
    tensors = np.arange(32, dtype="<i4")
    head = {"inputs": [binary_input(), binary_input("INPUT1")], "parameters": {"binary_data_output": True}, "id": "7"}
    for name in (HEADER, HEADER.lower(), HEADER.upper()):
        body, headers = joined(head, tensors.tobytes())
        answer = await mesh.ask(SIMPLE, body, {name: headers[HEADER]})
        length = int(lower(answer)[HEADER.lower()])
        assert json.loads(answer.data[:length])["id"] == "7"
        sums = np.frombuffer(answer.data[length : length + 64], "<i4")
        assert sums.tolist() == (tensors[:16] + tensors[16:]).tolist()


async def test_a_version_and_a_dotted_name(mesh: Mesh) -> None:
    ask = json.dumps({"inputs": [json_input("INPUT", shape=[2], datatype="UINT8", data=[7, 8])]}).encode()
    answer = await mesh.ask(subjects.model_infer("same.v1"), ask, {"Mesh-Version": "1"})
    assert json.loads(answer.data)["outputs"][0]["data"] == [7, 8]
    status, code, text = error(await mesh.ask(subjects.model_infer("same.v1"), ask, {"Mesh-Version": "2"}))
    assert (status, code) == (404, "model_not_found")
    assert "version '2' of model 'same.v1'" in text


async def test_a_nodes_own_subject(mesh: Mesh) -> None:
    answer = await mesh.ask(NODE, GOOD, {"Mesh-Model": "simple"})
    assert json.loads(answer.data)["outputs"][0]["data"] == TWOS
    headers = lower(answer)
    assert (headers["mesh-node"], headers["mesh-route"]) == ("edge-1", "local")
    assert headers["mesh-load"]
    assert float(headers["mesh-time-ms"]) > 0
    others = {"Mesh-Model": "simple", "Mesh-Model-Digest": "ab" * 32, "Mesh-Hops": "1"}
    refused = await mesh.ask(NODE, GOOD, others)
    assert error(refused)[:2] == (503, "digest_mismatch")
    said = {name.lower(): value for name, value in (refused.headers or {}).items()}
    assert Load.from_header(said["mesh-load"]).state == "ready"
    unknown = await mesh.ask(subjects.model_infer("nobody"), GOOD)  # of an application
    assert error(unknown)[0] == 404
    assert "mesh-load" not in {name.lower() for name in unknown.headers or {}}
    status, code, text = error(await mesh.ask(NODE, GOOD))
    assert (status, code) == (400, "invalid_request")
    assert "Mesh-Model" in text


async def test_metadata(mesh: Mesh) -> None:
    for subject, headers in ((SIMPLE, {}), (NODE, {"Mesh-Model": "simple"})):
        answer = await mesh.ask(subject, b"", {"Mesh-Op": "metadata"} | headers)
        lower(answer)
        assert [i["name"] for i in json.loads(answer.data)["inputs"]] == ["INPUT0", "INPUT1"]
    status, _, text = error(await mesh.ask(subjects.model_infer("nobody"), b"", {"Mesh-Op": "metadata"}))
    assert status == 404
    assert "nobody" in text


@pytest.mark.parametrize("name", ["nobody", "no body", "\u6a21\u578b", "a.b", "line\nbreak\r\n", "x" * 200])
async def test_a_name_nobody_holds_is_named_in_one_line(mesh: Mesh, name: str) -> None:
    status, code, text = error(await mesh.ask(subjects.model_infer(name), GOOD))
    assert (status, code) == (404, "model_not_found")
    assert text.startswith("Request for unknown model")
    assert "\n" not in text
    assert await good(mesh)


@pytest.mark.parametrize("token", ["%zz", "%2e", "a%", "%ff", "caf\u00e9"])
async def test_a_subject_that_is_no_encoded_name(mesh: Mesh, token: str) -> None:
    status, code, text = error(await mesh.ask(f"mesh.v1.infer.{token}", GOOD))
    assert (status, code) == (400, "invalid_request")
    assert "not an encoded name" in text
    assert await good(mesh)


async def good(mesh: Mesh) -> bool:
    return bool(json.loads((await mesh.ask(SIMPLE, GOOD)).data)["outputs"][0]["data"] == TWOS)


async def test_an_error_says_what_http_says(mesh: Mesh) -> None:
    wrong = json.dumps(good_json(outputs=[{"name": "OUTPUT9"}])).encode()
    status, code, text = error(await mesh.ask(SIMPLE, wrong))
    over_http = await mesh.router.infer("simple", good_json(outputs=[{"name": "OUTPUT9"}]))
    assert (status, code, text) == (over_http.status, over_http.headers["mesh-error"], over_http.error)


@pytest.mark.parametrize(
    "headers",
    [
        {"Mesh-Deadline-Ms": "nan"},
        {"Mesh-Deadline-Ms": "soon"},
        {"Mesh-Deadline-Ms": ""},
        {"Mesh-Hops": "1e3"},
        {"Mesh-Hops": "9" * 5000},
    ],
)
async def test_hop_headers_that_are_no_numbers(mesh: Mesh, headers: dict[str, str]) -> None:
    status, code, text = error(await mesh.ask(NODE, GOOD, headers | {"Mesh-Model": "simple"}))
    assert (status, code) == (400, "invalid_request")
    assert "not a number" in text
    assert await good(mesh)


@pytest.mark.parametrize("value", ["-1", "0", "-inf", "-1e400"])
async def test_a_deadline_that_has_passed(mesh: Mesh, value: str) -> None:
    answer = await mesh.ask(NODE, GOOD, {"Mesh-Deadline-Ms": value, "Mesh-Model": "simple"})
    assert error(answer)[:2] == (504, "deadline_exceeded")


async def test_an_applications_hop_headers_mean_nothing(mesh: Mesh) -> None:
    ignored = {"Mesh-Deadline-Ms": "0", "Mesh-Hops": "9", "Mesh-Visited": "edge-1", "Mesh-Model-Digest": "ab" * 32}
    answer = await mesh.ask(SIMPLE, GOOD, ignored)
    assert json.loads(answer.data)["outputs"][0]["data"] == TWOS
    assert "mesh-load" not in lower(answer)


async def test_an_answer_that_is_too_large_says_so(mesh: Mesh) -> None:
    def zeros(count: int) -> bytes:
        ask: dict[str, Any] = {"inputs": [json_input("N", shape=[2], datatype="INT64", data=[1, count])]}
        return json.dumps(ask | {"parameters": {"binary_data_output": True}}).encode()

    subject = subjects.model_infer("zeros")
    status, code, text = error(await mesh.ask(subject, zeros(MAX_PAYLOAD)))
    assert (status, code) == (413, "payload_too_large")
    assert str(MAX_PAYLOAD) in text
    status, code, text = error(await mesh.ask(NODE, zeros(MAX_PAYLOAD), {"Mesh-Model": "zeros"}))
    assert (status, code) == (413, "payload_too_large")
    assert len((await mesh.ask(subject, zeros(1000))).data) > 4000


async def test_who_does_not_listen_for_an_answer_is_not_served(mesh: Mesh) -> None:
    """Its request is not even looked at: the node has admitted nothing when the next one is answered."""
    heard: list[str] = []
    listener = await mesh.client.subscribe(">", cb=_note(heard))
    for _ in range(5):
        await mesh.client.publish(SIMPLE, GOOD)
        await mesh.client.publish(NODE, GOOD, headers={"Mesh-Model": "simple"})
    assert await good(mesh)
    await mesh.client.flush()
    await listener.unsubscribe()
    assert heard.count(SIMPLE) == 6
    assert sum(subject.startswith("_INBOX") for subject in heard) == 1


def _note(heard: list[str]) -> Any:
    async def note(message: Msg) -> None:
        heard.append(message.subject)

    return note


async def test_an_answer_that_cannot_be_delivered_harms_nobody(mesh: Mesh) -> None:
    for reply in ("nobody.listens", "mesh.*", ">"):
        await mesh.client.publish(SIMPLE, GOOD, reply=reply)
        await mesh.client.publish(NODE, b"", reply=reply, headers={"Mesh-Model": "simple"})
    assert await good(mesh)


async def test_two_routers_answer_each_request_once(mesh: Mesh) -> None:
    inbox = mesh.client.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()

    async def keep(message: Msg) -> None:
        answers.put_nowait(message)

    async with doors.router(mesh.server.url, node={"name": "router-2"}) as second:
        await doors.until_served(second, "simple")
        await mesh.client.subscribe(inbox, cb=keep)
        for number in range(40):
            await mesh.client.publish(SIMPLE, json.dumps(good_json(id=str(number))).encode(), reply=inbox)
        ids = [json.loads((await soon(answers.get())).data)["id"] for _ in range(40)]
        assert sorted(map(int, ids)) == list(range(40))
        assert await good(mesh)
        assert answers.empty()


async def test_when_the_last_router_has_left_nobody_answers(mesh: Mesh, tmp_path: Path) -> None:
    async with NatsServer() as server, plain_client(server) as client:
        async with doors.router(server.url) as router:
            with pytest.raises(nats.errors.NoRespondersError):
                await client.request("mesh.v1.infer", b"", timeout=PATIENCE_S)

            async def answered() -> bool:
                with contextlib.suppress(nats.errors.NoRespondersError):
                    await client.request(SIMPLE, GOOD, timeout=PATIENCE_S)
                    return True
                return False

            await doors.until(answered)
            assert (await router.get("/v2/health/ready")).status == 200
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request(SIMPLE, GOOD, timeout=PATIENCE_S)


async def test_a_router_that_has_just_come_knows_the_models_of_the_mesh(mesh: Mesh, tmp_path: Path) -> None:
    """It takes requests before it has heard any node."""
    for number in range(3):
        async with doors.router(mesh.server.url, node={"name": f"late-{number}"}) as late:
            await doors.until(partial(_on_bus, late))
            for headers in ({"Mesh-Version": "1"}, {"Mesh-Op": "metadata"}):
                answers = await asyncio.gather(*(mesh.ask(SIMPLE, GOOD, headers) for _ in range(20)))
                assert [(a.headers or {}).get("Nats-Service-Error") for a in answers] == [None] * 20


async def _on_bus(door: Door) -> bool:
    return "mesh_bus_connected 1.0" in (await door.get("/metrics")).body.decode()
