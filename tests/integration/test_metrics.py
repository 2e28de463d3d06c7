"""``GET /metrics`` of whole agents and a router at real doors: what moves when requests are made, and what not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import hardware.fakes
from edge import metrics as agent_side
from edge.metrics import agent_metrics
from hardware.backend import RawTensor
from mesh import node_metrics
from mesh.client import Client
from mesh.deadline import Deadline
from mesh.errors import InstanceLost, MeshError, ModelNotFound, ModelNotReady
from mesh.metrics import Snapshot
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.contract.tensors import ENDLESS
from tests.instances import Loaded
from tests.integration.doors import Door, agent, repository, router, until_served
from tests.nats import soon
from tests.scrape import Scrape

X = np.ones((1, 16), dtype=np.float32)
ADD = {"model": "add", "version": "1"}
M = {"model": "m", "version": "1"}
FOREVER = [RawTensor("N", "INT64", (), ENDLESS.to_bytes(8, "little"))]
LOST = {InstanceLost, ModelNotReady}
HERE = {"route": "local", "caller": "application"}


async def scraped(door: Door) -> Scrape:
    answer = await door.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.body.decode())


@contextlib.asynccontextmanager
async def client(door: Door) -> AsyncIterator[Client]:
    async with Client(door.address, deadline_ms=60_000) as asking:
        yield asking


async def test_an_agent_counts_what_its_door_and_its_device_do(tmp_path: Path) -> None:
    folder = repository(tmp_path, {"add": onnx_models.add(), "loop": onnx_models.loop()})
    async with agent(folder) as door, client(door) as asking:
        before = await scraped(door)
        assert before.get("mesh_requests_total", **ADD, **HERE, outcome="ok") is None
        for _ in range(3):
            await asking.infer("add", {"X": X})
        with pytest.raises(MeshError):
            await asking.infer("add", {"X": np.ones((1, 7), dtype=np.float32)})
        after = await scraped(door)
        assert after.get("mesh_requests_total", **ADD, **HERE, outcome="ok") == 3.0
        assert after.get("mesh_request_seconds_count", **ADD, **HERE) == 3.0
        failed = [s for s in after.series("mesh_requests_total") if s["outcome"] not in ("ok",)]
        assert failed == [{**ADD, "route": "", "caller": "application", "outcome": "invalid_request"}]
        assert (after.get("mesh_inferences_total", **ADD) or 0.0) - (
            before.get("mesh_inferences_total", **ADD) or 0.0
        ) == 3
        assert after.get("mesh_runs_total", **ADD, outcome="ok") == 3.0
        assert after.get("mesh_run_rows_sum", **ADD) == 3.0
        assert after.get("mesh_inferences_total", model="loop", version="1") == 0.0
        assert after.get("mesh_model_state", **ADD, state="READY") == 1.0
        assert (after.get("mesh_model_service_seconds", **ADD) or 0.0) > 0.0
        assert after.get("mesh_bus_connected") is None


async def test_every_metric_of_an_agent_is_declared_and_has_its_labels(tmp_path: Path) -> None:
    declared = {f.name: f for f in (*node_metrics.FAMILIES, *agent_side.FAMILIES)}
    folder = repository(tmp_path, {"add": onnx_models.add()})
    async with agent(folder) as door, client(door) as asking:
        await asking.infer("add", {"X": X})
        found = await scraped(door)
        assert (found.get("process_resident_memory_bytes") or 0.0) > 0.0
        ours = [family for family in found.families.values() if family.name.startswith("mesh_")]
        assert len(ours) > 25
        for family in ours:
            said = declared[family.name if family.type != "counter" else f"{family.name}_total"]
            assert (family.type, family.documentation) == (said.kind, said.text)
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == set(said.labels), sample.name


async def test_a_model_that_nobody_holds_adds_no_series(tmp_path: Path) -> None:
    async with agent(repository(tmp_path, {"add": onnx_models.add()})) as door, client(door) as asking:
        with pytest.raises(ModelNotFound):
            await asking.infer("nobody-1", {"X": X})
        before = await scraped(door)
        for number in range(20):
            with pytest.raises(ModelNotFound):
                await asking.infer(f"nobody-{number}", {"X": X})
            assert (await door.get(f"/v2/models/nobody-{number}/ready")).status == 404
        after = await scraped(door)
        assert after.values.keys() == before.values.keys()
        nobody = {"model": "", "version": "", "route": "", "caller": "application", "outcome": "model_not_found"}
        assert after.get("mesh_requests_total", **nobody) == 21.0


async def test_two_agents_in_one_process_do_not_mix(tmp_path: Path) -> None:
    one = repository(tmp_path / "one", {"add": onnx_models.add()})
    two = repository(tmp_path / "two", {"add": onnx_models.add()})
    async with agent(one, node={"name": "one"}) as first, agent(two, node={"name": "two"}) as second:
        async with client(first) as asking:
            await asking.infer("add", {"X": X})
        assert (await scraped(first)).get("mesh_inferences_total", **ADD) == 1.0
        found = await scraped(second)
        assert found.get("mesh_inferences_total", **ADD) == 0.0
        assert found.series("mesh_requests_total") == []
        assert [s["node"] for s in found.series("mesh_node_info")] == ["two"]


async def test_the_backend_that_runs_and_the_ones_that_could_not_be_had_show(tmp_path: Path) -> None:
    folder = repository(
        tmp_path,
        {"add": onnx_models.add(), "plain": onnx_models.add()},
        {"add": 'backends = ["onnxruntime-cuda", "onnxruntime-cpu"]'},
    )
    async with agent(folder, models={"isolation": "device"}) as door:
        found = await scraped(door)
        backend = {"requested": "onnxruntime-cuda", "effective": "onnxruntime-cpu"}
        assert found.get("mesh_model_backend_info", **ADD, **backend) == 1.0
        assert found.get("mesh_model_degraded", **ADD) == 1.0
        assert found.get("mesh_backend_failures_total", **ADD, backend="onnxruntime-cuda") == 1.0
        plain = {"model": "plain", "version": "1"}
        assert found.get("mesh_model_degraded", **plain) == 0.0
        assert [s["model"] for s in found.series("mesh_backend_failures_total")] == ["add"]


async def test_engine_builds_show_with_their_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(hardware.fakes.__file__).parent / "site"))
    (tmp_path / "state").mkdir()
    folder = repository(tmp_path / "models", {"m": onnx_models.simple()}, {"m": 'backends = ["tensorrt"]'})
    for outcome, seconds in (("built", True), ("cached", False)):
        async with Loaded(folder, parts={"folder": tmp_path / "state"}).running() as here:
            await here.until_state("m", "READY")
            found = await measured(here)
            assert found.get("mesh_engine_builds_total", **M, outcome=outcome) == 1.0
            assert [s["outcome"] for s in found.series("mesh_engine_builds_total")] == [outcome]
            assert (found.get("mesh_engine_build_seconds", **M) is not None) == seconds
            assert found.get("mesh_model_degraded", **M) == 0.0
            assert found.series("mesh_backend_failures_total") == []


async def test_an_engine_that_is_not_built_is_a_failure_of_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(hardware.fakes.__file__).parent / "site"))
    chain = 'backends = ["tensorrt", "onnxruntime-cpu"]'
    folder = repository(tmp_path / "models", {"m": onnx_models.simple()}, {"m": chain})
    async with Loaded(folder).running() as here:  # no folder to keep engines in
        await here.until_state("m", "READY")
        found = await measured(here)
        assert found.get("mesh_backend_failures_total", **M, backend="tensorrt") == 1.0
        assert found.get("mesh_model_degraded", **M) == 1.0


async def test_what_waits_and_what_takes_its_worker_down_shows(tmp_path: Path) -> None:
    slow = "[warmup]\nN = { shape = [], value = 20000 }\n"  # so that nothing is handed over in advance
    folder = repository(tmp_path, {"m": onnx_models.loop()}, {"m": slow})
    async with Loaded(folder, crash_limit=2, concurrency=1).running() as here:
        for deaths in (1, 2):
            served = (await here.until_state("m", "READY")).served
            asked = [
                asyncio.ensure_future(here.instances.executor.infer(served, FOREVER, (), Deadline.after_ms(60_000), 0))
                for _ in range(3)
            ]
            await here.until_running("m")
            assert (await measured(here)).get("mesh_queue_requests", **M) == 2.0
            here.kill("m")
            assert {type(e) for e in await soon(asyncio.gather(*asked, return_exceptions=True))} <= LOST
            await here.until_change(lambda: here.get("m").served.tally.worker_deaths == deaths)  # noqa: B023 - awaited
            assert (await measured(here)).get("mesh_worker_deaths_total", **M) == deaths
        await here.until_state("m", "QUARANTINED")
        found = await measured(here)
        assert found.get("mesh_quarantines_total", **M) == 1.0
        assert found.get("mesh_queue_requests", **M) == 0.0


async def measured(here: Loaded) -> Scrape:
    """What an agent adds, without an agent."""
    return Scrape((await asyncio.to_thread(Snapshot(agent_metrics(here.instances)).text)).decode())


async def test_counts_go_on_when_a_model_is_loaded_again(tmp_path: Path) -> None:
    async with agent(repository(tmp_path, {"add": onnx_models.add()})) as door, client(door) as asking:
        await asking.infer("add", {"X": X})
        async with door.connect() as connection:
            await connection.request("POST", "/v2/repository/models/add/unload", b"")
            gone = await scraped(door)
            await connection.request("POST", "/v2/repository/models/add/load", b"")
        assert gone.get("mesh_inferences_total", **ADD) == 1.0
        assert gone.series("mesh_model_state") == []
        await asking.infer("add", {"X": X})
        assert (await scraped(door)).get("mesh_inferences_total", **ADD) == 2.0


async def test_a_router_tells_of_the_mesh_it_sees_and_where_requests_went(tmp_path: Path) -> None:
    folder = repository(tmp_path, {"add": onnx_models.add()})
    async with (
        NatsServer() as nats,
        router(nats.url) as door,
        agent(folder, nats=nats.url) as box,
        client(door) as asking,
    ):
        await until_served(door, "add")
        await soon(asking.infer("add", {"X": X}))
        found = await scraped(door)
        away = {"route": "peer", "caller": "application", "outcome": "ok"}
        assert found.get("mesh_requests_total", **ADD, **away) == 1.0
        assert found.get("mesh_nodes", state="ready") == 1.0
        assert found.get("mesh_bus_connected") == 1.0
        assert [s["role"] for s in found.series("mesh_node_info")] == ["router"]
        assert found.series("mesh_model_state") == found.series("mesh_inferences_total") == []
        there = await scraped(box)
        assert there.get("mesh_requests_total", **ADD, route="local", caller="node", outcome="ok") == 1.0
        assert there.get("mesh_inferences_total", **ADD) == 1.0
