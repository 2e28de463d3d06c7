"""The gRPC door in one process with each of the packages that register the package ``inference`` for themselves.

kserve and mlserver are no dependencies, for what they pin does not go together: whoever installs one has its test run.
Not here: the door itself (``test_grpc``).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.interop.beside import THEIRS


@pytest.mark.parametrize("package", THEIRS)
def test_the_door_serves_beside(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    command = [sys.executable, "-m", "tests.interop.beside", THEIRS[package]]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == [2 * n for n in range(16)]
