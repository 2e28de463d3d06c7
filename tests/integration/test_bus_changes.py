"""Loading and unloading over the bus: who may publish on a node's ``.control`` is not for that reason one who may.

Every node, server and client is real. Not here: routers that change a whole fleet (``test_http_repository``).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mesh import bus_changes, hop, subjects
from mesh.deadline import Deadline
from mesh.errors import Unavailable, Unsupported
from mesh.hop import Target
from mesh.hop_bus import BusHop, ask
from mesh.nats_bus import NatsBus
from mesh.nats_server import NatsServer
from mesh.trust import Trust
from mesh.values import ModelRef
from tests import onnx_models
from tests.integration.doors import Door, agent, repository, until
from tests.nats import connected_bus

KEY = "a key of the whole site"
CONTROL = subjects.control("default", "edge-1")
HERE = Target("edge-1", "default", "peer")
UNLOAD = {hop.OP: "unload", hop.MODEL: "add"}


def member(key: str = KEY, mesh: str = "default") -> Trust:
    return Trust(mesh, "router-1", 1, key.encode())


@dataclass(frozen=True)
class Place:
    """A node and a client of its bus; the node's door is asked what is loaded."""

    door: Door
    bus: NatsBus

    async def loaded(self) -> bool:
        return (await self.door.get("/v2/models/add/ready")).status == 200

    async def say(self, headers: Mapping[str, str], body: bytes = b"") -> Mapping[str, str]:
        return (await ask(self.bus, CONTROL, body, headers, Deadline.after_ms(60_000))).headers

    async def challenge(self) -> str:
        return {k.lower(): v for k, v in (await self.say({hop.OP: bus_changes.ASK})).items()}[hop.CHALLENGE]

    async def change(self, trust: Trust | None, what: hop.Question, body: bytes = b"") -> None:
        asking = BusHop(self.bus, "router-1", trust=trust)
        await asking.ask(HERE, what, ModelRef("add"), Deadline.after_ms(60_000), body)


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return repository(tmp_path / "models", {"add": onnx_models.add()})


@pytest.fixture
async def place(server: NatsServer, models: Path) -> AsyncIterator[Place]:
    async with agent(models, nats=server.url, site={"key": KEY}) as door, connected_bus(server) as bus:
        place = Place(door, bus)
        await until(partial(on_bus, place))
        yield place


async def on_bus(place: Place) -> bool:
    return "mesh_bus_connected 1.0" in (await place.door.get("/metrics")).body.decode()


async def test_a_stranger_changes_nothing(place: Place) -> None:
    challenge = await place.challenge()
    strangers = [None, member("another key, a strangers"), member(mesh="other")]
    for trust in strangers:
        with pytest.raises(Unsupported, match="proves the node's site key"):
            await place.change(trust, "unload")
        with pytest.raises(Unsupported):
            await place.change(trust, "load", b'{"parameters": {"config": "{}"}}')
    for headers in (
        {},
        {hop.PROOF_SITE: ""},
        {hop.PROOF_SITE: "é"},
        {hop.TOKEN: str(member().token_for("edge-1", 1, None))},
    ):
        with pytest.raises(Unsupported):
            await place.say(UNLOAD | {hop.CHALLENGE: challenge} | headers)
    assert await place.loaded()


async def test_a_member_of_the_site_does(place: Place) -> None:
    await place.change(member(), "unload")
    assert not await place.loaded()
    await place.change(member(), "load", json.dumps({"parameters": {}}).encode())
    assert await place.loaded()


async def test_what_was_heard_on_the_bus_cannot_be_said_again_or_changed(place: Place) -> None:
    body = b"{}"
    heard = bus_changes.proof(member(), "edge-1", await place.challenge(), "unload", "add", body)
    for other, said in (("load", "add"), ("unload", "other")):
        with pytest.raises(Unsupported):
            await place.say({hop.OP: other, hop.MODEL: said} | heard, body)
    with pytest.raises(Unsupported):
        await place.say(UNLOAD | heard, b'{"parameters": {}}')
    assert await place.loaded()
    await place.say(UNLOAD | heard, body)
    await place.change(member(), "load")
    with pytest.raises(Unavailable, match="ask again"):
        await place.say(UNLOAD | heard, body)
    elsewhere = bus_changes.proof(member(), "edge-2", await place.challenge(), "unload", "add", body)
    with pytest.raises(Unsupported):
        await place.say(UNLOAD | elsewhere, body)
    assert await place.loaded()


async def test_nor_in_the_next_life_of_the_node(server: NatsServer, models: Path) -> None:
    heard: dict[str, str] = {}
    for life in range(2):
        async with agent(models, nats=server.url, site={"key": KEY}) as door, connected_bus(server) as bus:
            place = Place(door, bus)
            await until(partial(on_bus, place))
            if life == 0:
                heard = bus_changes.proof(member(), "edge-1", await place.challenge(), "unload", "add", b"")
            else:
                with pytest.raises(Unavailable):
                    await place.say(UNLOAD | heard)
                assert await place.loaded()


async def test_after_many_changes_an_old_proof_is_still_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_changes, "MOST", 2)
    heard = bus_changes.proof(member(), "edge-1", await place.challenge(), "unload", "add", b"")
    await place.say(UNLOAD | heard)
    for _ in range(3):
        await place.change(member(), "load")
    with pytest.raises(Unavailable):
        await place.say(UNLOAD | heard)
    assert await place.loaded()


@pytest.mark.parametrize("site", [{}, {"key": KEY}])
async def test_a_node_may_trust_its_bus(server: NatsServer, models: Path, site: dict[str, str]) -> None:
    nats = {"url": server.url, "repository": True}
    async with agent(models, nats=nats, site=site) as door, connected_bus(server) as bus:
        place = Place(door, bus)
        await until(partial(on_bus, place))
        await place.say(UNLOAD)
        assert not await place.loaded()
        await place.change(None, "load")
        await place.change(member(), "unload")
        assert not await place.loaded()


async def test_without_a_key_or_that_setting_nobody_does(server: NatsServer, models: Path) -> None:
    async with agent(models, nats=server.url) as door, connected_bus(server) as bus:
        place = Place(door, bus)
        await until(partial(on_bus, place))
        for trust in (None, member()):
            with pytest.raises(Unsupported):
                await place.change(trust, "unload")
        assert await place.loaded()
