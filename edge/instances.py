"""All versions on this node and their lives: room, a host, READY, and again after a failure or an eviction.

Each life is one task: it holds the version's place in a host, and gives it back however it ends. Not here: what should
be loaded (``control``), the queue (``executor``), files on disk (``repository``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from edge.changes import Changed
from edge.engines import BuildEngine, Engines
from edge.executor import Executor
from edge.footprints import Footprints
from edge.host import Host
from edge.instance import COMES, SERVES, Instance
from edge.loading import Loading
from edge.repository import StoredModel
from edge.room import NoRoom, Rooms
from edge.served import Served
from edge.settings import ModelsSettings
from edge.tally import Tally
from edge.watchdog import Watchdog
from hardware.engine_build import build_engine
from hardware.runtime import Runtime
from hardware.worker_runtime import WorkerRuntime
from mesh.lifecycle import Tasks, within
from mesh.messages import Gauges
from mesh.values import ModelIdentity

log = logging.getLogger(__name__)

DRAIN_LOOK_S = 0.01
LINGER_S = 2.0
"""What was READY answers on this long after it is taken out of service: neighbours hear of it in the next reports, and
what they sent before is on its way."""


class Instances:
    """``on_change`` is called at every change of a state; ``folder`` keeps engines and footprints between runs."""

    def __init__(
        self,
        settings: ModelsSettings,
        on_change: Callable[[], None],
        *,
        build: BuildEngine = build_engine,
        folder: Path | None = None,
        gauges: Callable[[], Gauges] = Gauges,
        linger_s: float = LINGER_S,
    ) -> None:
        self._settings = settings
        self._linger_s = linger_s
        self._on_change = on_change
        self.changed = Changed(self._announce)
        self.executor = Executor(
            concurrency=settings.concurrency,
            queue_limit=settings.queue_limit,
            hang_s=settings.hang_s,
            on_hang=self._on_hang,
        )
        self.tallies: dict[tuple[str, str], Tally] = {}
        """By model and version, those that are gone too."""
        self._footprints = Footprints(folder)
        self.engines = Engines(build, settings, folder, self.changed)
        self._loading = Loading(settings, self.executor, self.engines, self._footprints, self.changed)
        builds = lambda: self.engines.ended  # noqa: E731 - asked each time
        self._rooms = Rooms(settings, self._footprints, gauges, self._idle, self._evict, builds)
        self._watchdog = Watchdog(settings, self.executor, self.all, self._give_up)
        self._by_name: dict[str, list[Instance]] = {}
        self._lives: dict[Instance, asyncio.Task[None]] = {}
        self._hosts: dict[object, tuple[Host, asyncio.Task[None]]] = {}
        self._hosted: dict[Instance, tuple[object, Host]] = {}
        self._tasks = Tasks("instances")
        self._host_tasks = Tasks("hosts")
        self._ending: set[asyncio.Task[None]] = set()
        self._closing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Instances]:
        await asyncio.to_thread(self._footprints.read)
        async with self.engines.running(), self._host_tasks, self._hosts_ended(), self._tasks:
            self._tasks.start(self._watchdog.run(), "watchdog")
            try:
                yield self
            finally:
                self._closing = True
                self.executor.close()

    @contextlib.asynccontextmanager
    async def _hosts_ended(self) -> AsyncIterator[None]:
        """Hosts end after the lives in them, and in peace: one that is cancelled twice leaves its worker behind."""
        try:
            yield
        finally:
            if self._ending:
                await asyncio.wait(self._ending)

    # What there is

    def all(self) -> list[Instance]:
        return [i for name in sorted(self._by_name) for i in self._by_name[name]]

    def named(self, name: str) -> list[Instance]:
        """In order of their versions."""
        return self._by_name.get(name, [])

    def find(self, name: str, version: str) -> Instance | None:
        """What serves a version, or is the nearest to it; for an empty one the latest that serves, as Triton has it,
        else the latest that is on its way."""
        group = self._by_name.get(name, ())
        if version:
            return max((i for i in group if i.identity.version == version), key=lambda i: i.standing, default=None)
        for wanted in (SERVES, COMES):
            for instance in reversed(group):
                if instance.standing == wanted:
                    return instance
        return None

    def at(self, identity: ModelIdentity) -> Instance | None:
        """The instance of exactly these bytes that is the nearest to serving."""
        group = self._by_name.get(identity.name, ())
        return max((i for i in group if i.identity == identity), key=lambda i: i.standing, default=None)

    @property
    def completed(self) -> int:
        """Inferences since the start."""
        return sum(tally.queue_seconds.count for tally in self.tallies.values())

    @property
    def device(self) -> int:
        """Which GPU models are loaded on."""
        return self._settings.device

    def costs(self, instance: Instance) -> tuple[float, float]:
        """Milliseconds that one inference takes alone, and adds to a busy queue, now; 0 until one ran."""
        service_ms, row_ms = self.executor.forecast.costs(instance.served)
        return service_ms + self.executor.streams.wait_ms(instance.served), row_ms

    # Changing it

    def add(self, stored: StoredModel) -> Instance:
        """Begin to load a version, beside whatever there is; one that is rejected is only named."""
        instance = Instance.of(stored, self._settings.backends)
        key = instance.identity.name, instance.identity.version
        instance.served.tally = self.tallies.setdefault(key, instance.served.tally)
        if stored.rejected:
            log.error("model %s cannot be served: %s", instance.name, stored.rejected)
        group = self._by_name.setdefault(instance.identity.name, [])
        group.append(instance)
        group.sort(key=lambda i: int(i.identity.version))
        self._lives[instance] = self._tasks.start(self._life(instance), instance.name)
        self.changed()
        return instance

    def remove(self, instance: Instance) -> None:
        """Begin to unload a version, in whatever state; it is gone once what was asked of it is answered."""
        was_ready = instance.state == "READY"
        instance.evicted = False
        instance.becomes("DRAINING", "it is being unloaded")
        if instance.build is not None:
            instance.build.cancel()
        self.changed()
        self._tasks.start(self._unload(instance, was_ready), f"unload {instance.name}")

    async def _unload(self, instance: Instance, was_ready: bool) -> None:
        if was_ready:
            await asyncio.sleep(self._linger_s)
            await self._drained(instance)
        life = self._lives.pop(instance)
        life.cancel()
        await asyncio.wait({life})
        group = self._by_name[instance.identity.name]
        group.remove(instance)
        if not group:
            del self._by_name[instance.identity.name]
        self.changed()

    def retry(self, instance: Instance) -> None:
        """Load again what failed, is quarantined or was evicted."""
        if (instance.over or instance.evicted) and not instance.stored.rejected:
            instance.quarantines = 0
            instance.renew()
            self.changed()

    def _announce(self) -> None:
        for host, _ in self._hosts.values():
            host.look()
        self._on_change()

    # One life

    async def _life(self, instance: Instance) -> None:
        while True:
            if instance.coming():
                await self._serve(instance)
            left_s = None if instance.retry_at is None else max(instance.retry_at - time.monotonic(), 0.0)
            try:
                await within(left_s, self.changed.until(instance.coming))
            except asyncio.TimeoutError:
                instance.renew()
                self.changed()

    async def _serve(self, instance: Instance) -> None:
        """Until it failed, was quarantined or evicted; nothing of it is loaded afterwards."""
        try:
            async with self._rooms.held(instance) as before:
                self._join(instance)
                await self.changed.until(lambda: not instance.coming())
            await self._rooms.measure(instance, before)
            await self.changed.until(lambda: instance.over or instance.evicted)
        except NoRoom as error:
            log.error("model %s is not loaded: %s", instance.name, error)
            instance.retry_at = time.monotonic() + self._settings.quarantine_s
            instance.becomes("FAILED", str(error))
            self.changed()
        finally:
            await self._leave(instance)

    def _join(self, instance: Instance) -> None:
        isolation = "model" if instance.stored.is_step else self._settings.isolation
        key: object = instance if isolation == "model" else isolation
        if key not in self._hosts:
            name = instance.name if isolation == "model" else isolation
            host = Host(name, isolation, self._settings, self.executor, self._loading, self.changed)
            self._hosts[key] = host, self._host_tasks.start(host.run(), name)
        host = self._hosts[key][0]
        self._hosted[instance] = key, host
        host.add(instance)

    async def _leave(self, instance: Instance) -> None:
        if instance not in self._hosted:
            return
        key, host = self._hosted[instance]
        try:
            await host.remove(instance, unload=not self._closing)
        finally:
            if not host.instances and (ended := self._hosts.pop(key, None)) is not None:
                _, task = ended
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
                task.cancel()
                await asyncio.wait({task})
            del self._hosted[instance]
            self._rooms.left()
            self.changed()

    async def _drained(self, instance: Instance) -> None:
        """Wait until nothing that was asked of it is unanswered, at most for ``drain_s``."""
        until = time.monotonic() + self._settings.drain_s
        while instance.served.in_flight and time.monotonic() < until:  # noqa: ASYNC110 - to keep every answer cheap
            await asyncio.sleep(DRAIN_LOOK_S)

    # Making room, giving up

    def _idle(self) -> list[Instance]:
        return [i for i in self.all() if i.state == "READY" and i.served.in_flight == 0]

    async def _evict(self, instance: Instance, why: str) -> None:
        log.warning("model %s is %s", instance.name, why)
        instance.becomes("DRAINING", why)
        self.changed()
        await self._drained(instance)
        if instance.state == "DRAINING" and instance in self._hosted:
            instance.evicted = True
            self.changed()
            await self.changed.until(lambda: instance not in self._hosted)

    def _give_up(self, instance: Instance, why: str) -> None:
        if instance in self._hosted:
            _, host = self._hosted[instance]
            host.end(why, instance, requests_only=False)

    def _on_hang(self, runtime: Runtime, served: Served) -> None:
        """Only the death of the process ends a run that hangs; its host starts another."""
        if not isinstance(runtime, WorkerRuntime):
            log.error("model %s hangs, and without isolation nothing can end it; restart this agent", served.name)
            return
        log.error("model %s hangs, its worker is killed", served.name)
        for instance, (_, host) in self._hosted.items():
            if instance.served is served and served.runtime is runtime:
                why = f"model {served.name} hung: a run went on {self._settings.hang_s:g} s after its deadline"
                host.end(why, instance, requests_only=True)
        runtime.kill()
