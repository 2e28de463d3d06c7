"""Room for what is about to be loaded: waits, evicts or refuses, so that no load takes the memory others live on.

Those that are being loaded count with what is predicted of them, for readings do not show it yet; so does what is
BUILDING, whose build takes memory that nobody can predict and whose engine is loaded after it. Not here: the arithmetic
(``preflight``), unloading (``instances``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from edge.changes import Changed
from edge.footprints import Footprints
from edge.instance import Instance
from edge.measure import ON_CPU, Measure
from edge.preflight import Evictable, Footprint, Room, grown, less, missing, predict, refusal, room, victims
from edge.settings import ModelsSettings
from mesh.messages import Gauges

log = logging.getLogger(__name__)

FRESH_S = 3.0
"""Longest wait for a reading that shows what changed; readings come every second."""
LOOK_S = 0.05


class NoRoom(Exception):
    """A version does not fit; the text has the numbers."""


class Before(NamedTuple):
    """The box as a version was about to be loaded."""

    gauges: Gauges
    moves: int
    builds: int | None


class Rooms:
    """``gauges`` is the last reading of the box; ``idle`` are the versions that could go, ``evict`` unloads one.

    ``builds`` counts the engine builds that ended; None while one is going on.
    """

    def __init__(
        self,
        settings: ModelsSettings,
        footprints: Footprints,
        gauges: Callable[[], Gauges],
        idle: Callable[[], list[Instance]],
        evict: Callable[[Instance, str], Awaitable[None]],
        builds: Callable[[], int | None],
    ) -> None:
        self._settings = settings
        self._footprints = footprints
        self._measure = Measure(settings, footprints)
        self._gauges = gauges
        self._idle = idle
        self._evict = evict
        self._builds = builds
        self._turn = asyncio.Lock()
        self._taken: dict[Instance, Footprint] = {}
        self._moves = 0
        """Loads that began or ended, and unloads."""
        self._given_back = Changed()
        self._old: Gauges | None = gauges()
        """A reading from before the last change; None once it was seen to be another."""

    @contextlib.asynccontextmanager
    async def held(self, instance: Instance) -> AsyncIterator[Before]:
        """Room for ``instance`` while it is loaded; after that readings show what it takes. Raises ``NoRoom``."""
        need = self.predict(instance)
        async with self._turn:
            await self._find(instance, need)
            self._moves += 1
            before = Before(self._gauges(), self._moves, None if self._taken else self._builds())
            self._taken[instance] = need
        try:
            yield before
        finally:
            del self._taken[instance]
            self._moves += 1
            self._changed()
            self._given_back()

    def left(self) -> None:
        """A version was unloaded."""
        self._moves += 1

    async def measure(self, instance: Instance, before: Before) -> None:
        """See what ``instance``, which was loaded since ``before``, added to the device; only where nothing else can
        tell, and nothing else was loaded, unloaded or built meanwhile."""
        if not self._measure.needs_growth(instance) or before.builds is None:
            return
        old, moves, until = self._gauges(), self._moves, time.monotonic() + FRESH_S
        while self._gauges() is old and time.monotonic() < until:
            moves = self._moves  # what moves after the last look does not show in the reading yet
            await asyncio.sleep(LOOK_S)
        undisturbed = moves == before.moves + 1 and self._builds() == before.builds
        after, device = self._gauges(), self._settings.device
        more = None if after is old else grown(before.gauges, after, device)
        if undisturbed and more is not None and self._measure.needs_growth(instance):
            await self._measure.take(instance, grown=more, unified=after.devices[device].unified_memory)

    def predict(self, instance: Instance) -> Footprint:
        """What it took on the first of its chain that was ever measured, else a guess from its file."""
        stored = instance.stored
        for backend in instance.chain:
            if (known := self._footprints.get(stored.identity.digest, backend)) is not None:
                return known
        size = stored.stamp.size if stored.stamp is not None else 0
        own_worker = self._settings.isolation == "model" or stored.is_step
        return predict(size, on_gpu=instance.chain[0] not in ON_CPU, own_worker=own_worker)

    async def _find(self, instance: Instance, need: Footprint) -> None:
        while True:
            free = less(await self._free(), list(self._taken.values()))
            if missing(need, free) == Footprint(0, 0):
                return
            if self._taken:  # they may take less than was predicted
                loading = len(self._taken)
                await self._given_back.until(lambda: len(self._taken) < loading)  # noqa: B023 - awaited here
            elif not await self._make(instance, need, free):
                raise NoRoom(refusal(need, free))

    async def _make(self, instance: Instance, need: Footprint, free: Room) -> bool:
        """Evict what was not asked for the longest; False where that is not wanted, or not enough."""
        if not self._settings.evict:
            return False
        idle = [Evictable(i, i.footprint or self.predict(i), i.asked_at) for i in self._idle()]
        chosen = victims(missing(need, free), free.unified, idle)
        for victim in chosen or ():
            await self._evict(victim, f"evicted to make room for {instance.name}; a request brings it back")
        self._changed()
        return bool(chosen)

    async def _free(self) -> Room:
        settings = self._settings
        until = time.monotonic() + FRESH_S
        while self._gauges() is self._old and time.monotonic() < until:  # noqa: ASYNC110 - nobody announces them
            await asyncio.sleep(LOOK_S)
        self._old = None
        return room(self._gauges(), settings.device, settings.reserve_bytes)

    def _changed(self) -> None:
        self._old = self._gauges()
