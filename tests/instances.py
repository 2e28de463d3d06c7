"""The instances that a model repository becomes, for tests of the agent's parts. Not here: whole agents (``doors``)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from edge.instances import Instance, Instances
from edge.repository import scan
from edge.settings import ModelsSettings
from hardware.runtime import Runtime
from tests.fakes import until
from tests.nats import soon


class Loaded:
    """Instances of a repository on this machine's CPU; every state they go through is kept, and can be awaited."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = ModelsSettings(dir=folder, threads=1, **settings)
        self.history: dict[str, list[str]] = {}
        self._folder = folder
        self._moved = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Loaded]:
        stored = await asyncio.to_thread(scan, self._folder, self.settings.max_file_bytes)
        self.instances = Instances(stored, self.settings, self._on_change)
        self._on_change()
        async with self.instances.running():
            yield self

    def _on_change(self) -> None:
        for instance in self.instances.all():
            seen = self.history.setdefault(instance.identity.name, [])
            if seen[-1:] != [instance.state]:
                seen.append(instance.state)
        self._moved.set()

    def get(self, name: str) -> Instance:
        found = self.instances.find(name, "1")
        assert found is not None
        return found

    def runtime(self, name: str) -> Runtime:
        found = self.get(name).served.runtime
        assert found is not None
        return found

    async def until_change(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds after a change of some state."""

        async def wait() -> None:
            while not condition():
                self._moved.clear()
                await self._moved.wait()

        await soon(wait())

    async def until_state(self, name: str, state: str) -> Instance:
        await self.until_change(lambda: self.get(name).state == state)
        return self.get(name)

    async def until_running(self, name: str) -> None:
        """Wait until a run of the model is in its runtime: nothing tells of that moment."""
        await until(lambda: self.instances.executor.oldest(self.runtime(name)) is self.get(name).served)

    async def settled(self) -> None:
        """Wait until nothing is on its way any more."""
        await self.until_change(lambda: not any(i.coming() for i in self.instances.all()))
