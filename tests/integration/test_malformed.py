"""Every malformed request of ``tests.malformed`` at every door: a 4xx that says what is wrong, and no more happens.

The doors are an agent's, a router's in front of it, and the bus. Not here: HTTP that is malformed itself
(``test_http_wire``), the codec alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest

from mesh import subjects
from mesh.bus import Bus
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import Connection, Door
from tests.malformed import HEADER, MALFORMED, PATH, Malformed, binary_input, good_json, joined
from tests.nats import PATIENCE_S, connected_bus

Ask = Callable[[Malformed], Awaitable[tuple[int, str]]]
"""Sends a request; status and text of its error, or 200 and the first output."""

SUMS = "[2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]"
GOOD = [
    Malformed("good json", json.dumps(good_json()).encode()),
    Malformed("good binary", *joined({"inputs": [binary_input(), binary_input("INPUT1")]}, b"\1\0\0\0" * 32)),
]
MIB = 1 << 20


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Door]:
    async with doors.agent(doors.repository(tmp_path, {"simple": onnx_models.simple()})) as door:
        yield door


@pytest.fixture
async def bus_and_router(tmp_path: Path) -> AsyncIterator[tuple[Bus, Door]]:
    models = doors.repository(tmp_path, {"simple": onnx_models.simple()})
    async with (
        NatsServer() as server,
        doors.router(server.url) as router,
        doors.agent(models, nats=server.url),
        connected_bus(server) as bus,
    ):
        await doors.until_served(router, "simple")
        yield bus, router


def over_http(connection: Connection) -> Ask:
    async def ask(sent: Malformed) -> tuple[int, str]:
        answer = await connection.request("POST", sent.path or PATH, sent.body, sent.headers)
        if answer.status == 200:
            return 200, str(answer.output("OUTPUT0").tolist())
        assert answer.headers.get("connection") != "close"
        return answer.status, answer.error

    return ask


def over_bus(bus: Bus, subject: Callable[[str], str]) -> Ask:
    """``subject`` makes the subject of a model's name; hop headers name it too, for a node's own subject."""

    async def ask(sent: Malformed) -> tuple[int, str]:
        _, _, _, model, *rest = (sent.path or PATH).split("/")
        headers = {"Mesh-Model": unquote(model), "Mesh-Version": rest[1] if rest[0] == "versions" else ""}
        answer = await bus.request(subject(unquote(model)), sent.body, sent.headers | headers, timeout_s=PATIENCE_S)
        if "Nats-Service-Error-Code" not in answer.headers:
            return 200, str(json.loads(answer.payload)["outputs"][0]["data"])
        assert answer.payload == b""
        return int(answer.headers["Nats-Service-Error-Code"]), answer.headers["Nats-Service-Error"]

    return ask


async def wrong_answers(ask: Ask) -> list[str]:
    """Each malformed request in turn, a good one behind each; what was not answered as it should be."""
    wrong = []
    for number, sent in enumerate(MALFORMED):
        status, text = await ask(sent)
        if status not in sent.status or sent.text not in text or not text:
            wrong.append(f"{sent.name}: {status} {text}, expected {sorted(sent.status)} {sent.text!r}")
        good = GOOD[number % len(GOOD)]
        if (answer := await ask(good)) != (200, SUMS):
            wrong.append(f"{good.name} after {sent.name}: {answer}")
    return wrong


def test_there_are_enough_kinds() -> None:
    assert len({sent.name for sent in MALFORMED}) == len(MALFORMED) >= 50
    assert all(400 <= status <= 501 and status != 500 for sent in MALFORMED for status in sent.status)


async def test_at_an_agents_http_door(agent: Door) -> None:
    async with agent.connect() as connection:
        assert await wrong_answers(over_http(connection)) == []


async def test_at_a_routers_http_door(bus_and_router: tuple[Bus, Door]) -> None:
    _, router = bus_and_router
    async with router.connect() as connection:
        assert await wrong_answers(over_http(connection)) == []


async def test_from_an_application_on_the_bus(bus_and_router: tuple[Bus, Door]) -> None:
    bus, _ = bus_and_router
    assert await wrong_answers(over_bus(bus, subjects.model_infer)) == []


async def test_on_a_nodes_own_subject(bus_and_router: tuple[Bus, Door]) -> None:
    bus, _ = bus_and_router
    assert await wrong_answers(over_bus(bus, lambda _: subjects.infer("default", "edge-1"))) == []


async def test_truncated_bodies_leave_the_door_open_for_others(agent: Door) -> None:
    """A body that ends before its Content-Length ends its connection too; there is nobody to answer."""
    body, headers = joined({"inputs": [binary_input(), binary_input("INPUT1")]}, bytes(128))
    whole = doors.request("POST", PATH, body, headers)
    for cut in (1, 64, 128, 129, len(body) - 1, len(body)):
        async with agent.connect() as connection:
            await connection.send(whole[:-cut])
            connection.finish()
            assert await connection.closed()
        async with agent.connect() as connection:
            assert await over_http(connection)(GOOD[1]) == (200, SUMS)


async def test_all_at_once_and_good_ones_between(agent: Door) -> None:
    async def one(sent: Malformed) -> tuple[int, str]:
        async with agent.connect() as connection:
            return await over_http(connection)(sent)

    mixed = [sent for malformed in MALFORMED for sent in (malformed, GOOD[0])]
    for start in range(0, len(mixed), 64):
        batch = mixed[start : start + 64]
        answers = await asyncio.gather(*map(one, batch))
        for sent, (status, text) in zip(batch, answers, strict=True):
            assert (status, text) == (200, SUMS) if sent is GOOD[0] else status in sent.status, sent.name


async def test_nothing_grows(agent: Door) -> None:
    """Memory, files and tasks of the agent, which is this process, are as before."""
    process = psutil.Process()

    async def round_of_all() -> tuple[int, int, int]:
        async with agent.connect() as connection:
            ask = over_http(connection)
            for sent in MALFORMED:
                await ask(sent)
            return process.memory_info().rss, process.num_fds(), len(asyncio.all_tasks())

    for _ in range(2):  # caches fill
        memory, files, tasks = await round_of_all()
    for _ in range(3):
        memory_now, files_now, tasks_now = await round_of_all()
    assert (files_now, tasks_now) == (files, tasks)
    assert memory_now - memory < 8 * MIB


async def test_a_claim_of_a_billion_elements_costs_nothing(agent: Door) -> None:
    claims = [s for s in MALFORMED if "billion" in s.name or "gigabyte" in s.name or "overflow" in s.name]
    assert len(claims) >= 4
    process = psutil.Process()
    async with agent.connect() as connection:
        ask = over_http(connection)
        await ask(GOOD[0])
        before = process.memory_info().rss
        for sent in claims * 10:
            assert (await ask(sent))[0] in sent.status
        assert process.memory_info().rss - before < 8 * MIB


@pytest.mark.parametrize(
    "value", ["", "abc", "-1", "1e3", "9" * 30, "0x20", "5, 5", "\xb2", "\u0663".encode().decode("latin-1")]
)
async def test_a_header_length_that_is_no_count(agent: Door, value: str) -> None:
    async with agent.connect() as connection:
        ask = over_http(connection)
        status, text = await ask(Malformed("", GOOD[1].body, {HEADER: value}))
        assert status == 400
        assert HEADER in text
        assert "b'" not in text
        assert await ask(GOOD[1]) == (200, SUMS)
