"""The runtimes that the contract of ``hardware.runtime`` is checked on. Not here: buses, the contract itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from hardware.backend import Loaded, LoadOptions
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime

OPTIONS = WorkerOptions(slots=4, slot_bytes=16 * 1024 * 1024, close_grace_s=0.5)


class WorkerWithInstances(WorkerRuntime):
    async def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        return await super().load(key, path, replace(options, instances=3))


class InlineWithInstances(InlineRuntime):
    async def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        return await super().load(key, path, replace(options, instances=3))


@pytest.fixture(params=["worker", "inline", "worker, 3 instances", "inline, 3 instances"])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    runtimes: dict[str, AbstractAsyncContextManager[Runtime]] = {
        "worker": WorkerRuntime(OPTIONS),
        "inline": InlineRuntime(),
        "worker, 3 instances": WorkerWithInstances(OPTIONS),
        "inline, 3 instances": InlineWithInstances(),
    }
    async with runtimes[request.param] as runtime:
        yield runtime
