"""A device queue on a runtime whose runs end when the test says so: what the executor's tests are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from edge.batching import Batching
from edge.executor import Executor
from edge.latency import Shapes
from edge.served import Served
from hardware.backend import RawTensor
from hardware.runtime import Runtime
from mesh.deadline import Deadline
from mesh.errors import MeshError
from tests.fakes import ScriptedRuntime
from tests.nats import soon

ANSWER = [RawTensor("Y", "UINT8", (1,), b"\x07")]
WIDTH = 2
"""Bytes of a row of :func:`rows`."""

Task = asyncio.Task[list[RawTensor]]


def rows(*values: int, name: str = "X", width: int = WIDTH) -> list[RawTensor]:
    """A request of one row for each of ``values``, which fills it."""
    return [RawTensor(name, "UINT8", (len(values), width), b"".join([bytes([v]) * width for v in values]))]


def answer(inputs: Sequence[RawTensor]) -> list[RawTensor]:
    """What a model that gives back its rows would say."""
    tensor = inputs[0]
    return [RawTensor("Y", tensor.datatype, tensor.shape, tensor.whole)]


def values_of(outputs: Sequence[RawTensor]) -> list[int]:
    """The first byte of each row of an :func:`answer`."""
    return list(bytes(outputs[0].whole)[:: outputs[0].shape[1]])


class Device:
    """An executor with one scripted runtime, and what it was told of hangs."""

    def __init__(self, *, concurrency: int = 1, queue_limit: int = 16, hang_s: float = 60.0) -> None:
        self.runtime = ScriptedRuntime()
        self.hangs: list[str] = []
        self.hung = asyncio.Event()
        self._concurrency = concurrency
        self.executor = Executor(concurrency=concurrency, queue_limit=queue_limit, hang_s=hang_s, on_hang=self._on_hang)
        self._served: dict[str, Served] = {}

    def _on_hang(self, runtime: Runtime, served: Served) -> None:
        self.hangs.append(served.name)
        self.hung.set()

    def served(
        self, name: str = "m", service_ms: float = 0.0, *, max_rows: int = 1, delay_ms: float = 0.0, priority: int = 0,
        instances: int = 0, row_ms: float | None = None,
    ) -> Served:  # fmt: skip
        """What ``name`` is; made on first use. A row more costs ``row_ms``, by default a tenth of the first.

        It has as many ``instances`` as the device has places, or so many.
        """
        if name not in self._served:
            batching = Batching(max_rows, delay_ms)
            served = Served(name, name, self.runtime, instances or self._concurrency, priority, batching)
            if service_ms > 0.0:
                shapes: Shapes = ((WIDTH,),) if max_rows > 1 else ()
                row_ms = service_ms / 10 if row_ms is None else row_ms
                served.latency.measured(shapes, [(n, service_ms + row_ms * (n - 1)) for n in (1, 2, 4, 8, 16)])
                served.shapes = shapes
            self._served[name] = served
        return self._served[name]

    async def ask(
        self, name: str = "m", *, left_ms: float = 60_000.0, priority: int = 0, service_ms: float = 0.0,
        inputs: Sequence[RawTensor] = (), outputs: Sequence[str] = (),
    ) -> Task:  # fmt: skip
        """Admit one; returns once it runs, waits, or is refused."""
        task = self.start(
            name, left_ms=left_ms, priority=priority, service_ms=service_ms, inputs=inputs, outputs=outputs
        )
        await settle()
        return task

    def start(
        self, name: str = "m", *, left_ms: float = 60_000.0, priority: int = 0, service_ms: float = 0.0,
        inputs: Sequence[RawTensor] = (), outputs: Sequence[str] = (),
    ) -> Task:  # fmt: skip
        """As :meth:`ask`, but it has not been admitted yet."""
        served = self.served(name, service_ms)
        work = self.executor.infer(served, inputs, outputs, Deadline.after_ms(left_ms), priority)
        return asyncio.get_running_loop().create_task(work)

    async def end(self, number: int) -> None:
        """End a run with what the identity of its inputs is."""
        self.runtime.end(number, answer(self.runtime.inputs[number]))
        await settle()

    def rows_of(self, number: int) -> int:
        """Rows of a run."""
        return self.runtime.inputs[number][0].shape[0]

    def nothing_left(self) -> None:
        assert self.executor.in_flight == 0
        assert self.executor.forecast.wait_ms() == 0.0
        assert all(served.in_flight == served.running == 0 for served in self._served.values())


async def settle() -> None:
    """Let everything that is ready to run do so."""
    for _ in range(6):
        await asyncio.sleep(0)


async def failure(task: Task) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await soon(task)
    return caught.value


async def leave(*tasks: Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await settle()
