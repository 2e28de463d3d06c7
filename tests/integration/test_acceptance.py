"""``mesh doctor --acceptance``: whole runs on this box's CPU and over the fake TensorRT, and that its checks can fail.

Not here: what the checks drive, which has tests of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from hardware.acceptance import cache, compare, edges, exam, faults, made, plan, soak, subjects, together, versions
from hardware.acceptance.finding import CheckFailed, Found, Skipped, judge
from hardware.acceptance.onnx_file import write_hollow
from hardware.acceptance.place import BACKENDS, Desk, Place
from hardware.acceptance.reference import Reference
from hardware.backend import LoadOptions, RawTensor
from hardware.errors import BackendUnavailable, EngineNotBuilt
from hardware.onnx_backend import open_session
from mesh.cli import acceptance
from mesh.errors import ConfigError
from tests import onnx_models
from tests.engine_requests import SITE

OUTER_S = 200.0
ORT_GPU = SITE.parent / "site_ort_gpu"
MADE = made.all_models()
EVERYWHERE = {"load", "parity", "repeat", "speed", "refusals", "concurrency", "two models", "killed worker"}
EVERYWHERE |= {"frozen worker", "worker's cost", "soak"}

Row = dict[str, Any]


async def doctor(*arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    process = await start(*arguments, environ=environ)
    out, err = await asyncio.wait_for(process.communicate(), OUTER_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def start(*arguments: str, environ: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh.cli", "doctor", "--acceptance", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", **(environ or {})},
    )  # fmt: skip


def with_fakes(folder: Path, **knobs: str) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), **knobs}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    onnx_models.save(onnx_models.simple(), tmp_path / "models" / "simple" / "1" / "model.onnx")
    path = onnx_models.save(onnx_models.scalar(), tmp_path / "models" / "scaled" / "2" / "model.onnx")
    declared = "[warmup]\nX = { shape = [3] }\nK = { shape = [], value = 2.5 }\n"
    (path.parent.parent / "model.toml").write_text(declared, encoding="utf-8")
    return tmp_path / "models"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, seconds=1.0)


@pytest.fixture
def chain(tmp_path: Path) -> subjects.Subject:
    return subjects.of_made(tmp_path, made.chain())


def found(document: Row, backend: str) -> dict[tuple[str, str], Row]:
    return {(row["check"], row["model"]): row for row in document["checks"] if row["backend"] == backend}


async def test_a_whole_run_on_the_cpu(repository: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    options = ("--models", str(repository), "--seconds", "1", "--backend", "onnxruntime-cpu", "--json")
    code, out, err = await doctor(*options, environ={"TMPDIR": str(temporary)})
    document = json.loads(out)
    failed = [row for row in document["checks"] if row["state"] == "failed"]
    assert (code, document["ok"], failed) == (0, True, []), err
    assert document.keys() == {"ok", "box", "versions", "checks"}
    assert document["box"]["readings"]["memory_total_bytes"] > 0
    assert document["versions"]["onnxruntime"]["packages"]
    keys = {"check", "backend", "model", "state", "found", "numbers", "advice"}
    assert all(row.keys() == keys for row in document["checks"])
    rows = found(document, "onnxruntime-cpu")
    assert {check for check, _ in rows} >= EVERYWHERE | {"no memory", "no memory to load", "run without end"}
    assert {model for check, model in rows if check == "parity"} == {m.name for m in MADE} | {"simple", "scaled"}
    assert "as known answers" in rows["parity", "made-chain"]["found"]
    assert rows["speed", "made-chain"]["numbers"]["ms_per_row"].keys() == {"1", "2", "4", "8", "16"}
    assert rows["speed", "scaled"]["numbers"]["ms_per_row"].keys() == {"1"}
    assert rows["killed worker", "made-chain"]["numbers"]["neighbour_runs"] > 0
    assert list(temporary.iterdir()) == []


async def test_a_whole_run_over_the_fake_says_that_it_is_no_evidence(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    onnx_models.save(onnx_models.simple(), repository / "simple" / "1" / "model.onnx")
    options = ("--models", str(repository), "--seconds", "1", "--backend", "tensorrt", "--json")
    code, out, err = await doctor(*options, environ=with_fakes(SITE))
    document = json.loads(out)
    assert (code, [row for row in document["checks"] if row["state"] == "failed"]) == (0, []), err
    rows = found(document, "tensorrt-fake")
    assert found(document, "tensorrt") == {}
    assert all(row["advice"].startswith("not evidence") for row in rows.values())
    checks = {check for check, _ in rows}
    assert checks >= {f"{name} fp32" for name in EVERYWHERE | {"build", "profiles", "CUDA graphs", "cache: found"}}
    assert checks >= {f"{name} fp16" for name in ("build", "load", "parity", "speed")}
    assert checks >= {f"cache: {name} fp32" for name, _ in cache.DAMAGES}
    assert rows["run without end fp32", "made-chain"]["state"] == "skipped"
    assert rows["speed fp32", "made-chain"]["numbers"]["times_as_fast_as_onnxruntime_cpu"].keys() >= {"1", "16"}


async def test_the_death_of_the_run_is_a_finding_and_what_was_found_counts(tmp_path: Path) -> None:
    process = await start("--seconds", "30", "--json", environ={"TMPDIR": str(tmp_path)})
    assert process.stderr is not None
    first = await asyncio.wait_for(process.stderr.readline(), OUTER_S)
    assert b"python" in first
    for child in psutil.Process(process.pid).children():
        if "hardware.acceptance" in child.cmdline():
            child.kill()
    out, _ = await asyncio.wait_for(process.communicate(), OUTER_S)
    checks = json.loads(out)["checks"]
    assert process.returncode == 1
    assert checks[0]["check"] == "python"
    assert (checks[-1]["check"], checks[-1]["state"]) == ("acceptance", "failed")
    assert "status -9" in checks[-1]["found"]
    assert os.listdir(tmp_path) == []


async def test_a_wrong_option_is_usage() -> None:
    code, out, err = await doctor("--backend", "vulkan")
    assert (code, out) == (2, "")
    assert "there is no backend 'vulkan'" in err


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no model in no-such-folder"):
        acceptance.acceptance(Path("no-such-folder"), 1.0, [], as_json=True)
    with pytest.raises(ConfigError, match="--seconds must be more than 0"):
        acceptance.acceptance(None, 0.0, [], as_json=True)


def test_a_person_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"check": "load", "backend": "tensorrt", "model": "m", "numbers": {}}
    acceptance._show([
        {**row, "state": "ok", "found": "runs", "advice": ""},
        {**row, "state": "failed", "found": "[broken]", "advice": "mend it"},
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert "[broken]" in out
    assert "mend it" in out
    assert "1 ok, 0 skipped, 1 failed" in out


def test_both_sides_know_the_same_backends() -> None:
    assert acceptance.BACKENDS == BACKENDS


@pytest.mark.parametrize("model", MADE, ids=lambda model: model.name)
def test_made_models_are_sound_and_their_answers_right(model: made.Made, tmp_path: Path) -> None:
    onnx.checker.check_model(onnx.load_from_string(model.file), full_check=True)
    subject = subjects.of_made(tmp_path, model)
    session = open_session(subject.path, LoadOptions())
    for seed in range(5):
        request = subject.request(3, seed)
        right = [
            given.astype("f4") if given.dtype.kind == "f" else given for given in model.answer(*compare.values(request))
        ]
        apart = compare.difference(right, compare.values(session.run(request, ())), 1e-5)
        assert apart.within(1e-5)
    session.close()


def test_a_hollow_file_takes_no_disk_and_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "hollow.onnx"
    write_hollow(path, 1024)
    assert path.stat().st_size > 1024 * 4096 > path.stat().st_blocks * 512
    session = open_session(str(path), LoadOptions())
    (row,) = session.run([RawTensor("i", "INT64", (1,), (1000).to_bytes(8, "little"))], ())
    assert row.shape == (1, 1024)
    assert not any(row.whole)
    session.close()


SCORES = np.array([[0.1, 0.9, 0.0], [0.7, 0.2, 0.1]], "f4")


@pytest.mark.parametrize(
    ("given", "tolerance", "same"),
    [
        (SCORES, 1e-4, True),
        (SCORES + np.float32(1e-3), 5e-3, True),
        (SCORES + np.float32(1e-3), 1e-4, False),
        (SCORES[:1], 1.0, False),
        (SCORES.T, 1.0, False),
        (np.where(SCORES > 0.8, np.nan, SCORES), 1.0, False),
        (SCORES[:, ::-1], 0.5, False),
        (np.where(SCORES > 0.8, np.inf, SCORES), 1.0, False),
    ],
)
def test_answers_that_differ_are_seen(given: compare.Array, tolerance: float, same: bool) -> None:
    assert compare.difference([SCORES], [given], tolerance).within(tolerance) is same


def test_whole_numbers_must_be_the_same_and_outputs_as_many() -> None:
    numbers = np.arange(10)
    assert compare.difference([numbers], [numbers], 1e-4).within(1e-4)
    assert not compare.difference([numbers], [numbers + (numbers == 3)], 5e-3).within(5e-3)
    assert not compare.difference([numbers, numbers], [numbers], 1.0).within(1.0)


async def test_a_check_takes_nothing_down() -> None:
    killed = asyncio.Event()

    async def hangs() -> Found:
        await killed.wait()
        await asyncio.sleep(3600)
        return Found("never")

    async def raises(error: Exception) -> Found:
        raise error

    assert (await judge("c", "b", "m", lambda: raises(ValueError("x")), 60)).found == "the check broke: ValueError: x"
    refused = await judge("c", "b", "m", lambda: raises(BackendUnavailable("no driver")), 60)
    assert (refused.state, refused.found) == ("failed", "backend_unavailable: no driver")
    assert (await judge("c", "b", "m", lambda: raises(Skipped("none here")), 60)).state == "skipped"
    late = await judge("c", "b", "m", hangs, 0.05, killed.set)
    assert (late.state, late.found, killed.is_set()) == ("failed", "did not end within 0.05 s", True)


async def test_wrong_answers_are_seen_wherever_they_come(desk: Desk, chain: subjects.Subject) -> None:
    wrong = replace(chain, answer=lambda x: (np.tanh(x),))
    async with Place(desk, "onnxruntime-cpu") as place, Reference(desk) as reference, place.opened(wrong) as opened:
        with pytest.raises(CheckFailed, match="an answer of 1 rows is wrong") as caught:
            await exam.parity(opened, place, reference)
        assert caught.value.numbers["largest_difference_share"] > 0.01
        checked = together.Checked(place, opened)
        await checked.learn()
        await checked.run(0, 3, float("inf"))
        checked.right.reverse()
        with pytest.raises(CheckFailed, match="run 0 of caller 0 is wrong"):
            await checked.run(0, 3, float("inf"))


async def test_a_gpu_that_falls_back_to_the_cpu_has_failed(
    desk: Desk, chain: subjects.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ORT_GPU))
    async with Place(desk, "onnxruntime-cuda") as place:
        with pytest.raises(BackendUnavailable, match="would run on the CPU"):
            async with place.opened(chain):
                pass
        with pytest.raises(Skipped, match="takes none of this model"):
            async with place.opened(replace(chain, control_flow=True)):
                pass
    monkeypatch.setenv("FAKE_ORT_GPU", "works")
    async with Place(desk, "onnxruntime-cuda", name="onnxruntime-cuda-fake") as place, Reference(desk) as reference:
        await edges.refusals(place, chain, reference)
        with pytest.raises(Skipped, match="box's own memory"):
            await faults.no_memory(place, chain, integrated=True)


async def test_an_engine_that_is_loaded_undamaged_fails_the_check_of_damage(
    desk: Desk, chain: subjects.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    async with Place(desk, "tensorrt", name="tensorrt-fake") as place:
        with pytest.raises(CheckFailed, match="it was loaded"):
            await cache.damaged(place, chain, lambda request, engine: None)
    async with Place(desk, "tensorrt") as place:
        with pytest.raises(CheckFailed, match="tensorrt-fake stands in for tensorrt"):
            async with place.opened(chain):
                pass


async def test_what_tensorrt_refuses_fails_or_is_skipped(
    desk: Desk, chain: subjects.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    monkeypatch.setenv("FAKE_TRT_BUILD", "none")
    async with Place(desk, "tensorrt", name="tensorrt-fake") as place:
        with pytest.raises(CheckFailed, match="not built: TensorRT cannot build"):
            await exam.build(place, chain)
        with pytest.raises(Skipped, match="ONNX Runtime serves it"):
            await exam.build(place, replace(chain, answer=None))
        with pytest.raises(EngineNotBuilt):
            await place.options(chain)


LOOKED: Row = {
    "python": "3.12", "system": "Linux", "machine": "x86_64", "kernel": "6", "inference_mesh": "1", "driver": "560.35",
    "onnxruntime": {"packages": ["onnxruntime-gpu"], "version": "1.31", "providers": ["CPUExecutionProvider"],
                    "links_tensorrt": 10, "simulated": False},
    "tensorrt": {"module": "tensorrt", "version": "10.13.3.9", "library": [10, 13, 3]},
    "cuda": {"error": "no driver"},
}  # fmt: skip


def test_what_does_not_fit_together_is_named() -> None:
    assert versions.onnxruntime(LOOKED).text == "onnxruntime-gpu 1.31: CPUExecutionProvider; links TensorRT 10"
    assert versions.tensorrt(LOOKED).text == "tensorrt 10.13.3.9"
    doubled = {**LOOKED["onnxruntime"], "packages": ["onnxruntime", "onnxruntime-gpu"]}
    with pytest.raises(CheckFailed, match="installed over each other"):
        versions.onnxruntime({**LOOKED, "onnxruntime": doubled})
    eleven = {**LOOKED, "tensorrt": {**LOOKED["tensorrt"], "version": "11.4.0.106", "library": [10, 13, 3]}}
    assert plan.unlikely("onnxruntime-tensorrt", LOOKED) == ""
    assert "links TensorRT 10, installed is 11.4" in plan.unlikely("onnxruntime-tensorrt", eleven)
    assert plan.unlikely("tensorrt", eleven) == ""
    without = {**LOOKED, "tensorrt": {"error": "TensorRT is not installed"}}
    assert plan.unlikely("onnxruntime-tensorrt", without) == "TensorRT is not installed"
    with pytest.raises(CheckFailed, match=r"its library is 10\.13\.3"):
        versions.tensorrt(eleven)
    with pytest.raises(Skipped, match="no driver"):
        versions.cuda(LOOKED)
    assert plan.missing("onnxruntime-cpu", LOOKED) == ""
    assert "built without CUDA" in plan.missing("onnxruntime-cuda", LOOKED)
    assert plan.missing("tensorrt", LOOKED) == "no driver"


async def test_a_library_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    looked = await versions.look()
    assert looked["tensorrt"]["error"].startswith("ends the process that imports it, status -11")
    assert "error" not in looked["onnxruntime"]


def test_slopes_and_growth_of_memory() -> None:
    mib = 1024**2
    climbing = [(float(n), n * mib) for n in range(60)]
    assert soak.slope_mib_per_min(climbing) == pytest.approx(60)
    assert soak.slope_mib_per_min([(at_s, 7 * mib) for at_s, _ in climbing]) == pytest.approx(0)
    spikes = [(at_s, (7 + 90 * (int(at_s) % 7 > 4)) * mib) for at_s, _ in climbing]
    assert soak.slope_mib_per_min(spikes) == pytest.approx(0)
    assert soak.slope_mib_per_min(climbing[:8]) is None
    assert soak.slope_mib_per_min([(at_s, None) for at_s, _ in climbing]) is None
    assert soak.growth([memory for _, memory in climbing]) == 30 * mib
    assert soak.growth([1, 2]) is None
