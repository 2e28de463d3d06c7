"""The instances that a model repository becomes, for tests of the agent's parts. Not here: whole agents (``doors``)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from edge.control import Control
from edge.instance import Instance
from edge.instances import Instances
from edge.settings import ModelsSettings
from hardware.runtime import Runtime
from mesh.messages import ModelLoad
from tests.fakes import until
from tests.nats import soon


class Loaded:
    """Instances of a repository on this machine's CPU; every state they go through is kept, and can be awaited."""

    def __init__(self, folder: Path, *, parts: Mapping[str, Any] | None = None, **settings: Any) -> None:
        """``parts`` are what ``Instances`` may be given in place of the real ones."""
        self.settings = ModelsSettings(dir=folder, threads=1, **settings)
        self.history: dict[str, list[str]] = {}
        """States by name of the model."""
        self.seen: dict[str, list[str]] = {}
        """And by name and version."""
        self._parts = {"linger_s": 0.0} | dict(parts or {})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Loaded]:
        self.instances = Instances(self.settings, self._on_change, **self._parts)
        async with self.instances.running():
            self.control = Control(self.settings, self.instances)
            async with self.control.running():
                yield self

    def _on_change(self) -> None:
        for instance in self.instances.all():
            of_model = self.history.setdefault(instance.identity.name, [])
            for seen in (of_model, self.seen.setdefault(instance.name, [])):
                if seen[-1:] != [instance.state]:
                    seen.append(instance.state)

    def get(self, name: str) -> Instance:
        found = self.instances.find(name, "1")
        assert found is not None
        return found

    def report(self, name: str) -> ModelLoad:
        return self.get(name).report(*self.instances.costs(self.get(name)))

    def runtime(self, name: str) -> Runtime:
        found = self.get(name).served.runtime
        assert found is not None
        return found

    def kill(self, name: str) -> None:
        """SIGKILL the worker of a model."""
        os.kill(self.runtime(name).pid, signal.SIGKILL)

    async def until_change(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds after a change of some state."""

        await soon(self.instances.changed.until(condition))

    async def until_state(self, name: str, state: str) -> Instance:
        await self.until_change(lambda: self.get(name).state == state)
        return self.get(name)

    async def until_running(self, name: str) -> None:
        """Wait until a run of the model is in its runtime: nothing tells of that moment."""
        await until(lambda: self.instances.executor.oldest(self.runtime(name)) is self.get(name).served)

    async def settled(self) -> None:
        """Wait until nothing is on its way any more."""
        await self.until_change(lambda: not any(i.coming() for i in self.instances.all()))
