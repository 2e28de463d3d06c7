"""A mesh on one host with a bus loses nodes: what callers notice, what ``mesh nodes`` shows.

Router, door and holder live as long as the module; every test brings the node that it ends. Not here: LANs
(``test_lan``), outages of the bus (``test_bus``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from mesh.client import Client
from mesh.cluster import Child, Cluster
from mesh.errors import MeshError
from tests import onnx_models
from tests.integration.doors import repository
from tests.system.processes import (
    ALONE,
    COUNT,
    PATIENCE_S,
    Load,
    cli_states,
    command,
    door,
    holder,
    states,
    until,
    until_held,
    until_state,
    workers,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOST_S = 5.0
"""Within this time of its death a killed node is shown as lost: three ttls of 1.5 s, and some for the way there."""


@dataclass(frozen=True)
class Mesh:
    """``door`` holds no model that is asked for, ``keeper`` holds it."""

    cluster: Cluster
    router: Child
    door: Child
    keeper: Child
    models: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    folder = tmp_path_factory.mktemp("faults")
    models = repository(folder / "models", {"count": COUNT()})
    other = repository(folder / "other", {"sum": onnx_models.add()})
    environ = ALONE | {"MESH_MODELS__THREADS": "1", "MESH_MODELS__ISOLATION": "device"}
    async with Cluster(folder / "run", agents=environ) as cluster:
        router = await cluster.router()
        asked = await cluster.agent("door", other, environ={"MESH_MODELS__ISOLATION": "none"})
        keeper = await cluster.agent("keeper", models)
        await asyncio.gather(*(child.until_ready() for child in (router, asked, keeper)))
        for seen_from in (router, asked):
            await until_held(seen_from, "count", "keeper")
        yield Mesh(cluster, router, asked, keeper, models)


async def test_departed_nodes_are_shown_as_lost_and_left(mesh: Mesh) -> None:
    async with holder(mesh.cluster, "shot", mesh.models) as shot, holder(mesh.cluster, "asked", mesh.models) as asked:
        for seen_from in (mesh.router, mesh.door):
            await until_held(seen_from, "count", "shot", "asked")
        os.kill(asked.pid, signal.SIGTERM)
        assert await asyncio.wait_for(asked.wait(), PATIENCE_S) == 0
        ended = time.monotonic()
        seen = await asyncio.gather(*(until_state(at, "asked", "left") for at in (mesh.router, mesh.door)))
        assert max(seen) - ended < 1.0
        os.kill(shot.pid, signal.SIGKILL)
        killed = time.monotonic()
        seen = await asyncio.gather(*(until_state(at, "shot", "lost") for at in (mesh.router, mesh.door)))
        assert max(seen) - killed < LOST_S + 0.5
    fresh = await asyncio.gather(cli_states(mesh.router), cli_states(mesh.door))
    for shown in fresh:
        assert (shown["shot"], shown["asked"], shown["keeper"]) == ("lost", "left", "ready")


async def test_a_killed_node_costs_its_callers_nothing(mesh: Mesh) -> None:
    async with holder(mesh.cluster, "victim-1", mesh.models) as victim, Client(mesh.door.url) as client:
        await until_held(mesh.door, "count", "keeper", "victim-1")
        async with Load(client) as load:
            await load.more(20, "victim-1", "keeper")
            await victim.kill()
            await load.more(100)
    assert (load.failed, load.wrong) == ([], 0)


async def test_a_drained_node_costs_its_callers_nothing(mesh: Mesh) -> None:
    async with holder(mesh.cluster, "victim-2", mesh.models) as victim, Client(mesh.door.url) as client:
        await until_held(mesh.door, "count", "keeper", "victim-2")
        async with Load(client) as load:
            await load.more(20, "victim-2", "keeper")
            os.kill(victim.pid, signal.SIGTERM)
            assert await asyncio.wait_for(victim.wait(), PATIENCE_S) == 0
            await load.more(50)
    assert (load.failed, load.wrong) == ([], 0)
    assert "in flight when the grace" not in (mesh.cluster.run_dir / "victim-2.log").read_text()


async def test_a_killed_router_costs_clients_that_know_another_nothing(mesh: Mesh) -> None:
    spare = await mesh.cluster.router(name="spare")
    await spare.until_ready()
    await until_held(spare, "count", "keeper")
    async with Client(spare.url, mesh.router.url) as client:
        async with Load(client) as load:
            await load.more(50)
            await spare.kill()
            await load.more(100)
        assert client.doors == [mesh.router.address]
    assert (load.failed, load.wrong) == ([], 0)


async def test_hop_headers_of_a_stranger_mean_nothing(mesh: Mesh) -> None:
    body = b'{"inputs":[{"name":"N","shape":[],"datatype":"INT64","data":[7]}]}'
    forged = {
        "Mesh-Hops": "2",
        "Mesh-Deadline-Ms": "0.001",
        "Mesh-Visited": "keeper",
        "Mesh-Model-Digest": "0" * 64,
    }
    async with door(mesh.door).connect() as connection:
        for token in ("", "site:keeper:" + "0" * 64, "bus:keeper:" + "0" * 64, "\xff"):
            headers = forged | {"Mesh-Token": token} if token else forged
            answer = await connection.request("POST", "/v2/models/count/infer", body, headers)
            assert answer.status == 200, answer.body
            assert answer.json()["outputs"][0]["data"] == [7]
            shown = {name: answer.headers[name] for name in ("mesh-node", "mesh-route", "mesh-hops")}
            assert shown == {"mesh-node": "keeper", "mesh-route": "peer", "mesh-hops": "1"}


async def test_a_dead_worker_comes_back_and_its_requests_run_elsewhere(mesh: Mesh) -> None:
    async with holder(mesh.cluster, "crashing", mesh.models) as crashing, Client(mesh.door.url) as client:
        await until_held(mesh.door, "count", "keeper", "crashing")
        async with Load(client) as load:
            await load.more(20, "crashing")
            (worker,) = workers(crashing)
            worker.kill()
            await load.more(20, "keeper")
            await load.more(20, "crashing")
        (restarted,) = workers(crashing)
    assert restarted.pid != worker.pid
    assert (load.failed, load.wrong) == ([], 0)


async def test_a_model_that_keeps_crashing_is_quarantined_alone(mesh: Mesh, tmp_path: Path) -> None:
    models = repository(tmp_path, {"cursed": COUNT(), "sound": onnx_models.identity("FP32")})
    async with (
        holder(mesh.cluster, "quarantine", models, MESH_MODELS__ISOLATION="model") as agent,
        Client(agent.url) as client,
    ):
        for _ in range(3):
            await until_held(agent, "cursed", "quarantine")
            error = await _killed_while_it_runs(agent, client)
            assert (error.code, error.retryable) == ("instance_lost", True)

        async def quarantined() -> bool:
            (row,) = [
                r for r in (await door(mesh.router).get("/mesh/v1/nodes")).json()["nodes"] if r["node"] == "quarantine"
            ]
            shown = {m["name"]: (m["state"], m["reason"]) for m in row["models"]}
            assert shown["sound"] == ("READY", "")
            return shown["cursed"][0] == "QUARANTINED" and "died 3 times" in shown["cursed"][1]

        await until(quarantined, "the router shows the quarantine")
        with pytest.raises(MeshError, match=r"'cursed' is QUARANTINED.*died 3 times") as refused:
            await client.infer("cursed", {"N": np.array(1, dtype=np.int64)})
        assert refused.value.status == 503
        x = np.array([1.5], dtype=np.float32)
        assert (await client.infer("sound", {"INPUT": x}))["OUTPUT"] == x
        assert len(workers(agent)) == 1


async def _killed_while_it_runs(agent: Child, client: Client) -> MeshError:
    """Kill the worker that runs a long request: the one that computes."""
    n = np.array(2**62, dtype=np.int64)
    killed = False

    async def busy() -> bool:
        nonlocal killed
        for worker, used in before.items():
            with contextlib.suppress(psutil.Error):
                if worker.cpu_times().user > used + 0.1:
                    worker.kill()
                    killed = True
        return killed or request.done()

    while not killed:  # a request that met the worker before this one, on its way out, is asked again
        before = {worker: worker.cpu_times().user for worker in workers(agent)}
        request = asyncio.create_task(client.infer("cursed", {"N": n}, deadline_ms=60_000))
        await until(busy, "a worker computes")
        if not killed:
            await asyncio.wait({request})
            await until_held(agent, "cursed", "quarantine")
    with pytest.raises(MeshError) as failed:
        await asyncio.wait_for(request, PATIENCE_S)
    return failed.value


async def test_a_second_process_of_the_same_name_is_refused(mesh: Mesh) -> None:
    environ = {"MESH_NODE__STATE_DIR": str(mesh.cluster.run_dir / "state")}
    line = ("edge.cli", "run", "--models", str(mesh.models), "--node", "keeper", "--http", "127.0.0.1:0")
    code, out, err = await command(*line, environ=environ)
    assert (code, out) == (2, "")
    (said,) = err.splitlines()
    assert said.startswith("error: another process runs as node keeper")
    assert said.endswith("choose another --node")
    assert (await states(mesh.router))["keeper"] == "ready"
