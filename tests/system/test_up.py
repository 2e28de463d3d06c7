"""``mesh up``: one line when everything is ready, nothing left when it ends, however it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from mesh.child import tied
from mesh.client import Client
from tests import onnx_models
from tests.integration.doors import repository
from tests.mqtt import Device
from tests.system.processes import PATIENCE_S, ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Up:
    process: asyncio.subprocess.Process
    url: str
    family: list[psutil.Process]
    """Everything it started, and what that started."""

    def alive(self) -> list[str]:
        return [" ".join(p.cmdline()) for p in psutil.wait_procs(self.family, timeout=PATIENCE_S)[1]]


@pytest_asyncio.fixture(loop_scope="module")
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    models = repository(tmp_path, {"sum": onnx_models.add()})
    asked = ["up", "--agents", "2", "--models", str(models), "--http", "0", "--mqtt", "127.0.0.1:0"]
    pipe = asyncio.subprocess.PIPE
    command = tied([sys.executable, "-m", "mesh.cli", *asked])
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()
        assert line.startswith("ready http://127.0.0.1:")
        family = psutil.Process(process.pid).children(recursive=True)
        yield Up(process, line.split()[1], family)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE_S)


async def test_devices_ask_by_mqtt(up: Up) -> None:
    assert up.process.stderr is not None
    said = (await asyncio.wait_for(up.process.stderr.readline(), PATIENCE_S)).decode()
    found = re.fullmatch(r"MQTT at 127\.0\.0\.1:(\d+): any user, password (\w+)\n", said)
    assert found is not None, said
    async with Device(int(found[1]), "camera", "mesh/default/result/#", found[2]) as device:
        topic, result = await device.ask("mesh/default/infer/sum/7", np.ones((1, 16), np.float32).tobytes())
    assert (topic, result["id"]) == ("mesh/default/result/sum/7", "7")
    assert np.ravel(result["outputs"][0]["data"]).tolist() == [2.0] * 16


async def test_it_serves_and_stops_everything_on_ctrl_c(up: Up) -> None:
    async with Client(up.url) as client:
        x = np.ones((1, 16), dtype=np.float32)
        result = await client.infer("sum", {"X": x})
        assert (result["Y"].tolist(), result.route) == ((2 * x).tolist(), "peer")
        rows = {row["node"]: row["state"] for row in await client.nodes()}
    assert rows == {"router": "ready", "agent-1": "ready", "agent-2": "ready"}
    assert len(up.family) == 6  # bus, router, two agents with a worker each
    os.kill(up.process.pid, signal.SIGINT)
    assert await asyncio.wait_for(up.process.wait(), PATIENCE_S) == 0
    assert await asyncio.to_thread(up.alive) == []


async def test_nothing_outlives_it_when_it_is_killed(up: Up) -> None:
    up.process.kill()
    await up.process.wait()
    assert await asyncio.to_thread(up.alive) == []
