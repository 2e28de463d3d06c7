"""An agent and its backends as its owner sees them: engines that are built, fall-backs that serve meanwhile, crashes.

TensorRT is the fake of ``hardware.fakes`` and so is the GPU build of ONNX Runtime: what is shown is the agent's part,
in real processes. Not here: the adapter (``tests.unit.test_tensorrt_session``), the builder (``tests.integration``).
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from mesh.client import Client
from mesh.cluster import Child
from mesh.errors import MeshError
from tests import onnx_models
from tests.engine_requests import SITE
from tests.integration.doors import repository
from tests.system.processes import ALONE, Site, cli, command, door, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORT_GPU = SITE.parent / "site_ort_gpu"
CHAIN = 'backends = ["tensorrt", "onnxruntime-cpu"]\n[batching]\nmax_rows = 1\n'
ALONE_ON_GPU = 'backends = ["tensorrt"]\n[batching]\nmax_rows = 1\n'
X = np.ones((1, 16), np.float32)


@pytest_asyncio.fixture(loop_scope="module")
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(tmp_path) as site:
        site.environ |= ALONE | {"MESH_MODELS__ISOLATION": "model", "PYTHONPATH": str(SITE)}
        yield site


async def model(at: Child, name: str = "sum") -> dict[str, Any]:
    """The row that ``mesh models --json`` shows of a model."""
    rows = (await cli("models", "--url", at.url))["models"]
    (held,) = next(row for row in rows if row["name"] == name)["nodes"]
    return dict(held)


async def until_model(at: Child, state: str, effective: str = "", name: str = "sum") -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def reached() -> bool:
        nodes = (await door(at).get("/mesh/v1/nodes")).json()["nodes"]
        found.update(next(m for row in nodes for m in row["models"] if m["name"] == name))
        return bool(found["state"] == state and effective in ("", found["effective"]))

    await until(reached, f"{name} is {state} {effective} at {at.name}")
    return found


async def started(site: Site, name: str, models: Path, **environ: str) -> Child:
    """An agent whose door answers; its models may still be on their way, so that it printed no address yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    child = await site.agent(name, models, "--http", address, environ={"MESH_MODELS__ISOLATION": "model", **environ})
    child.address = address

    async def reached() -> bool:
        try:
            return bool((await door(child).get("/v2/health/live")).status == 200)
        except OSError:
            return False

    await until(reached, f"{name} serves")
    return child


async def test_the_build_shows_its_progress_and_the_fall_back_serves_meanwhile(site: Site, tmp_path: Path) -> None:
    models = repository(tmp_path / "m", {"sum": onnx_models.add()}, {"sum": CHAIN})
    slow = {"FAKE_TRT_BUILD_S": "6", "FAKE_TRT_BUILD_STEPS": "60"}
    agent = await started(site, "a", models, **slow)
    await until_model(agent, "READY", "onnxruntime-cpu")
    async with Client(agent.url) as client:
        assert (await client.infer("sum", {"X": X}))["Y"].tolist() == (2 * X).tolist()
        seen = await model(agent)
        assert 0.0 <= seen["progress"] < 1.0
        assert (seen["requested"], seen["effective"]) == ("tensorrt", "onnxruntime-cpu")
        done = await until_model(agent, "READY", "tensorrt-fake")
        assert done["progress"] is None
        assert (await client.infer("sum", {"X": X}))["Y"].tolist() == (2 * X).tolist()


async def test_an_engine_outlives_the_agent_and_a_spoilt_one_is_built_again(site: Site, tmp_path: Path) -> None:
    models = repository(tmp_path / "m", {"sum": onnx_models.add()}, {"sum": ALONE_ON_GPU})
    first = await started(site, "a", models)
    await until_model(first, "READY", "tensorrt-fake")
    await first.stop()
    (plan,) = (tmp_path / "state").rglob("plan")
    made = plan.stat().st_mtime_ns

    again = await started(site, "a", models)  # the builder would take for ever
    await until_model(again, "READY", "tensorrt-fake")
    await again.stop()
    assert plan.stat().st_mtime_ns == made

    spoilt = bytearray(plan.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    plan.write_bytes(spoilt)
    rebuilt = await started(site, "a", models)
    await until_model(rebuilt, "READY", "tensorrt-fake")
    assert plan.read_bytes() != bytes(spoilt)
    assert list((tmp_path / "state").rglob("*.bad"))
    async with Client(rebuilt.url) as client:
        assert (await client.infer("sum", {"X": X}))["Y"].tolist() == (2 * X).tolist()


async def test_a_foreign_engine_is_never_loaded(site: Site, tmp_path: Path) -> None:
    models = repository(tmp_path / "m", {"sum": onnx_models.add()}, {"sum": ALONE_ON_GPU})
    first = await started(site, "a", models)
    await until_model(first, "READY", "tensorrt-fake")
    await first.stop()
    (key,) = (tmp_path / "state").rglob("*.key")
    key.chmod(0o600)
    key.write_bytes(bytes(reversed(key.read_bytes())))  # what lies there was signed by somebody else
    (plan,) = (tmp_path / "state").rglob("plan")
    made = plan.stat().st_mtime_ns
    second = await started(site, "a", models)
    await until_model(second, "READY", "tensorrt-fake")
    assert plan.stat().st_mtime_ns != made


async def test_a_build_can_be_cancelled(site: Site, tmp_path: Path) -> None:
    models = repository(tmp_path / "m", {"sum": onnx_models.add()}, {"sum": ALONE_ON_GPU})
    agent = await started(site, "a", models, FAKE_TRT_BUILD_S="600", FAKE_TRT_BUILD_STEPS="6000")
    seen = await until_model(agent, "BUILDING")
    assert seen["effective"] in ("", None)

    async def begun() -> bool:
        return (await until_model(agent, "BUILDING"))["progress"] is not None

    await until(begun, "the build says how far it is")
    async with door(agent).connect() as connection:
        answer = await connection.request("POST", "/v2/repository/models/sum/unload")
    assert answer.status == 200
    rows = (await cli("models", "--url", agent.url))["models"]
    assert [row for row in rows if row["name"] == "sum"] == []
    await agent.stop()
    assert not list((tmp_path / "state").rglob("plan"))


async def test_the_cpu_instead_of_the_gpu_is_refused_or_marked(site: Site, tmp_path: Path) -> None:
    toml = 'backends = ["onnxruntime-cuda"]\n'
    models = repository(tmp_path / "m", {"sum": onnx_models.add()}, {"sum": toml})
    falls = {"PYTHONPATH": str(ORT_GPU), "FAKE_ORT_GPU": "falls"}
    strict = await started(site, "strict", models, **falls)
    refused = await until_model(strict, "FAILED")
    assert "CPU" in refused["reason"]
    lenient = await started(site, "lenient", models, **falls, MESH_MODELS__ALLOW_CPU="true")
    degraded = await until_model(lenient, "READY", "onnxruntime-cpu")
    assert degraded["requested"] == "onnxruntime-cuda"
    assert "onnxruntime-cuda" in degraded["reason"]
    metadata = (await door(lenient).get("/v2/models/sum")).json()["parameters"]
    assert (metadata["requested_backend"], metadata["effective_backend"]) == ("onnxruntime-cuda", "onnxruntime-cpu")


async def test_who_crashes_its_worker_is_quarantined_by_name_and_the_other_model_serves_on(
    site: Site, tmp_path: Path
) -> None:
    files = {"crashes": onnx_models.add(), "sum": onnx_models.add()}
    models = repository(tmp_path / "m", files, {"crashes": ALONE_ON_GPU})
    agent = await started(site, "a", models, FAKE_TRT_SEGFAULT_AT="5")  # three runs warm it up
    await until_model(agent, "READY", name="crashes")
    await until_model(agent, "READY", name="sum")
    stop = asyncio.Event()

    async def others() -> int:
        count = 0
        async with Client(agent.url) as client:
            while not stop.is_set():
                assert (await client.infer("sum", {"X": X}))["Y"].tolist() == (2 * X).tolist()
                count += 1
        return count

    async def until_quarantined() -> dict[str, Any]:
        async with Client(agent.url) as client:
            while True:
                try:
                    await client.infer("crashes", {"X": X}, deadline_ms=500)
                except MeshError:
                    await asyncio.sleep(0.01)
                seen = await model(agent, "crashes")
                if seen["state"] == "QUARANTINED":
                    return seen

    asked = asyncio.create_task(others())
    try:
        seen = await asyncio.wait_for(until_quarantined(), 60.0)
    finally:
        stop.set()
    assert await asked > 0
    assert "SIGSEGV" in seen["reason"]
    assert "3 times" in seen["reason"]


async def test_doctor_names_two_builds_of_onnx_runtime_over_each_other(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.31.1.dist-info"
        info.mkdir()
        package = name.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.31.1\n")
        (info / "top_level.txt").write_text("onnxruntime\n")
    environ = {"PYTHONPATH": str(tmp_path)}
    code, out, _ = await command("mesh.cli", "doctor", "--json", environ=environ)
    found = next(check for check in json.loads(out)["checks"] if check["check"] == "onnxruntime")
    assert (code, found["state"]) == (1, "failed")
    assert "onnxruntime and onnxruntime-gpu" in found["found"]
