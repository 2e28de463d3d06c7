"""One runtime kept alive, and the instances in it: loaded in turn, brought back after a death, quarantined for many.

A host has one version, all of the device, or all of this process's (``isolation``). Not here: the steps to READY
(``loading``), which versions there are (``instances``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from edge.executor import Executor
from edge.instance import Instance
from edge.loading import Fatal, Loading
from edge.settings import ModelsSettings
from hardware.errors import HardwareError
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime
from mesh.lifecycle import within

log = logging.getLogger(__name__)

CRASH_WINDOW_S = 60.0
RESTART_MIN_S = 0.1
RESTART_MAX_S = 10.0


@dataclass(slots=True, eq=False)
class Death:
    """Why a runtime ended, and who may have been the cause."""

    reason: str
    culprits: list[Instance]
    fruitless: list[Instance] = field(default_factory=list)
    """Culprits that had not answered anything in this life of the runtime."""
    mended: list[Instance] = field(default_factory=list)
    """Culprits that go on with another backend."""


class Host:
    """Run :meth:`run` in a task and cancel it to close the runtime; instances may come and go meanwhile."""

    def __init__(
        self,
        name: str,
        isolation: str,
        settings: ModelsSettings,
        executor: Executor,
        loading: Loading,
        on_change: Callable[[], None],
    ) -> None:
        self.instances: list[Instance] = []
        self._name = name
        self._isolation = isolation
        self._settings = settings
        self._executor = executor
        self._loading = loading
        self._on_change = on_change
        self._work = asyncio.Event()
        self._runtime: Runtime | None = None
        self._died: asyncio.Future[Death] | None = None
        self._coming: Instance | None = None
        """The one that is being loaded and warmed up."""
        self._step: asyncio.Task[None] | None = None

    def add(self, instance: Instance) -> None:
        self.instances.append(instance)
        self._work.set()

    def look(self) -> None:
        """Something changed that may be work: an engine came."""
        self._work.set()

    async def remove(self, instance: Instance, *, unload: bool) -> None:
        """Take it out, in whatever state; ``unload`` is False where all of the runtime goes in a moment."""
        self.instances.remove(instance)
        if instance is self._coming and self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})
        served, runtime = instance.served, self._runtime
        keys = [served.key if served.runtime is not None else "", instance.spare]
        served.runtime, instance.spare = None, ""
        if unload and runtime is not None and runtime.alive and self.instances:  # the last one takes the runtime along
            for key in filter(None, keys):
                await self._unload(instance, runtime, key)

    async def _unload(self, instance: Instance, runtime: Runtime, key: str) -> None:
        """A run of it that nothing waits for any more may be in the way, and hang."""
        try:
            await within(self._settings.hang_s, runtime.unload(key))
        except HardwareError:
            pass  # a runtime that dies now holds nothing either
        except asyncio.TimeoutError:
            self.end(f"model {instance.name} hung while it was unloaded", instance, requests_only=True)

    def end(self, reason: str, culprit: Instance, *, requests_only: bool) -> None:
        """End the runtime and start another: ``culprit`` cannot be served any more the way it is.

        ``requests_only``: answers to the watchdog do not speak for it.
        """
        if self._died is not None and not self._died.done():
            fruitless = [] if culprit.has_answered(requests_only=requests_only) else [culprit]
            self._died.set_result(Death(reason, [culprit], fruitless))
        if isinstance(self._runtime, WorkerRuntime):
            self._runtime.kill()

    async def run(self) -> None:
        backoff_s = RESTART_MIN_S
        while True:
            await self._until(self._next)
            started = time.monotonic()
            death = await self._serve()
            log.error("worker %s ended: %s", self._name, death.reason)
            self._note_crash(death)
            calm = time.monotonic() - started > CRASH_WINDOW_S
            backoff_s = RESTART_MIN_S if calm else min(backoff_s * 2, RESTART_MAX_S)
            await asyncio.sleep(backoff_s)

    async def _serve(self) -> Death:
        """The life of one runtime: why it ended, and what it was doing then."""
        try:
            runtime = self._runtime = await self._open()
        except HardwareError as error:
            return Death(error.text, [i for i in self.instances if i.coming()])
        died: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self._died = died

        def on_death(reason: str) -> None:  # told before the runs in it fail, while it is still known who ran
            if not died.done():
                died.set_result(self._crash(runtime, reason))

        runtime.on_death = on_death
        try:
            while not died.done():
                self._work.clear()
                instance = self._next()
                if instance is None:
                    await _first(died, self._work.wait())
                else:
                    await self._bring_on(instance, runtime, died)
            self._count(death := died.result())  # before anything is awaited, for they may leave then
            return death
        finally:
            await self._close(runtime)

    async def _bring_on(self, instance: Instance, runtime: Runtime, died: asyncio.Future[Death]) -> None:
        """One step of loading; the end of the runtime ends it too."""
        self._coming = instance
        step = self._loading.engine_came if instance.engine_came else self._loading.bring_up
        self._step = asyncio.ensure_future(step(instance, runtime))
        try:
            await asyncio.wait({self._step})
        finally:
            if not self._step.done():
                self._step.cancel()
                await asyncio.wait({self._step})
            self._coming = None
        error = None if self._step.cancelled() else self._step.exception()
        if error is None:
            return
        if not isinstance(error, Fatal):
            log.error("model %s cannot be loaded", instance.name, exc_info=error)
            instance.becomes("FAILED", "it cannot be loaded for an unexpected error, see the log of this node")
            self._on_change()
            return
        if not error.died and not died.done():
            died.set_result(Death(error.text, [instance]))
        death = await died
        if instance in death.culprits and self._loading.blame(instance, error):
            death.mended.append(instance)

    def _next(self) -> Instance | None:
        """Whose turn it is to be loaded, or to take over its engine."""
        for instance in self.instances:
            waits = instance.state == "BUILDING" and not instance.engine_came
            if (instance.coming() and not waits) or (instance.state == "READY" and instance.engine_came):
                return instance
        return None

    async def _until(self, condition: Callable[[], Instance | None]) -> None:
        while condition() is None:
            self._work.clear()
            await self._work.wait()

    async def _open(self) -> Runtime:
        if self._isolation == "none":
            inline = InlineRuntime()
            await inline.start()
            return inline
        # The executor hands over so many at most; and versions with more instances may come later.
        streams = max((i.served.instances for i in self.instances if i.stored.is_step), default=0)
        slots = max(WorkerOptions().slots, self._settings.concurrency, streams)
        worker = WorkerRuntime(WorkerOptions(slots=slots))
        await worker.start()
        return worker

    async def _close(self, runtime: Runtime) -> None:
        for instance in self.instances:
            instance.served.runtime, instance.spare = None, ""
        self._executor.lost(runtime)
        if self._died is not None and self._died.done() and isinstance(runtime, WorkerRuntime):
            runtime.kill()  # what hangs would not close
        self._runtime = self._died = None
        closing = asyncio.ensure_future(runtime.close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:  # who cancels may do so while it closes already, and counts on it being gone
            await closing
            raise

    def _crash(self, runtime: Runtime, reason: str) -> Death:
        """Blames the oldest run in the runtime, and what was being loaded; the others only waited."""
        ran = self._executor.oldest(runtime)
        alone = len(self.instances) == 1
        culprits = [i for i in self.instances if alone or i is self._coming or i.served is ran]
        fruitless = [i for i in culprits if i.served is ran and not i.has_answered(requests_only=True)]
        return Death(reason, culprits, fruitless)

    def _count(self, death: Death) -> None:
        for culprit in death.culprits:
            culprit.served.tally.worker_deaths += 1
        for instance in self.instances:
            if instance in death.fruitless:
                instance.fruitless += 1
            elif instance.has_answered(requests_only=True):
                instance.fruitless = 0
            instance.answered = instance.served.completed, instance.checked

    def _note_crash(self, death: Death) -> None:
        """Who crashes the worker too often is quarantined, the others come back."""
        now, limit = time.monotonic(), self._settings.crash_limit
        for instance in [c for c in death.culprits if c in self.instances and not c.over and c not in death.mended]:
            instance.crashes.append(now)
            while instance.crashes[0] < now - CRASH_WINDOW_S:
                instance.crashes.popleft()
            if len(instance.crashes) >= limit:
                self._quarantine(instance, f"{len(instance.crashes)} times within a minute, last: {death.reason}", now)
            elif instance.fruitless >= limit:
                times = f"{instance.fruitless} times in a row without an answer before"
                self._quarantine(instance, f"{times}, last: {death.reason}", now)
        for instance in self.instances:
            if not instance.over and instance.state != "DRAINING":
                instance.becomes("LOADING", death.reason)
        self._on_change()

    def _quarantine(self, instance: Instance, why: str, now: float) -> None:
        after_s = self._settings.quarantine_s * 2**instance.quarantines
        instance.quarantines += 1
        instance.served.tally.quarantines += 1
        instance.retry_at = now + after_s
        text = f"its worker died {why}"
        log.error("model %s is quarantined for %.0f s: %s", instance.name, after_s, text)
        instance.becomes("QUARANTINED", text)


async def _first(died: asyncio.Future[Death], work: Coroutine[Any, Any, Any]) -> None:
    """Return when one of both is done."""
    waiting = asyncio.ensure_future(work)
    try:
        await asyncio.wait({died, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
