"""An engine from the build process, run in a process that meets the fakes by PYTHONPATH: values, a crash, a hang.

Not here: workers (the runtimes' suite), builds (``test_engine_build``).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hardware.backend import EngineOptions, ShapeRange
from tests.engine_requests import SITE, Cache
from tests.onnx_models import simple

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import numpy as np
from hardware import cuda, sessions, tensorrt
from hardware.backend import LoadOptions, RawTensor
from hardware.errors import HardwareError
assert cuda.load_cudart().__fake__ and tensorrt.load_trt().__fake__
options = LoadOptions(backend="tensorrt", engine_entry=sys.argv[1], engine_key_file=sys.argv[2])
session = sessions.open_session("", options)
print(session.loaded.effective, session.loaded.batch_limit, flush=True)
for rows in (1, 8):
    data = np.arange(rows * 16, dtype="<i4").tobytes()
    try:
        total, _ = session.run([RawTensor(name, "INT32", (rows, 16), data) for name in ("INPUT0", "INPUT1")], [])
        print(int(np.frombuffer(total.data, "<i4").sum()), flush=True)
    except HardwareError as error:
        print(error.code, flush=True)
session.close()
"""


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Entry and key file of an engine of ``simple`` for 1 to 8 rows."""
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    profile = tuple(ShapeRange(name, (1, 16), (4, 16), (8, 16)) for name in ("INPUT0", "INPUT1"))
    cache = Cache(tmp_path / "cache")
    built = await cache.build(simple(), EngineOptions(profiles=(profile,)))
    assert built.backend == "tensorrt-fake"
    return [built.entry, str(cache.key_file)]


def _start(engine: list[str], **knobs: str) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{SITE}:{ROOT}", **knobs}
    command = [sys.executable, "-c", SCRIPT, *engine]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(engine: list[str], **knobs: str) -> tuple[int, list[str]]:
    with _start(engine, **knobs) as process:
        out, error = process.communicate(timeout=60)
        assert process.returncode <= 0, error
        return process.returncode, out.split()


@pytest.mark.parametrize("knobs", [{}, {"FAKE_CUDA_INTEGRATED": "1"}, {"FAKE_TRT_RUN_S": "0.01"}], ids=json.dumps)
def test_values(engine: list[str], knobs: dict[str, Any]) -> None:
    assert _run(engine, **knobs) == (0, ["tensorrt-fake", "8", "240", "16256"])


@pytest.mark.parametrize(
    ("knob", "value", "answers", "code"),
    [
        ("FAKE_TRT_SEGFAULT_AT", "2", ["240"], -signal.SIGSEGV),
        ("FAKE_TRT_STICKY_AT", "1", ["device_fault", "device_fault"], 0),
        ("FAKE_TRT_STICKY_AT", "2", ["240", "device_fault"], 0),
        ("FAKE_TRT_FAIL", "execute_async_v3:1", ["run_failed", "16256"], 0),
        ("FAKE_CUDA_FAIL", "cudaEventSynchronize:2:2", ["240", "out_of_memory"], 0),
    ],
)
def test_misbehaviour(engine: list[str], knob: str, value: str, answers: list[str], code: int) -> None:
    assert _run(engine, **{knob: value}) == (code, ["tensorrt-fake", "8", *answers])


def test_a_hang(engine: list[str]) -> None:
    with _start(engine, FAKE_TRT_HANG_AT="2") as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["tensorrt-fake 8", "240"]
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_an_engine_of_another_version(engine: list[str], version: str) -> None:
    with _start(engine, FAKE_TRT_VERSION=version) as process:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "EngineNotBuilt: TensorRT does not take the engine: " in error
