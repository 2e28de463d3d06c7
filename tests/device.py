"""A device queue on a runtime whose runs end when the test says so: what the executor's tests are made of."""

from __future__ import annotations

import asyncio
import time

import pytest

from edge.executor import Executor, Served
from hardware.backend import RawTensor
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import MeshError
from tests.fakes import ScriptedRuntime
from tests.nats import soon

ANSWER = [RawTensor("Y", "UINT8", (1,), b"\x07")]


class Device:
    """An executor with one scripted runtime, and what it was told of hangs."""

    def __init__(self, *, concurrency: int = 1, queue_limit: int = 16, hang_s: float = 60.0) -> None:
        self.runtime = ScriptedRuntime()
        self.hangs: list[str] = []
        self.hung = asyncio.Event()
        self.executor = Executor(concurrency=concurrency, queue_limit=queue_limit, hang_s=hang_s, on_hang=self._on_hang)
        self._served: dict[str, Served] = {}

    def _on_hang(self, runtime: Runtime, key: str) -> None:
        self.hangs.append(key)
        self.hung.set()

    def served(self, key: str = "m", service_ms: float = 0.0) -> Served:
        return self._served.setdefault(key, Served(key, self.runtime, service_ms))

    async def ask(
        self, key: str = "m", *, left_ms: float = 60_000.0, priority: int = 0, service_ms: float = 0.0
    ) -> asyncio.Task[list[RawTensor]]:
        """Admit one; returns once it runs, waits, or is refused."""
        served = self.served(key, service_ms)
        work = self.executor.infer(served, [], [], Deadline.after_ms(left_ms), priority)
        task = asyncio.get_running_loop().create_task(work)
        await settle()
        return task

    def nothing_left(self) -> None:
        assert self.executor.in_flight == 0
        assert self.executor.wait_ms() == 0.0
        assert all(served.in_flight == 0 for served in self._served.values())


async def settle() -> None:
    """Let everything that is ready to run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def failure(task: asyncio.Task[list[RawTensor]]) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await soon(task)
    return caught.value


async def leave(*tasks: asyncio.Task[list[RawTensor]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def hold_up_the_loop(seconds: float) -> None:
    time.sleep(seconds)
