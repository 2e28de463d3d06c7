"""Closed-loop load for the demonstration: each caller asks, waits for the answer, checks it, and asks again.

No fixed rates: on two cores shared by every node a rate that fits one machine drowns another. Not here: what is asked
(``workloads``), when and at which doors (``run``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np

from mesh.client import Client
from mesh.demo.phases import Phase
from mesh.demo.request import Request
from mesh.demo.workloads import Workload
from mesh.errors import MeshError
from mesh.lifecycle import Tasks


class Caller:
    """An application: it has its own doors, the first its home, and goes through the workloads in turn."""

    def __init__(self, client: Client, workloads: Sequence[Workload], seed: int, deadline_ms: float) -> None:
        self._client = client
        self._workloads = workloads
        self._rng = np.random.default_rng(seed)
        self._deadline_ms = deadline_ms
        self._turn = seed

    async def once(self, phase: Phase) -> None:
        """One request, or all of a stream's."""
        workload = self._workloads[self._turn % len(self._workloads)]
        self._turn += 1
        request: Request | None = await asyncio.to_thread(workload.request, self._rng)
        while request is not None:
            started = time.monotonic()
            try:
                result = await self._client.infer(workload.model, request.inputs, deadline_ms=self._deadline_ms)
            except MeshError as error:
                phase.gave_up(error.code)
                return
            ms = (time.monotonic() - started) * 1e3
            right = request.check(result.outputs)
            phase.answered(workload.name, result.route, ms, right=right)
            request = request.then(result.outputs) if right and request.then is not None else None

    async def until(self, stop: asyncio.Event, phase: Phase) -> None:
        while not stop.is_set():
            await self.once(phase)


@contextlib.asynccontextmanager
async def calling(callers: Sequence[Caller], phase: Phase) -> AsyncIterator[None]:
    """All ``callers`` ask while entered; leaving lets each finish what it asked."""
    stop = asyncio.Event()
    async with Tasks(f"load {phase.name}") as tasks:
        running = [tasks.start(caller.until(stop, phase), str(n)) for n, caller in enumerate(callers)]
        try:
            yield
        finally:
            stop.set()
        await asyncio.gather(*running)
