"""The commands as a user runs them, against a real agent: answers, JSON, exit codes, one line on what went wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from tests import onnx_models
from tests.integration.doors import Door, agent, repository
from tests.nats import soon

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "http://127.0.0.1:9"
MODELS = {
    "add": onnx_models.add(),
    "simple": onnx_models.simple(),
    "pixels": onnx_models.identity("FP32", (1, 3, 32, 32)),
    "grey": onnx_models.identity("UINT8", (1, 32, -1, 1)),
    "bytes": onnx_models.identity("BYTES", (1,)),
    "raw": onnx_models.identity("UINT8"),
    "broken": b"garbage",
}


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def failed(self, code: int) -> str:
        """The one line on stderr of a command that ended with ``code`` and said nothing on stdout."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err


async def run(*arguments: str, module: str = "mesh.cli", environ: Mapping[str, str] | None = None) -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", **(environ or {})},
    )  # fmt: skip
    out, err = await soon(process.communicate())
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with agent(repository(tmp_path_factory.mktemp("models"), MODELS)) as door:
        yield door


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.full((1, 16), 2, dtype=np.float32))
    np.save(tmp_path / "wrong.npy", np.full((1, 16), 2, dtype=np.int64))
    Image.new("RGB", (64, 48), (255, 0, 51)).save(tmp_path / "red.png")
    Image.new("L", (96, 32), 7).save(tmp_path / "grey.bmp")
    (tmp_path / "text.txt").write_text("any bytes")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no image")
    return tmp_path


async def test_nodes_and_models_for_programs_and_for_people(door: Door) -> None:
    nodes, models, people, what = await asyncio.gather(
        run("nodes", "--url", f"http://{door.address}", "--json"),
        run("models", "--json", environ={"MESH_URL": f"http://{door.address}/"}),
        run("nodes", "--url", door.address),
        run("models", "--url", door.address),
    )
    (node,) = nodes.json()["nodes"]
    assert {"node", "site", "tier", "state", "http", "models"} <= node.keys()
    assert (node["node"], node["state"], node["http"]) == ("edge-1", "ready", door.address)
    assert {m["name"]: m["state"] for m in node["models"]} == {
        name: "FAILED" if name == "broken" else "READY" for name in MODELS
    }
    rows = {row["name"]: row for row in models.json()["models"]}
    assert rows.keys() == MODELS.keys()
    assert rows["add"]["nodes"][0]["node"] == "edge-1"
    assert rows["broken"]["nodes"][0]["reason"]
    for shown in (people, what):
        assert (shown.code, shown.err) == (0, "")
        assert "edge-1" in shown.out
    assert f"{len(MODELS) - 1}/{len(MODELS)}" in people.out
    assert "FAILED" in what.out


async def test_infer_from_json_npy_and_files(door: Door, files: Path) -> None:
    ones = json.dumps([[1] * 16])

    async def infer(model: str, *inputs: str) -> Any:
        options = [part for text in inputs for part in ("--input", text)]
        return (await run("infer", model, *options, "--url", door.address, "--json")).json()

    add, npy, version, simple, pixels, grey, text, raw = await asyncio.gather(
        infer("add", f"X={ones}"),
        infer("add", f"X={files / 'x.npy'}"),
        infer("add/1", str(files / "x.npy")),
        infer("simple", f"INPUT0={ones}", f"INPUT1={ones}"),
        infer("pixels", str(files / "red.png")),
        infer("grey", f"INPUT={files / 'grey.bmp'}"),
        infer("bytes", str(files / "text.txt")),
        infer("raw", str(files / "text.txt")),
    )
    assert (add["model_name"], add["model_version"], add["node"], add["route"], add["hops"]) == (
        "add", "1", "edge-1", "local", 0,
    )  # fmt: skip
    assert add["outputs"] == [{"name": "Y", "datatype": "float32", "shape": [1, 16], "data": [2.0] * 16}]
    assert npy["outputs"][0]["data"] == version["outputs"][0]["data"] == [4.0] * 16
    assert {o["name"]: o["data"][0] for o in simple["outputs"]} == {"OUTPUT0": 2, "OUTPUT1": 0}
    red = np.array(pixels["outputs"][0]["data"]).reshape(3, -1).mean(axis=1)
    assert red == pytest.approx([1.0, 0.0, 0.2], abs=1e-6)
    assert grey["outputs"][0]["shape"] == [1, 32, 96, 1]
    assert set(grey["outputs"][0]["data"]) == {7}
    assert text["outputs"][0]["data"] == ["any bytes"]
    assert raw["outputs"][0]["data"] == list(b"any bytes")


async def test_infer_for_people(door: Door) -> None:
    ran = await run("infer", "add", "-i", f"X={json.dumps([[1] * 16])}", "--url", door.address)
    assert (ran.code, ran.err) == (0, "")
    assert "ran on edge-1 (local, 0 hops)" in ran.out


async def test_what_fails_says_so_in_one_line(door: Door, files: Path) -> None:
    async def infer(model: str, *inputs: str) -> str:
        options = [part for text in inputs for part in ("--input", text)]
        return (await run("infer", model, *options, "--url", door.address, "--json")).failed(1)

    nope, broken, wrong, missing, misspelt, shape, image, words = await asyncio.gather(
        infer("nope", "X=[1]"),
        infer("broken", "X=[1]"),
        infer("add", f"X={files / 'wrong.npy'}"),
        infer("add", f"X={files / 'none.npy'}"),
        infer("add", "Z=[1]"),
        infer("add", "X=[1]"),
        infer("pixels", str(files / "broken.png")),
        infer("add", 'X="words"'),
    )
    assert "Request for unknown model" in nope
    assert "broken" in broken
    assert "holds int64, the model takes FP32" in wrong
    assert "is neither a file nor JSON" in missing
    assert "the model's inputs are X" in misspelt
    assert "shape" in shape
    assert "is no image that can be read" in image
    assert "the JSON is no FP32 array" in words


async def test_nobody_at_the_door_is_a_failure_and_wrong_use_another() -> None:
    nodes, models, infer, url, no_input, unknown, tls = await asyncio.gather(
        run("nodes", "--url", NOBODY, "--json"),
        run("models", "--url", NOBODY),
        run("infer", "add", "--input", "X=[1]", "--url", NOBODY),
        run("nodes", "--url", "nonsense"),
        run("infer", "add", "--url", NOBODY),
        run("nodes", "--nonsense"),
        run("infer", "add", "--input", "X=[1]", "--url", "https://door:1"),
    )
    assert "127.0.0.1:9 cannot be reached" in nodes.failed(1)
    assert "127.0.0.1:9 cannot be reached" in models.failed(1)
    assert "no door of the mesh answers" in infer.failed(1)
    assert "is not HOST:PORT" in url.failed(2)
    assert "give at least one --input" in no_input.failed(2)
    assert (unknown.code, unknown.out) == (2, "")
    assert "TLS" in tls.failed(2)


async def test_config_check_of_every_command(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[site]\nname = "shop"\nkey = "hush-hush-hush-hush"\n')
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[site]\nnam = "shop"\n')
    check = ("config", "check")
    environ = {"MESH_LOG__LEVEL": "debug"}
    shared, edge, people, named, variable, missing, agent_file = await asyncio.gather(
        run(*check, "--config", str(file), "--json", environ=environ),
        run(*check, "--json", module="edge.cli", environ={"MESH_MODELS__DIR": "/m"}),
        run(*check, "--config", str(file), module="cloud.cli"),
        run(*check, "--config", str(wrong)),
        run(*check, environ={"MESH_SITE__NAM": "x"}),
        run(*check, "--config", str(tmp_path / "none.toml"), "--json"),
        run("run", module="edge.cli"),
    )
    rows = {row["name"]: row for row in shared.json()["settings"]}
    assert rows["site.name"] == {"name": "site.name", "value": "shop", "source": "file"}
    assert rows["log.level"] == {"name": "log.level", "value": "debug", "source": "environment"}
    assert {r["name"]: r["value"] for r in edge.json()["settings"]}["models.dir"] == "/m"
    assert (people.code, people.err) == (0, "")
    assert "hush" not in shared.out + people.out
    assert "site.nam: no setting has this name (from file)" in named.failed(2)
    assert "MESH_SITE__NAM" in variable.failed(2)
    assert "there is no file" in missing.failed(2)
    assert "--models DIR" in agent_file.failed(2)


async def test_doctor_looks_at_this_box_and_the_door(door: Door, tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    at_door, alone, named = await asyncio.gather(
        run("doctor", "--url", door.address, "--json", environ=environ),
        run("doctor", environ=environ | {"HOME": str(tmp_path)}),
        run("doctor", "--url", NOBODY, "--json", environ=environ),
    )
    checks = {check["check"]: check for check in json.loads(at_door.out)["checks"]}
    assert checks["door"]["state"] == "warning"  # it sees the model that is broken
    assert "broken on edge-1" in checks["door"]["advice"]
    assert checks["python"]["state"] == checks["onnxruntime"]["state"] == "ok"
    assert "CPUExecutionProvider" in checks["onnxruntime"]["found"]
    assert str(tmp_path) in checks["state"]["found"]
    assert at_door.code == (0 if json.loads(at_door.out)["ok"] else 1)
    assert "onnxruntime" in alone.out
    assert alone.err == ""
    document = json.loads(named.out)  # a door that was named must be there
    assert (named.code, document["ok"]) == (1, False)
    assert {c["check"]: c["state"] for c in document["checks"]}["door"] == "failed"


async def test_doctor_names_two_onnxruntimes_over_each_other(door: Door, tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{package}-1.30.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.30.0\n")
        (info / "top_level.txt").write_text("onnxruntime\n")
    ran = await run("doctor", "--url", door.address, "--json", environ={"PYTHONPATH": str(tmp_path)})
    check = next(c for c in json.loads(ran.out)["checks"] if c["check"] == "onnxruntime")
    assert ran.code == 1
    assert check["found"] == "onnxruntime and onnxruntime-gpu are installed over each other"
    assert "uninstall both" in check["advice"]
