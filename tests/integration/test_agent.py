"""A whole agent in this process, asked at its real door: readiness, failures by name, crashes, drain, its report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge.agent import Agent
from edge.settings import EdgeSettings
from mesh.client import Client
from mesh.errors import ConfigError, DeadlineExceeded, MeshError, ModelNotReady, Unavailable
from mesh.node_id import NodeIdentity
from tests import onnx_models
from tests.contract.tensors import ENDLESS
from tests.fakes import until
from tests.integration.doors import Door, repository
from tests.nats import soon

X = np.ones((1, 16), dtype=np.float32)
FOREVER = {"N": np.array(ENDLESS, dtype=np.int64)}
SHORT = {"N": np.array(3, dtype=np.int64)}


class Served:
    """An agent, its door, and a client of it."""

    def __init__(self, agent: Agent, address: str, client: Client) -> None:
        self.agent = agent
        self.door = Door(address)
        self.client = client

    async def states(self) -> dict[str, str]:
        report = (await self.door.get("/mesh/v1/report")).json()
        return {m["name"]: m["state"] for m in report["models"]}

    async def until_running(self, model: str) -> None:
        await self.door.until_in_flight(model, 1)


@contextlib.asynccontextmanager
async def serving(folder: Path, *, grace_s: float = 1.0, **models: Any) -> AsyncIterator[Served]:
    settings = EdgeSettings.model_validate(
        {
            "node": {"name": "edge-1"},
            "http": {"listen": "127.0.0.1:0", "grace_s": grace_s},
            "discovery": {"enabled": False},
            "models": {"dir": folder, **models},
        }
    )
    agent = Agent(settings, NodeIdentity(uuid.uuid4().hex, 7))
    async with agent.running() as address, Client(address, deadline_ms=60_000) as client:
        yield Served(agent, address, client)


async def test_the_door_answers_before_the_models_are_ready_and_says_so(tmp_path: Path) -> None:
    slow = "[warmup]\nN = { shape = [], value = 700000 }\n"  # a second or more
    folder = repository(tmp_path, {"loop": onnx_models.loop()}, {"loop": slow})
    async with serving(folder, isolation="device") as served:
        early = await served.door.get("/v2/health/ready")
        assert (await served.door.get("/v2/health/live")).status == 200
        with pytest.raises(ModelNotReady):
            await served.client.infer("loop", SHORT)
        await soon(served.agent.until_ready())
        assert early.status == 503
        assert (await served.door.get("/v2/health/ready")).status == 200
        assert (await served.door.get("/v2/models/loop/ready")).status == 200
        assert served.agent.failed() == []


async def test_what_failed_is_named_and_keeps_nothing_else_from_being_ready(tmp_path: Path) -> None:
    models = {"good": onnx_models.add(), "garbage": b"\x00garbage", "loop": onnx_models.loop()}
    folder = repository(tmp_path, models, {"loop": "versions = [2]"})
    async with serving(folder, isolation="device") as served:
        await soon(served.agent.until_ready())
        assert (await served.door.get("/v2/health/ready")).status == 200
        assert await served.states() == {"garbage": "FAILED", "good": "READY", "loop": "FAILED"}
        assert [text.split(":")[0] for text in served.agent.failed()] == ["garbage/1", "loop/1"]
        assert "declares version 2" in served.agent.failed()[1]
        for model in ("garbage", "loop"):
            assert (await served.door.get(f"/v2/models/{model}/ready")).status == 503
            with pytest.raises(ModelNotReady, match="FAILED on this node"):
                await served.client.infer(model, {"X": X})
            with pytest.raises(Unavailable):
                await served.client.metadata(model)
        assert (await served.client.infer("good", {"X": X})).node == "edge-1"


async def test_a_crash_is_retryable_comes_back_and_ends_in_quarantine(tmp_path: Path) -> None:
    models = {"loop": onnx_models.loop(), "add": onnx_models.add()}
    async with serving(repository(tmp_path, models), isolation="model", crash_limit=2) as served:
        await soon(served.agent.until_ready())
        for _ in range(2):
            assert (await served.client.infer("loop", SHORT))["Y"] == 3
            running = asyncio.ensure_future(served.client.infer("loop", FOREVER))
            await served.until_running("loop")
            await _kill_the_busy_worker()
            with pytest.raises(Unavailable):
                await soon(running)
            assert (await served.client.infer("add", {"X": X}))["Y"][0, 0] == 2.0
            await soon(served.agent.until_ready())
        assert await served.states() == {"add": "READY", "loop": "QUARANTINED"}
        with pytest.raises(MeshError, match="QUARANTINED"):
            await served.client.infer("loop", SHORT)


async def _kill_the_busy_worker() -> None:
    """The one that burns the CPU; the other one sleeps."""

    def busiest() -> psutil.Process:
        return max(psutil.Process().children(), key=lambda child: child.cpu_times().user)

    before = {child.pid: child.cpu_times().user for child in psutil.Process().children()}
    await until(lambda: any(c.cpu_times().user > before[c.pid] + 0.1 for c in psutil.Process().children()))
    pid = max(psutil.Process().children(), key=lambda c: c.cpu_times().user - before[c.pid]).pid
    os.kill(pid, signal.SIGKILL)


async def test_a_hang_costs_its_caller_the_deadline_and_nobody_else_the_model(tmp_path: Path) -> None:
    folder = repository(tmp_path, {"loop": onnx_models.loop()})
    async with serving(folder, isolation="device", hang_s=0.1) as served:
        await soon(served.agent.until_ready())
        with pytest.raises(DeadlineExceeded):
            await served.client.infer("loop", FOREVER, deadline_ms=200)

        async def served_again() -> None:
            while True:
                with contextlib.suppress(Unavailable):
                    assert (await served.client.infer("loop", SHORT))["Y"] == 3
                    return
                await asyncio.sleep(0.05)

        await soon(served_again())


async def test_a_drain_finishes_what_is_in_flight(tmp_path: Path) -> None:
    folder = repository(tmp_path, {"loop": onnx_models.loop()})
    rounds = {"N": np.array(2_000_000, dtype=np.int64)}
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(folder, grace_s=60.0, isolation="device"))
        await soon(served.agent.until_ready())
        running = asyncio.ensure_future(served.door.infer("loop", _json_request(int(rounds["N"]))))
        await served.until_running("loop")
        await stack.aclose()
        answer = await soon(running)
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == [2_000_000]


def _json_request(rounds: int) -> dict[str, Any]:
    return {"inputs": [{"name": "N", "datatype": "INT64", "shape": [], "data": [rounds]}]}


async def test_the_report_says_who_what_and_how_busy(tmp_path: Path) -> None:
    folder = repository(tmp_path, {"loop": onnx_models.loop()}, {"loop": "deadline_ms = 60000"})
    async with serving(folder, isolation="device", hang_s=0.1) as served:
        await soon(served.agent.until_ready())
        first = (await served.door.get("/mesh/v1/report")).json()
        assert (first["node"], first["site"], first["tier"], first["incarnation"]) == ("edge-1", "default", "edge", 7)
        assert first["http"] == served.door.address
        assert "hop_key" not in first
        (model,) = first["models"]
        assert (model["state"], model["deadline_ms"], len(model["digest"])) == ("READY", 60000.0, 64)
        running = asyncio.ensure_future(served.client.infer("loop", FOREVER, deadline_ms=500))
        await served.until_running("loop")
        with pytest.raises(DeadlineExceeded):
            await soon(running)
        second = (await served.door.get("/mesh/v1/report")).json()
        assert second["seq"] > first["seq"]
        assert "in_flight" not in second["models"][0]


async def test_the_models_own_deadline_counts_where_the_request_names_none(tmp_path: Path) -> None:
    folder = repository(tmp_path, {"loop": onnx_models.loop()}, {"loop": "deadline_ms = 100"})
    async with serving(folder, isolation="device", hang_s=0.1) as served:
        await soon(served.agent.until_ready())
        answer = await served.door.infer("loop", _json_request(ENDLESS))
        assert answer.status == 504
        assert "deadline" in answer.error


async def test_a_repository_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        async with serving(tmp_path / "none"):
            pass


async def test_an_empty_repository_is_an_agent_that_is_ready(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await soon(served.agent.until_ready())
        assert (await served.door.get("/v2/health/ready")).status == 200
        assert await served.client.models() == []
