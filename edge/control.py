"""Which models this node serves, as Triton's model control has it: all, what the disk says from time to time, or what
it is told by name.

What is wanted is compared with what there is at every change (``reconcile``): an old version goes when the new one is
READY, not before. Implements ``mesh.repository.ModelRepository``. Not here: the life of a version (``instances``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from edge.instance import Instance
from edge.instances import Instances
from edge.reconcile import Standing, reconcile
from edge.repository import Repository, StoredModel
from edge.settings import ModelsSettings
from mesh.errors import ConfigError, MeshError, ModelNotFound, ModelRejected
from mesh.lifecycle import Tasks
from mesh.repository import IndexEntry, override

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

TRITON_STATES = {"READY": "READY", "DRAINING": "UNLOADING"}
"""Triton's names; what is on its way is LOADING, all else UNAVAILABLE."""


class Control:
    """Enter :meth:`running`; what is wanted at the start is being loaded then."""

    def __init__(self, settings: ModelsSettings, instances: Instances) -> None:
        self._settings = settings
        self._instances = instances
        self._repository = None if settings.dir is None else Repository(settings.dir, settings.max_file_bytes)
        self._wanted: dict[str, list[StoredModel]] = {}
        self._unloaded: dict[str, list[StoredModel]] = {}
        """What was unloaded by name, and stays so until it is loaded by name or becomes another."""
        self._disk = asyncio.Lock()
        self._tasks = Tasks("control")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Control]:
        """Raises ``ConfigError`` where there is no such folder, or no such model to load."""
        await self._start()
        async with self._tasks:
            self._reconcile()
            self._tasks.start(self._follow(), "follow")
            if self._settings.control == "poll" and self._repository is not None:
                self._tasks.start(self._poll(self._repository), "poll")
            yield self

    async def _start(self) -> None:
        settings, repository = self._settings, self._repository
        if repository is None:
            return
        found = await self._read(repository.scan)
        if not found:
            log.warning("there is no model in %s: put each at <model>/<version>/model.onnx", settings.dir)
        if settings.control == "explicit" and "*" not in settings.load:
            missing = [name for name in settings.load if name not in found]
            if missing:
                raise ConfigError(f"models.load: there is no model {missing[0]!r} in the repository")
            found = {name: found[name] for name in settings.load}
        self._wanted = found

    # By name

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Load a model as it is on disk now, or again if it failed; returns once its versions serve.

        Raises ``ModelNotFound``, ``LoadFailed`` for parameters that cannot be followed, or ``ModelRejected`` with the
        reason of the first version that does not serve.
        """
        config = override(name, parameters)
        stored = [] if self._repository is None else await self._read(self._repository.model, name, config)
        if not stored:
            raise ModelNotFound(f"failed to load {name!r}: there is no model {name!r} in the repository of this node")
        self._unloaded.pop(name, None)
        self._wanted[name] = stored
        self._reconcile()
        for instance in self._instances.named(name):
            self._instances.retry(instance)
        await self._instances.changed.until(lambda: not any(i.coming() for i in self._asked_for(name)))
        if name not in self._wanted:
            raise ModelRejected(f"model {name!r} was unloaded while it was being loaded")
        for instance in self._asked_for(name):
            if instance.state != "READY":
                raise ModelRejected(f"model {instance.name} cannot be served: {instance.reason or instance.state}")
        self._reconcile()  # what it takes the place of goes now, so that whoever asks next meets the new one

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, and cancel what is being built of it; returns once they are gone."""
        if not self._instances.named(name):
            raise ModelNotFound(f"model {name!r} is not loaded on this node")
        self._unloaded[name] = self._wanted.pop(name, [])
        self._reconcile()
        await self._instances.changed.until(lambda: name in self._wanted or not self._instances.named(name))

    async def index(self) -> list[IndexEntry]:
        """Every model of the repository, loaded or not, by name and version."""
        names = [] if self._repository is None else await self._read(self._repository.names)
        entries = [_entry(instance) for instance in self._instances.all()]
        loaded = {entry.name for entry in entries}
        entries += [IndexEntry(name, "", "UNAVAILABLE", "it is not loaded") for name in names if name not in loaded]
        return sorted(entries, key=lambda entry: (entry.name, int(entry.version or 0)))

    def _asked_for(self, name: str) -> list[Instance]:
        """Those that are wanted; one that is leaving already is not what a new one of the same bytes will be."""
        wanted = self._wanted.get(name, ())
        staying = [i for i in self._instances.named(name) if i.evicted or i.state != "DRAINING"]
        return [i for i in staying if any(w.same(i.stored) for w in wanted)]

    # All by itself

    async def _follow(self) -> None:
        """Compare again after each change: what became READY lets others go."""
        while True:
            before = self._states()
            await self._instances.changed.until(lambda: self._states() != before)  # noqa: B023 - awaited here
            self._reconcile()

    def _states(self) -> list[tuple[Instance, str]]:
        return [(i, i.state) for i in self._instances.all()]

    async def _poll(self, repository: Repository) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._settings.poll_s)
            try:
                found = await self._read(repository.poll)
                failing = False
            except (MeshError, OSError) as error:  # a share that is not mounted at the moment removes no model
                if not failing:
                    log.warning("the model repository cannot be read, all stays as it is: %s", error)
                failing = True
                continue
            for name, stored in self._unloaded.items():
                if name in found and _same(stored, found[name]):
                    del found[name]
            self._unloaded = {name: stored for name, stored in self._unloaded.items() if name not in found}
            self._wanted = found
            self._reconcile()

    def _reconcile(self) -> None:
        for name in sorted({*self._wanted, *(i.identity.name for i in self._instances.all())}):
            wanted, standing = self._wanted.get(name, []), list(self._instances.named(name))
            plan = reconcile(wanted, [Standing(i.stored, i.state, i.evicted) for i in standing])
            for at in plan.load:
                self._instances.add(wanted[at])
            for at in plan.unload:
                instance = standing[at]
                log.info("model %s of digest %.12s is unloaded", instance.name, instance.identity.digest)
                self._instances.remove(instance)
            for instance in standing:  # a file that was written again with the same content
                instance.stored = next((w for w in wanted if w.same(instance.stored)), instance.stored)

    async def _read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The repository is read off the loop, by one at a time."""
        async with self._disk:
            return await asyncio.to_thread(read, *args, **kwargs)


def _same(one: list[StoredModel], other: list[StoredModel]) -> bool:
    return len(one) == len(other) and all(a.same(b) for a, b in zip(one, other, strict=True))


def _entry(instance: Instance) -> IndexEntry:
    state = "LOADING" if instance.coming() else TRITON_STATES.get(instance.state, "UNAVAILABLE")
    if instance.evicted:
        state = "UNAVAILABLE"
    identity, reason = instance.identity, instance.reason
    return IndexEntry(
        identity.name, identity.version, state, f"{instance.state}: {reason}" if instance.over else reason
    )
