"""Steps in Python in a repository: what is taken for one, where it runs, and the reason where it does not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config_document import config_document
from edge.repository import Repository, StoredModel
from hardware.backend import RawTensor
from hardware.worker_runtime import WorkerRuntime
from mesh.deadline import Deadline
from mesh.errors import InferenceFailed
from tests import onnx_models, python_steps
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

TRITON = 'name: "step"\nbackend: "python"\nmax_batch_size: 0\n'
DECOUPLED = TRITON + "model_transaction_policy { decoupled: True }\n"


def stored(folder: Path) -> StoredModel:
    (found,) = Repository(folder, 1 << 20).scan()["step"]
    return found


async def outcome(folder: Path, **settings: Any) -> tuple[str, str]:
    """State and reason that the step comes to."""
    async with Loaded(folder, **settings).running() as loaded:
        await loaded.settled()
        step = loaded.get("step")
        return step.state, step.reason


async def doubled(loaded: Loaded, *rows: tuple[float, float]) -> list[list[float]]:
    x = np.array(rows, np.float32)
    inputs = [RawTensor("X", "FP32", x.shape, x.tobytes())]
    served = loaded.get("step").served
    (y,) = await soon(loaded.instances.executor.infer(served, inputs, (), Deadline.after_ms(60_000), 0))
    return [[float(value) for value in row] for row in np.frombuffer(y.whole, np.float32).reshape(y.shape)]


def test_a_step_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = python_steps.save(tmp_path, python_steps.DOUBLE)
    first = stored(tmp_path)
    assert (first.is_step, first.rejected, first.chain(("tensorrt",))) == (True, "", ("python",))
    assert len(first.identity.digest) == 64
    (path.parent / "beside.py").write_text("x = 1\n")
    assert stored(tmp_path).same(first)
    path.write_text(python_steps.DOUBLE + "\n")
    assert not stored(tmp_path).same(first)


def test_a_change_of_the_kind_is_seen_by_a_poll(tmp_path: Path) -> None:
    repository(tmp_path, {"step": onnx_models.add()})
    found = Repository(tmp_path, 1 << 20)
    assert not found.scan()["step"][0].is_step
    (tmp_path / "step" / "1" / "model.onnx").unlink()
    python_steps.save(tmp_path, python_steps.DOUBLE)
    found.poll()
    assert found.poll()["step"][0].is_step


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('backends = ["onnxruntime-cpu"]\n', "step/1 is a model.py, which no backend but python runs"),
        ('backends = ["python", "onnxruntime-cpu"]\n', "no backend but python"),
        ('backends = ["python"]\n', ""),
        ("", ""),
    ],
)
def test_no_other_backend_runs_a_step(tmp_path: Path, toml: str, says: str) -> None:
    python_steps.save(tmp_path, python_steps.DOUBLE, toml=toml)
    assert says in stored(tmp_path).rejected
    assert bool(says) == bool(stored(tmp_path).rejected)


def test_one_version_is_one_file(tmp_path: Path) -> None:
    python_steps.save(tmp_path, python_steps.DOUBLE)
    onnx_models.save(onnx_models.add(), tmp_path / "step" / "1" / "model.onnx")
    assert "has both model.onnx and model.py" in stored(tmp_path).rejected
    (tmp_path / "step" / "1" / "model.onnx").unlink()
    path = tmp_path / "step" / "1" / "model.py"
    path.rename(tmp_path / "elsewhere.py")
    path.symlink_to(tmp_path / "elsewhere.py")
    assert "has no regular file model.py" in stored(tmp_path).rejected
    path.unlink()
    (tmp_path / "step" / "config.pbtxt").write_text(TRITON)
    assert "has no file model.py, and asks for the backend python" in stored(tmp_path).rejected


@pytest.mark.parametrize("isolation", ["model", "device", "none"])
async def test_a_step_has_a_process_of_its_own(tmp_path: Path, isolation: str) -> None:
    repository(tmp_path, {"other": onnx_models.add()})
    python_steps.save(tmp_path, python_steps.DOUBLE)
    async with Loaded(tmp_path, isolation=isolation).running() as loaded:
        await loaded.settled()
        assert loaded.get("step").state == loaded.get("other").state == "READY"
        assert isinstance(loaded.runtime("step"), WorkerRuntime)
        assert loaded.runtime("step").pid not in (os.getpid(), loaded.runtime("other").pid)
        assert await doubled(loaded, (1, 2), (3, 4)) == [[2, 4], [6, 8]]
        step = loaded.get("step")
        assert (step.served.batching.max_rows, step.degraded, step.reason) == (1, False, "")
        assert step.footprint is not None
        assert step.footprint.device == 0
        assert step.loaded is not None
        document = config_document(step, step.loaded)
        assert document["backend"] == document["platform"] == "python"
        assert document["default_model_filename"] == "model.py"
        assert document["instance_group"][0]["kind"] == "KIND_CPU"
        assert document["model_transaction_policy"] == {"decoupled": False}


async def test_a_step_is_batched_only_where_that_is_declared(tmp_path: Path) -> None:
    python_steps.save(tmp_path, python_steps.DOUBLE, toml="[batching]\nmax_rows = 4\n")
    async with Loaded(tmp_path).running() as loaded:
        await loaded.settled()
        assert loaded.get("step").served.batching.max_rows == 4
        answers = await asyncio.gather(*(doubled(loaded, (n, n)) for n in range(8)))
        assert answers == [[[2 * n, 2 * n]] for n in range(8)]


async def test_a_plain_step_that_fails_fails_that_request(tmp_path: Path) -> None:
    source = python_steps.DOUBLE.replace("    return", "    1 / inputs['X'].shape[0]\n    return")
    python_steps.save(tmp_path, source)
    async with Loaded(tmp_path).running() as loaded:
        await loaded.settled()
        served = loaded.get("step").served
        with pytest.raises(InferenceFailed, match=r"the step failed: ZeroDivisionError: "):
            await loaded.instances.executor.infer(
                served, [RawTensor("X", "FP32", (0, 2), b"")], (), Deadline.after_ms(60_000), 0
            )
        assert await doubled(loaded, (1, 1)) == [[2, 2]]


@pytest.mark.parametrize("pbtxt", [DECOUPLED, TRITON, ""])
async def test_triton_s_declarations_are_read(tmp_path: Path, pbtxt: str) -> None:
    python_steps.save(tmp_path, python_steps.REPEAT, pbtxt=pbtxt)
    assert await outcome(tmp_path) == ("READY", "")


@pytest.mark.parametrize(
    ("source", "toml", "pbtxt", "says"),
    [
        ("import none_such\n", "", "", "model.py cannot be run (line 1): ModuleNotFoundError: No module named"),
        (python_steps.DOUBLE, "", DECOUPLED, "declares decoupled = true, and infer is not a generator"),
        (python_steps.REPEAT, "", DECOUPLED.replace("True", "false"), "decoupled = false, and infer is a generator"),
        (python_steps.REPEAT, "[batching]\nmax_rows = 2\n", "", "declares batching, which a decoupled model cannot"),
        (python_steps.REPEAT, '[cascade]\nnext = "x"\noutput = "OUT"\n', "", "cascade"),
        (python_steps.DOUBLE, "[warmup]\nZ = { shape = [1] }\n", "", "warmup for 'Z', which is not an input"),
        (python_steps.DOUBLE.replace("* 2", '+ int("a")'), "", "", "declare [warmup] in model.toml: the step failed"),
    ],
)
async def test_a_step_that_cannot_be_served_says_why(
    tmp_path: Path, source: str, toml: str, pbtxt: str, says: str
) -> None:
    python_steps.save(tmp_path, source, toml=toml, pbtxt=pbtxt)
    state, reason = await outcome(tmp_path)
    assert state == "FAILED"
    assert says in reason
    assert str(tmp_path) not in reason


async def test_a_step_that_others_could_write_is_not_run(tmp_path: Path) -> None:
    path = python_steps.save(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n" + python_steps.DOUBLE)
    path.chmod(0o646)
    state, reason = await outcome(tmp_path)
    assert state == "FAILED"
    assert "model.py can be written by others" in reason
    assert not (tmp_path / "ran").exists()


async def test_no_step_is_run_where_that_is_switched_off(tmp_path: Path) -> None:
    python_steps.save(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n" + python_steps.DOUBLE)
    state, reason = await outcome(tmp_path, python=False)
    assert state == "FAILED"
    assert "models.python is false" in reason
    assert not (tmp_path / "ran").exists()


async def test_code_that_never_comes_to_its_end_is_ended(tmp_path: Path) -> None:
    python_steps.save(tmp_path, "while True: pass\n")
    state, reason = await outcome(tmp_path, warmup_s=1.0)
    assert state == "FAILED"
    assert "did not end within 1 s" in reason


async def test_a_stream_that_never_answers_is_not_ready(tmp_path: Path) -> None:
    python_steps.save(tmp_path, python_steps.REPEAT.replace("    for", "    while True: pass\n    for"))
    state, reason = await outcome(tmp_path, warmup_s=1.0)
    assert state == "FAILED"
    assert "did not end within 1 s" in reason


async def test_a_declared_warm_up_is_what_the_step_gets(tmp_path: Path) -> None:
    source = python_steps.DOUBLE.replace("    return", "    assert inputs['X'].tolist() == [[7, 7]]\n    return")
    python_steps.save(tmp_path, source, toml="[warmup]\nX = { shape = [1, 2], value = 7 }\n")
    assert await outcome(tmp_path) == ("READY", "")


async def test_a_step_written_anew_takes_over(tmp_path: Path) -> None:
    path = python_steps.save(tmp_path, python_steps.DOUBLE)
    async with Loaded(tmp_path).running() as loaded:
        await loaded.settled()
        assert await doubled(loaded, (1, 1)) == [[2, 2]]
        path.write_text(python_steps.DOUBLE.replace("* 2", "* 3"))
        await soon(loaded.control.load("step"))
        assert await doubled(loaded, (1, 1)) == [[3, 3]]


async def test_a_step_that_ends_its_process_is_quarantined_in_the_end(tmp_path: Path) -> None:
    python_steps.save(
        tmp_path, "import os\n" + python_steps.DOUBLE.replace("    return", "    os._exit(3)\n    return")
    )
    state, reason = await outcome(tmp_path, crash_limit=2)
    assert state == "QUARANTINED"
    assert "exited with status 3" in reason


async def test_secrets_of_the_agent_are_not_in_the_steps_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_BUS__TOKEN", "secret")
    source = "import os\nassert not [name for name in os.environ if name.startswith('MESH_')]\n" + python_steps.DOUBLE
    python_steps.save(tmp_path, source)
    assert await outcome(tmp_path) == ("READY", "")
