"""Instances and their life: load, warm up, READY; a crash takes them down and brings them back, or to quarantine.

A host is one runtime and the instances that live in it: one for each model, for the whole device, or this process
(``isolation``). READY means that an inference succeeded (DESIGN D9). Not here: the queue (``executor``), files on disk
(``repository``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from edge.executor import Executor, Served
from edge.repository import StoredModel
from edge.settings import ModelsSettings
from edge.warmup import warm_up
from hardware.backend import Loaded, LoadOptions
from hardware.errors import HardwareError, WorkerDied
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from hardware.worker_runtime import WorkerRuntime
from mesh.lifecycle import Tasks, within
from mesh.messages import ModelLoad
from mesh.values import InstanceState, ModelIdentity

log = logging.getLogger(__name__)

CRASH_WINDOW_S = 60.0
RESTART_MIN_S = 0.1
RESTART_MAX_S = 10.0


@dataclass(slots=True)
class Instance:
    """One loaded copy of a version on this node's device."""

    stored: StoredModel
    served: Served
    state: InstanceState = "LOADING"
    reason: str = ""
    loaded: Loaded | None = None
    crashes: deque[float] = field(default_factory=deque)

    @property
    def identity(self) -> ModelIdentity:
        return self.stored.identity

    def report(self) -> ModelLoad:
        identity, served = self.identity, self.served
        return ModelLoad(
            identity.name, identity.version, identity.digest, self.state, served.in_flight, served.service_ms,
            self.stored.config.deadline_ms, self.reason,
        )  # fmt: skip

    def coming(self) -> bool:
        return self.state in ("LOADING", "BUILDING", "WARMING")


class Host:
    """One runtime, kept alive; its loop ends only when nothing is left that could be served."""

    def __init__(
        self,
        name: str,
        instances: list[Instance],
        settings: ModelsSettings,
        executor: Executor,
        on_change: Callable[[], None],
    ) -> None:
        self._name = name
        self._instances = instances
        self._settings = settings
        self._executor = executor
        self._on_change = on_change
        self._coming: Instance | None = None
        """The one that is being loaded and warmed up."""

    async def run(self) -> None:
        backoff_s = RESTART_MIN_S
        while wanted := [i for i in self._instances if i.state not in ("FAILED", "QUARANTINED")]:
            started = time.monotonic()
            reason, culprits = await self._serve(wanted)
            log.error("worker %s died: %s", self._name, reason)
            self._note_crash(wanted, culprits, reason)
            backoff_s = (
                RESTART_MIN_S if time.monotonic() - started > CRASH_WINDOW_S else min(backoff_s * 2, RESTART_MAX_S)
            )
            await asyncio.sleep(backoff_s)

    async def _serve(self, wanted: list[Instance]) -> tuple[str, list[Instance]]:
        """The life of one runtime: why it died, and what it was doing then."""
        try:
            runtime = await self._open()
        except HardwareError as error:
            return error.text, wanted
        died: asyncio.Future[tuple[str, list[Instance]]] = asyncio.get_running_loop().create_future()

        def on_death(reason: str) -> None:  # told before the runs in it fail, while it is still known who ran
            if not died.done():
                died.set_result((reason, self._culprits(wanted, runtime)))

        runtime.on_death = on_death
        try:
            for instance in wanted:
                self._coming = instance
                if not await self._bring_up(instance, runtime):
                    break
            self._coming = None
            return await died
        finally:
            self._coming = None
            for instance in wanted:
                instance.served.runtime = None
            self._executor.lost(runtime)
            await runtime.close()

    def _culprits(self, instances: list[Instance], runtime: Runtime) -> list[Instance]:
        """Who may have crashed the runtime: the oldest run in it, and what was being loaded; the others only waited."""
        if len(instances) == 1:
            return instances
        ran = self._executor.oldest(runtime)
        return [i for i in instances if i is self._coming or i.served is ran]

    async def _open(self) -> Runtime:
        runtime = InlineRuntime() if self._settings.isolation == "none" else WorkerRuntime()
        await runtime.start()
        return runtime

    async def _bring_up(self, instance: Instance, runtime: Runtime) -> bool:
        """False if that was the end of the runtime."""
        settings, config = self._settings, instance.stored.config
        options = LoadOptions(
            backend=config.backend or settings.backend,
            threads=settings.run_threads(),
            allow_cpu=settings.allow_cpu,
            max_model_bytes=settings.max_file_bytes,
        )
        try:
            self._set(instance, "LOADING")
            instance.loaded = await runtime.load(instance.served.key, os.fspath(instance.stored.path), options)
            self._set(instance, "WARMING")
            warming = warm_up(runtime, instance.served.key, instance.loaded, config)
            instance.served.service_ms = await within(settings.warmup_s, warming)
        except WorkerDied:
            return False  # the host's loop sees the death itself
        except asyncio.TimeoutError:
            self._set(instance, "FAILED", f"its warm-up inference did not end within {settings.warmup_s:g} s")
            _end(runtime, instance.served.key)
            return False
        except HardwareError as error:
            log.error("model %s cannot be served: %s", instance.served.key, error.text)
            self._set(instance, "FAILED", error.text)
            return True
        instance.served.runtime = runtime
        degraded = f"degraded: runs on {instance.loaded.effective}, {instance.loaded.requested} was asked for"
        self._set(instance, "READY", "" if instance.loaded.effective == instance.loaded.requested else degraded)
        return True

    def _note_crash(self, instances: list[Instance], culprits: list[Instance], reason: str) -> None:
        """Who crashes the worker too often is quarantined, the others come back."""
        now = time.monotonic()
        for instance in [i for i in culprits if i.state != "FAILED"]:
            instance.crashes.append(now)
            while instance.crashes[0] < now - CRASH_WINDOW_S:
                instance.crashes.popleft()
            if len(instance.crashes) >= self._settings.crash_limit:
                text = f"its worker died {len(instance.crashes)} times within a minute, last: {reason}"
                log.error("model %s is quarantined: %s", instance.served.key, text)
                self._set(instance, "QUARANTINED", text)
        for instance in instances:
            if instance.state not in ("FAILED", "QUARANTINED"):
                self._set(instance, "LOADING", reason)

    def _set(self, instance: Instance, state: InstanceState, reason: str = "") -> None:
        instance.state, instance.reason = state, reason
        self._on_change()


class Instances:
    """All instances of this node. ``on_change`` is called at every change of a state."""

    def __init__(self, stored: list[StoredModel], settings: ModelsSettings, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self.executor = Executor(
            concurrency=settings.concurrency,
            queue_limit=settings.queue_limit,
            hang_s=settings.hang_s,
            on_hang=_end,
        )
        self._by_name: dict[str, list[Instance]] = {}
        self._by_version: dict[tuple[str, str], Instance] = {}
        for model in stored:
            identity = model.identity
            instance = Instance(model, Served(f"{identity.name}/{identity.version}"))
            if model.rejected:
                instance.state, instance.reason = "FAILED", model.rejected
                log.error("model %s cannot be served: %s", instance.served.key, model.rejected)
            self._by_name.setdefault(identity.name, []).append(instance)
            self._by_version[identity.name, identity.version] = instance

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Instances]:
        async with Tasks("instances") as tasks:
            for name, group in self._hosts().items():
                tasks.start(Host(name, group, self._settings, self.executor, self._on_change).run(), name)
            try:
                yield self
            finally:
                self.executor.close()

    def all(self) -> list[Instance]:
        return [i for group in self._by_name.values() for i in group]

    def named(self, name: str) -> list[Instance]:
        return self._by_name.get(name, [])

    def find(self, name: str, version: str) -> Instance | None:
        """The instance of a version; of the default version (the latest that is not FAILED) for an empty one."""
        if version:
            return self._by_version.get((name, version))
        for instance in reversed(self._by_name.get(name, ())):
            if instance.state not in ("FAILED", "QUARANTINED"):
                return instance
        return None

    def _hosts(self) -> dict[str, list[Instance]]:
        wanted = [i for i in self.all() if i.state != "FAILED"]
        if self._settings.isolation == "model":
            return {i.served.key: [i] for i in wanted}
        return {self._settings.isolation: wanted} if wanted else {}


def _end(runtime: Runtime, key: str) -> None:
    """Only the death of the process ends a run that hangs; its host starts another."""
    if isinstance(runtime, WorkerRuntime):
        log.error("model %s hangs, its worker is killed", key)
        runtime.kill()
    else:
        log.error("model %s hangs, and without isolation nothing can end it; restart this agent", key)
