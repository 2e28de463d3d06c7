"""The watchdog on real workers: it asks who is idle, restarts who does not answer, and leaves traffic alone."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from edge.watchdog import is_due
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from tests import onnx_models
from tests.contract.tensors import ENDLESS, int64
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon


async def infer(loaded: Loaded, name: str, inputs: list[RawTensor]) -> list[RawTensor]:
    served = loaded.get(name).served
    return await loaded.instances.executor.infer(served, inputs, (), Deadline.after_ms(60_000), 0)


async def test_an_idle_model_is_asked_again_and_again_and_stays_ready(tmp_path: Path) -> None:
    repository(tmp_path, {"m": onnx_models.add()})
    async with Loaded(tmp_path, watchdog_s=0.05).running() as loaded:
        await loaded.settled()
        while loaded.get("m").served.completed < 3:
            await asyncio.sleep(0.02)
        assert loaded.history["m"] == ["LOADING", "WARMING", "READY"]
        assert loaded.get("m").asked_at == 0.0  # nobody asked for it


async def test_a_worker_that_hangs_while_idle_is_killed_and_comes_back(tmp_path: Path) -> None:
    repository(tmp_path, {"stuck": onnx_models.add(), "other": onnx_models.add()})
    async with Loaded(tmp_path, watchdog_s=0.2, watchdog_limit_s=0.5, hang_s=600.0).running() as loaded:
        await loaded.settled()
        other = loaded.runtime("other")
        os.kill(loaded.runtime("stuck").pid, signal.SIGSTOP)
        await loaded.until_change(lambda: "watchdog" in loaded.get("stuck").reason)
        assert loaded.get("stuck").state == "LOADING"
        await loaded.until_state("stuck", "READY")
        assert loaded.runtime("other") is other


async def test_who_hangs_again_and_again_is_quarantined(tmp_path: Path) -> None:
    repository(tmp_path, {"stuck": onnx_models.add()})
    async with Loaded(tmp_path, watchdog_s=0.1, watchdog_limit_s=0.3, crash_limit=2).running() as loaded:
        for _ in range(2):
            await loaded.settled()
            runtime = loaded.runtime("stuck")
            os.kill(runtime.pid, signal.SIGSTOP)
            await loaded.until_change(lambda: loaded.get("stuck").served.runtime is not runtime)  # noqa: B023
        quarantined = await loaded.until_state("stuck", "QUARANTINED")
        assert "2 times within a minute" in quarantined.reason
        assert "did not answer the watchdog" in quarantined.reason


async def test_a_model_that_only_waits_for_others_is_not_to_blame(tmp_path: Path) -> None:
    repository(tmp_path, {"busy": onnx_models.loop(), "waits": onnx_models.add()})
    async with Loaded(tmp_path, watchdog_s=0.1, watchdog_limit_s=0.1, hang_s=600.0).running() as loaded:
        await loaded.settled()
        running = asyncio.ensure_future(infer(loaded, "busy", [int64("N", ENDLESS)]))
        await loaded.until_running("busy")
        await asyncio.sleep(1.0)  # enough for some of its questions to expire in the queue
        assert loaded.get("waits").state == "READY"
        assert loaded.history["waits"].count("READY") == 1
        running.cancel()
        await soon(asyncio.wait({running}))


@pytest.mark.parametrize(
    ("state", "in_flight", "last_done", "due"),
    [("READY", 0, 69.0, True), ("READY", 1, 0.0, False), ("READY", 0, 71.0, False), ("LOADING", 0, 0.0, False)],
)
async def test_who_is_due(tmp_path: Path, state: str, in_flight: int, last_done: float, due: bool) -> None:
    repository(tmp_path, {"m": onnx_models.add()})
    async with Loaded(tmp_path, isolation="none").running() as loaded:
        await loaded.settled()
        instance = loaded.get("m")
        instance.state, instance.ready_at = state, 0.0  # type: ignore[assignment]
        instance.served.in_flight, instance.served.last_done, instance.served.last_used = in_flight, last_done, 0.0
        assert is_due(instance, 100.0, 30.0) is due
        instance.served.in_flight = 0
