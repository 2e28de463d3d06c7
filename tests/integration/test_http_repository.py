"""Triton's ``model_repository`` extension at a real agent's door, asked by Triton's own client and by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton

from tests import onnx_models
from tests.integration.doors import Door, agent, repository, router
from tests.nats import soon

EXPLICIT = {"control": "explicit"}


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
        status, document = await post(door, load, b'{"parameters": {"config": "{}"}}')
        assert (status, "parameters are not taken" in document["error"]) == (501, True)
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


async def test_a_router_has_no_repository() -> None:
    async with router("") as door:
        status, document = await post(door, "/v2/repository/index")
        assert (status, document["error"]) == (501, "this node has no model repository; ask an agent")
