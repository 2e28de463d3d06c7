"""Triton's ``model_repository`` extension at a real agent's door, asked by Triton's own client and by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton

from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration.doors import Door, agent, repository, router, until
from tests.nats import soon

EXPLICIT = {"control": "explicit"}
KEYED = {"key": "a key of the whole site"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return repository(tmp_path, {"a": onnx_models.add(), "b": onnx_models.add()})


async def by_triton(door: Door, ask: Callable[[Any], Any]) -> Any:
    """What Triton's blocking client says."""

    def call() -> Any:
        with triton.InferenceServerClient(door.address, network_timeout=60.0) as client:
            return ask(client)

    return await soon(asyncio.to_thread(call))


async def post(door: Door, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    async with door.connect() as connection:
        answer = await connection.request("POST", path, body, headers)
    return answer.status, answer.json() if answer.body else None


async def test_tritons_client_loads_and_unloads(models: Path) -> None:
    async with agent(models, models=EXPLICIT) as door:
        assert "model_repository" in (await by_triton(door, lambda c: c.get_server_metadata()))["extensions"]
        await by_triton(door, lambda c: c.load_model("a"))
        assert await by_triton(door, lambda c: c.is_model_ready("a"))
        index = await by_triton(door, lambda c: c.get_model_repository_index())
        assert index == [
            {"name": "a", "version": "1", "state": "READY"},
            {"name": "b", "state": "UNAVAILABLE", "reason": "it is not loaded"},
        ]
        await by_triton(door, lambda c: c.unload_model("a"))
        with pytest.raises(triton.InferenceServerException, match="not found"):
            await by_triton(door, lambda c: c.is_model_ready("a") or c.get_model_metadata("a"))
        with pytest.raises(triton.InferenceServerException, match="there is no model 'zebra'"):
            await by_triton(door, lambda c: c.load_model("zebra"))


async def test_the_index_can_be_asked_for_what_is_ready_alone(models: Path) -> None:
    async with agent(models, models=EXPLICIT) as door:
        assert await post(door, "/v2/repository/index", b'{"ready": true}') == (200, [])
        status, entries = await post(door, "/v2/repository/index")
        assert (status, [e["name"] for e in entries]) == (200, ["a", "b"])


async def test_what_cannot_be_done_is_said(models: Path) -> None:
    (models / "b" / "1" / "model.onnx").write_bytes(b"garbage")
    async with agent(models, models=EXPLICIT) as door:
        load = "/v2/repository/models/b/load"
        status, document = await post(door, load)
        assert (status, "cannot be served" in document["error"]) == (422, True)
        status, document = await post(door, load, b'{"parameters": {"colour": "red"}}')
        assert (status, "parameter 'colour' is not taken" in document["error"]) == (500, True)
        status, document = await post(door, load, b'{"parameters": {"file:1/model.onnx": "AAAA"}}')
        assert (status, "failed to poll from model repository" in document["error"]) == (500, True)
        assert (await post(door, load, b'{"parameters": 1}'))[0] == 400
        assert (await post(door, load, b"[1]"))[0] == 400
        assert (await post(door, load, b"{"))[0] == 400
        assert (await post(door, "/v2/repository/models/a/unload"))[0] == 404
        assert (await door.get("/v2/repository/index")).status == 405


async def test_a_web_page_cannot_unload_models_through_the_browser(models: Path) -> None:
    async with agent(models) as door:
        status, document = await post(door, "/v2/repository/models/a/unload", Origin="http://127.0.0.1")
        assert (status, document["error"]) == (501, "models are not loaded and unloaded from web pages")
        assert (await door.get("/v2/models/a/ready")).status == 200


@pytest.mark.parametrize(("opened", "status"), [(False, 501), (True, 200)])
async def test_a_door_that_others_reach_must_be_told_to_allow_it(models: Path, opened: bool, status: int) -> None:
    http = {"listen": "0.0.0.0:0", "advertise": "none", "repository": opened}
    async with agent(models, http=http) as bound:
        door = Door(bound.address.replace("0.0.0.0", "127.0.0.1"))
        assert (await post(door, "/v2/repository/models/a/unload"))[0] == status
        assert (await post(door, "/v2/repository/index"))[0] == 200
        extensions = (await door.get("/v2")).json()["extensions"]
        assert ("model_repository" in extensions) == opened


def load_with(config: str, client: Any) -> None:
    client.load_model("simple", config=config)


async def max_batch(door: Door) -> int:
    return int((await by_triton(door, lambda c: c.get_model_config("simple")))["max_batch_size"])


async def test_a_configuration_comes_with_the_request(tmp_path: Path) -> None:
    models = repository(tmp_path, {"simple": onnx_models.simple()}, {"simple": "[batching]\nmax_rows = 8\n"})
    async with agent(models) as door:
        assert await max_batch(door) == 8
        for wrong in ('"parameters": {{}', "[]", '{"max_batch_size": "many"}', '{"name": "other"}', "[" * 5000):
            with pytest.raises(triton.InferenceServerException, match="failed to load 'simple'"):
                await by_triton(door, partial(load_with, wrong))
            assert (await door.get("/v2/models/simple/ready")).status == 200
        taken = '{"max_batch_size": "16", "instance_group": null}'
        await by_triton(door, lambda c: c.load_model("simple", config=taken))
        assert await max_batch(door) == 16
        await by_triton(door, lambda c: c.load_model("simple"))
        assert await max_batch(door) == 8


@dataclass(frozen=True)
class Fleet:
    """Nodes one (model a) and two (models a and b, reached over the bus only), behind a router."""

    router: Door
    one: Door
    two: Door


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    one = repository(tmp_path / "one", {"a": onnx_models.add()})
    two = repository(tmp_path / "two", {"a": onnx_models.add(), "b": onnx_models.add()})
    hidden = {"listen": "127.0.0.1:0", "advertise": "none", "grace_s": 1}
    async with (
        NatsServer() as server,
        router(server.url, site=KEYED) as door,
        agent(one, nats=server.url, site=KEYED, node={"name": "one"}) as first,
        agent(two, nats=server.url, site=KEYED, node={"name": "two"}, http=hidden, models=EXPLICIT) as second,
    ):
        await until(lambda: index_has(door, ("a", "1", "READY"), ("b", "", "UNAVAILABLE")))
        yield Fleet(door, first, second)


async def index_has(door: Door, *wanted: tuple[str, str, str]) -> bool:
    status, entries = await post(door, "/v2/repository/index")
    found = {(e["name"], e.get("version", ""), e["state"]) for e in entries} if status == 200 else set()
    return found == set(wanted)


async def loaded(door: Door) -> set[str]:
    status, entries = await post(door, "/v2/repository/index", b'{"ready": true}')
    assert status == 200
    return {e["name"] for e in entries}


async def test_the_router_loads_on_every_node_that_has_the_model(fleet: Fleet) -> None:
    assert (await loaded(fleet.one), await loaded(fleet.two)) == ({"a"}, set())
    await by_triton(fleet.router, lambda c: c.load_model("a"))
    await by_triton(fleet.router, lambda c: c.load_model("b"))
    assert (await loaded(fleet.one), await loaded(fleet.two)) == ({"a"}, {"a", "b"})
    assert await by_triton(fleet.router, lambda c: c.is_model_ready("b"))
    index = await by_triton(fleet.router, lambda c: c.get_model_repository_index())
    assert index == [{"name": name, "version": "1", "state": "READY"} for name in ("a", "b")]
    await by_triton(fleet.router, lambda c: c.unload_model("a"))
    assert (await loaded(fleet.one), await loaded(fleet.two)) == (set(), {"b"})
    assert not await by_triton(fleet.router, lambda c: c.is_model_ready("a"))


async def test_what_the_fleet_cannot_do_names_the_node(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(triton.InferenceServerException, match="failed to load 'zebra'"):
        await by_triton(fleet.router, lambda c: c.load_model("zebra"))
    with pytest.raises(triton.InferenceServerException, match="node two: failed to load 'b': the config of model 'b'"):
        await by_triton(fleet.router, lambda c: c.load_model("b", config="{"))
    (tmp_path / "two" / "b" / "1" / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(triton.InferenceServerException, match="node two: model b/1 cannot be served"):
        await by_triton(fleet.router, lambda c: c.load_model("b"))
    status, document = await post(fleet.router, "/v2/repository/models/zebra/unload")
    assert (status, "'zebra'" in document["error"]) == (404, True)
