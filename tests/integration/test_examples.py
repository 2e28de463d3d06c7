"""The examples of the documentation, run as a reader would, against a mesh of real processes and a real model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.cluster import Child, Cluster
from tests import onnx_models
from tests.integration.doors import repository
from tests.nats import soon

ROOT = Path(__file__).parents[2]
SUM = '[[sequence.state]]\ninput = "STATE"\noutput = "STATE_OUT"\n'
SUMS = f"{[n + 1 for n in range(16)]}\n"
PRINTED = {
    "url.py": SUMS,
    "async_infer.py": f"{[2 * n for n in range(8)]}\n",
    "stream.py": "0\n1\n2\n3\n",
    "async_stream.py": "0\n1\n2\n",
    "sequence.py": "1\n3\n6\n10\n",
    "errors.py": "ask otherwise: Request for unknown model: model 'no_such_model' is not found\n",
}
"""What each example of the SDK says, whatever door it asks."""
pytestmark = pytest.mark.models


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    models = tmp_path / "models"
    models.mkdir()
    (models / "magika").symlink_to(ROOT / "models" / "magika")
    for name in ("simple", "repeat_int32"):
        (models / name).symlink_to(ROOT / "tests" / "models" / "triton" / name)
    repository(models, {"running_sum": onnx_models.running_sum()}, {"running_sum": SUM})
    environ = {"MESH_MODELS__ISOLATION": "none", "MESH_MODELS__THREADS": "1"}
    async with Cluster(tmp_path / "run", agents=environ) as running:
        router, agent = await running.router(), await running.agent("agent-1", models)
        await asyncio.gather(*(child.until_ready() for child in (router, agent)))
        await running.settled(router, [agent.name])
        yield running


async def run(example: str | Path, environ: dict[str, str], *arguments: object) -> tuple[int, str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "NATS_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "docs" / "examples" / example), *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=plain | environ,
    )
    out, err = await soon(process.communicate())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def door(cluster: Cluster, name: str) -> Child:
    return next(child for child in cluster.children if child.name == name)


async def test_the_examples_tell_what_kind_of_file_it_is(cluster: Cluster, tmp_path: Path) -> None:
    table = tmp_path / "file"
    table.write_text(json.dumps([{"id": n, "name": f"box {n}", "ready": n % 2 == 0} for n in range(40)], indent=1))
    asked = ((Path(__file__), "python"), (table, "json"))
    for name, route in (("agent-1", "local"), ("router", "peer")):
        for path, kind in asked:
            url = {"MESH_URL": door(cluster, name).url}
            assert await run("infer.py", url, path) == (0, f"{kind}, says agent-1 ({route})\n", "")
    await door(cluster, "agent-1").stop()
    code, out, err = await run("nats_infer.py", {"NATS_URL": cluster.bus.url, "NATS_TOKEN": cluster.bus.token})
    assert (code, out) == (1, "")
    assert err.startswith("refused: ")


async def test_the_examples_of_the_sdk(cluster: Cluster) -> None:
    for example, said in PRINTED.items():
        assert await run(example, {}, door(cluster, "router").url) == (0, said, ""), example
    assert await run("found.py", {"MESH_ID": cluster.mesh}) == (0, SUMS, "")
    bus = {"NATS_TOKEN": cluster.bus.token}
    assert await run("on_the_bus.py", bus, cluster.bus.url) == (0, SUMS, "")
    assert await run("nats_infer.py", bus | {"NATS_URL": cluster.bus.url}) == (0, f"{[2 * n for n in range(16)]}\n", "")


async def test_the_quick_start_is_all_that_a_newcomer_needs(cluster: Cluster, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.DOTALL)
    assert lines.count("\n") == 10
    script = tmp_path / "quick_start.py"
    script.write_text(lines.replace("http://127.0.0.1:8000", door(cluster, "agent-1").url))
    code, out, err = await run(script, {})
    assert (code, err) == (0, "")
    assert re.search(r"^\[.*'magika'.*\(TensorSpec\(name='bytes', .*\n\d+ by agent-1 local$", out), out
    await door(cluster, "agent-1").stop()
    told = "no answer: no door of the mesh answers; give its URL, or start an agent\n"
    assert await run(script, {}) == (0, told, "")


def test_every_example_is_run() -> None:
    named = {*PRINTED, "found.py", "on_the_bus.py", "infer.py", "nats_infer.py"}
    assert {path.name for path in (ROOT / "docs" / "examples").glob("*.py")} == named
