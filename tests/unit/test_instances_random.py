"""Anything may happen to instances in any order, and afterwards nothing is left running and nothing counted twice.

Loads and unloads by name whose callers leave, workers that are killed or stopped, requests that hang, agents that are
left in the midst of it: drawn by a seeded generator, on real workers. Not here: the queue (``test_executor_random``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import psutil
import pytest

import hardware.fakes
from hardware.worker_runtime import WorkerRuntime
from mesh.deadline import Deadline
from mesh.errors import MeshError
from tests import onnx_models
from tests.contract.tensors import ENDLESS, int64
from tests.fakes import until
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

SITE = Path(hardware.fakes.__file__).parent / "site"
NAMES = "abc"
STEPS = 25
CHAIN = 'backends = ["tensorrt", "onnxruntime-cpu"]\n'


class Chaos:
    def __init__(self, loaded: Loaded, random: random.Random) -> None:
        self._loaded = loaded
        self._random = random
        self._left: list[asyncio.Task[Any]] = []

    async def step(self) -> None:
        name = self._random.choice(NAMES)
        await self._random.choice(
            [
                self._load,
                self._load,
                self._load,
                self._unload,
                self._kill,
                self._stop,
                self._ask,
                self._hang,
                self._leave,
            ]
        )(name)
        await asyncio.sleep(self._random.choice([0.0, 0.0, 0.01, 0.1, 0.4]))

    async def end(self) -> None:
        await asyncio.sleep(0)
        for task in self._left:
            task.cancel()
        if self._left:
            await soon(asyncio.wait(self._left))

    def _begin(self, work: Awaitable[Any]) -> None:
        async def attempt() -> None:
            with contextlib.suppress(MeshError):
                await work

        self._left.append(asyncio.ensure_future(attempt()))

    async def _load(self, name: str) -> None:
        self._begin(self._loaded.control.load(name))

    async def _unload(self, name: str) -> None:
        self._begin(self._loaded.control.unload(name))

    async def _leave(self, name: str) -> None:
        if self._left:
            self._random.choice(self._left).cancel()

    async def _kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)

    async def _stop(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)

    async def _ask(self, name: str) -> None:
        self._infer(name, 0)

    async def _hang(self, name: str) -> None:
        self._infer(name, ENDLESS)

    def _infer(self, name: str, count: int) -> None:
        found = self._loaded.instances.find(name, "")
        if found is not None:
            inputs = [int64("N", count)]
            work = self._loaded.instances.executor.infer(found.served, inputs, (), Deadline.after_ms(300), 0)
            self._begin(work)

    def _signal(self, name: str, number: int) -> None:
        found = self._loaded.instances.find(name, "")
        runtime = None if found is None else found.served.runtime
        if isinstance(runtime, WorkerRuntime) and runtime.alive:
            os.kill(runtime.pid, number)


def processes() -> list[str]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # one that ends at this moment
            found.append(" ".join(child.cmdline()))
    return found


@pytest.mark.parametrize("isolation", ["model", "device"])
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_nothing_is_left_and_what_is_wanted_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: str, seed: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    (tmp_path / "state").mkdir()
    models = repository(
        tmp_path / "models",
        dict.fromkeys(NAMES, onnx_models.loop()),
        {"a": CHAIN, "b": "instances = 2\n"},
    )
    loaded = Loaded(
        models, parts={"folder": tmp_path / "state"}, isolation=isolation, control="explicit", concurrency=2,
        hang_s=0.3, warmup_s=20.0, watchdog_s=0.3, watchdog_limit_s=0.5, drain_s=0.5, quarantine_s=0.5,
    )  # fmt: skip
    tasks = asyncio.all_tasks()
    async with loaded.running():
        chaos = Chaos(loaded, random.Random(seed))
        for _ in range(STEPS):
            await chaos.step()
        await chaos.end()
        for name in NAMES:
            await soon(_until_loaded(loaded, name))
        assert [i.identity.name for i in loaded.instances.all()] == list(NAMES)
        for name in NAMES:
            served = loaded.get(name).served
            await until(lambda: served.in_flight == 0)  # noqa: B023 - awaited here; the watchdog may be asking
            assert served.tally.quarantines <= served.tally.worker_deaths
        assert len([p for p in processes() if "hardware.worker" in p]) == (3 if isolation == "model" else 1)
        for _ in range(3):  # and leave in the midst
            await chaos.step()
        await chaos.end()
    assert processes() == []
    assert asyncio.all_tasks() == tasks


async def _until_loaded(loaded: Loaded, name: str) -> None:
    """It may have to wait for the end of a quarantine, or of a worker that was stopped."""
    while True:
        with contextlib.suppress(MeshError):
            await loaded.control.load(name)
            served = loaded.get(name).served
            inputs = [int64("N", 0)]
            await loaded.instances.executor.infer(served, inputs, (), Deadline.after_ms(5_000), 0)
            return
        await asyncio.sleep(0.1)
