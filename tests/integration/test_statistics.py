"""Triton's statistics and model configuration at real doors: counted in the agent, added up over the mesh.

Not here: adding up itself (``unit/test_statistics``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton

from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration.doors import Door, agent, repository, router, until, until_served
from tests.nats import soon

SIMPLE = {"simple": onnx_models.simple(), "other": onnx_models.add()}
BATCHED = {"simple": "[batching]\nmax_rows = 8\ndelay_ms = 1.5\n"}


async def by_triton(door: Door, ask: Callable[[Any], Any]) -> Any:
    """What Triton's blocking client says."""

    def call() -> Any:
        with triton.InferenceServerClient(door.address, network_timeout=60.0) as client:
            return ask(client)

    return await soon(asyncio.to_thread(call))


async def infer(door: Door, rows: int = 1, model: str = "simple") -> int:
    data = [1] * (16 * rows)
    inputs = [{"name": n, "datatype": "INT32", "shape": [rows, 16], "data": data} for n in ("INPUT0", "INPUT1")]
    return (await door.infer(model, {"inputs": inputs})).status


async def stats(door: Door, path: str = "/v2/models/simple/stats") -> list[dict[str, Any]]:
    answer = await door.get(path)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["model_stats"]
    return found


async def test_requests_runs_and_rows_are_counted(tmp_path: Path) -> None:
    async with agent(repository(tmp_path, SIMPLE, BATCHED)) as door:
        (before,) = await stats(door)
        assert (before["inference_count"], before["last_inference"]) == (0, 0)
        for rows in (1, 1, 4):
            assert await infer(door, rows) == 200
        assert (await door.infer("simple", {"inputs": [{"name": "X", "datatype": "INT32", "shape": [1], "data": [1]}]})
                ).status == 400  # fmt: skip
        (after,) = await stats(door)
        assert (after["name"], after["version"]) == ("simple", "1")
        assert (after["inference_count"], after["execution_count"]) == (6, 3)
        spent = after["inference_stats"]
        counts = {name: duration["count"] for name, duration in spent.items()}
        assert counts == {
            "success": 3, "fail": 1, "queue": 3, "compute_infer": 3,
            "compute_input": 0, "compute_output": 0, "cache_hit": 0, "cache_miss": 0,
        }  # fmt: skip
        assert 0 < spent["compute_infer"]["ns"] < spent["success"]["ns"]
        assert [(b["batch_size"], b["compute_infer"]["count"]) for b in after["batch_stats"]] == [(1, 2), (4, 1)]
        assert after["last_inference"] > 1_600_000_000_000
        assert [s["name"] for s in await stats(door, "/v2/models/stats")] == ["other", "simple"]
        assert await stats(door, "/v2/models/simple/versions/1/stats") == await stats(door)
        for path in ("/v2/models/simple/versions/2/stats", "/v2/models/zebra/stats"):
            assert (await door.get(path)).error.startswith("Request for unknown model")


@dataclass(frozen=True)
class Mesh:
    router: Door
    agents: tuple[Door, ...]
    without: Door
    """An agent that holds no models."""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """Two agents that hold the model, one of them reached over the bus only."""
    models = repository(tmp_path / "models", SIMPLE, BATCHED)
    hidden = {"listen": "127.0.0.1:0", "advertise": "none"}
    empty = tmp_path / "none"
    empty.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        url = (await stack.enter_async_context(NatsServer())).url
        door = await stack.enter_async_context(router(url))
        one = await stack.enter_async_context(agent(models, nats=url, node={"name": "one"}))
        two = await stack.enter_async_context(agent(models, nats=url, node={"name": "two"}, http=hidden))
        without = await stack.enter_async_context(agent(empty, nats=url, node={"name": "without"}))
        for asked in (door, without):
            await until_served(asked, "simple")
            await until(partial(_nodes, asked, 2))
        yield Mesh(door, (one, two), without)


async def _nodes(door: Door, count: int) -> bool:
    """Whether the door sees the model READY on so many nodes, and where they can be reached."""
    rows = (await door.get("/mesh/v1/nodes")).json()["nodes"]
    return sum(any(m["name"] == "simple" and m["state"] == "READY" for m in row["models"]) for row in rows) == count


async def test_the_mesh_adds_up_what_its_nodes_counted(mesh: Mesh) -> None:
    for door in (*mesh.agents, mesh.agents[0]):
        assert await infer(door) == 200
    for door in (mesh.router, mesh.without):
        (found,) = await stats(door)
        assert (found["inference_count"], found["inference_stats"]["success"]["count"]) == (3, 3)
        assert [s["name"] for s in await stats(door, "/v2/models/stats")] == ["other", "simple"]
        assert (await door.get("/v2/models/zebra/stats")).status == 404
    (own,) = await stats(mesh.agents[1])
    assert own["inference_count"] == 1
    by_client = await by_triton(mesh.router, lambda c: c.get_inference_statistics("simple", "1"))
    assert len(by_client["model_stats"]) == 1
    assert len((await by_triton(mesh.router, lambda c: c.get_inference_statistics()))["model_stats"]) == 2


async def test_the_configuration_is_that_of_a_holder(mesh: Mesh) -> None:
    for door in (*mesh.agents, mesh.router, mesh.without):
        config = await by_triton(door, lambda c: c.get_model_config("simple"))
        assert (config["name"], config["platform"], config["backend"]) == ("simple", "onnxruntime_onnx", "onnxruntime")
        assert config["max_batch_size"] == 8
        assert config["input"][0] == {"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [16]}
        assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 1500
        assert config["version_policy"] == {"latest": {"num_versions": 1}}
        assert config["instance_group"] == [{"name": "simple_0", "kind": "KIND_CPU", "count": 1}]
        assert config["model_transaction_policy"] == {"decoupled": False}
        alone = await by_triton(door, lambda c: c.get_model_config("other", "1"))
        assert alone["default_model_filename"] == "model.onnx"
        assert (await door.get("/v2/models/zebra/config")).status == 404
    assert {"statistics", "model_configuration"} <= set((await mesh.router.get("/v2")).json()["extensions"])


async def test_shapes_are_whole_where_requests_are_not_batched(tmp_path: Path) -> None:
    models = {"same": onnx_models.identity("BYTES", (2, 3))}
    async with agent(repository(tmp_path, models)) as door:
        config = (await door.get("/v2/models/same/config")).json()
        assert config["max_batch_size"] == 0
        assert config["input"][0]["data_type"] == "TYPE_STRING"
        assert config["input"][0]["dims"] == [2, 3]
        assert "dynamic_batching" not in config
