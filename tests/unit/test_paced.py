"""The paced device: real answers after the time that a profile says, slower while a file says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardware import fakes
from hardware.fakes.paced import PROFILES, SLOWDOWN, held_ms, slowdown
from tests.bench.reality.models import Model, write_repository

SITE = Path(fakes.__file__).parent / "site_paced"
RUN = """
import json, sys, time
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
found = []
for rows in map(int, sys.argv[2:]):
    x = np.full((rows, 8), 2.0, np.float32)
    began = time.monotonic()
    (y,) = session.run(None, {"x": x})
    found.append([(time.monotonic() - began) * 1e3, y.tolist()])
print(json.dumps([hasattr(onnxruntime, "__fake__"), found]))
"""


def run(folder: Path, environ: dict[str, str], *rows: int) -> list[list[object]]:
    """Duration in ms and answer of a run of each of so many rows, in a process with the paced device."""
    model = folder / "detect" / "1" / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(model), *map(str, rows)],
        env={**os.environ, "PYTHONPATH": str(SITE), "ORT_DISABLE_TELEMETRY": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    fake, found = json.loads(done.stdout)
    assert fake
    return list(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models", {Model("detect", 8, 2): (40.0, 30.0, 4)})


def test_a_run_lasts_as_the_profile_says_and_answers_what_the_model_says(folder: Path) -> None:
    one, three = run(folder, {PROFILES: json.dumps({"detect": [40.0, 30.0]})}, 1, 3)
    assert one[1] == [[3.0, 3.0]]
    assert three[1] == [[3.0, 3.0]] * 3
    assert float(str(one[0])) >= 70.0
    assert float(str(three[0])) >= 130.0


def test_a_model_without_a_profile_is_not_held(folder: Path) -> None:
    runs = run(folder, {PROFILES: json.dumps({"other": [5_000.0, 0.0]})}, 1)
    assert float(str(runs[0][0])) < 5_000.0


def test_a_file_slows_the_runs_that_begin_in_its_span(folder: Path) -> None:
    path = folder / "slow"
    path.write_text(f"{time.monotonic() - 1.0} {time.monotonic() + 600.0} 5.0")
    (slowed,) = run(folder, {PROFILES: json.dumps({"detect": [20.0, 20.0]}), SLOWDOWN: str(path)}, 1)
    assert float(str(slowed[0])) >= 200.0


def test_a_span_has_an_end_and_no_file_is_no_slowdown(tmp_path: Path) -> None:
    path = tmp_path / "slow"
    assert slowdown(str(path), 5.0) == 1.0
    path.write_text("4 6 3")
    assert [slowdown(str(path), now) for now in (3.9, 4.0, 5.9, 6.0)] == [1.0, 3.0, 3.0, 1.0]
    assert held_ms((8.0, 22.0), 3, 2.0) == 148.0
