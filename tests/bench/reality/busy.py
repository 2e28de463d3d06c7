"""How busy the machine was meanwhile: a run on a machine without time to spare measures the machine.

Looks at the machine's idle time four times a second. Not here: what is done with a run that was not valid.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psutil

PERIOD_S = 0.25
FULL = 0.95
MOST_FULL = 0.02
"""Share of the looks that may have found less than a twentieth idle."""
MOST_MEAN = 0.60

Reading = tuple[float, float]
"""Seconds that have passed, and those of them that were idle."""


@dataclass
class Busy:
    """Shares of all cores that were in use, one for each look."""

    looks: list[float] = field(default_factory=list)
    own: float = 0.0
    """Share that this process and those below it used; what is missing to ``mean`` is other work on the machine."""

    @property
    def mean(self) -> float:
        return sum(self.looks) / max(len(self.looks), 1)

    @property
    def full(self) -> float:
        """Share of the looks that found no time left."""
        return sum(look >= FULL for look in self.looks) / max(len(self.looks), 1)

    @property
    def saturated(self) -> bool:
        return self.mean > MOST_MEAN or self.full > MOST_FULL


def used(before: Reading, after: Reading) -> float:
    """Share of the time between two readings that was not idle."""
    total, spare = after[0] - before[0], after[1] - before[1]
    return min(max(1.0 - spare / total, 0.0), 1.0) if total > 0.0 else 0.0


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Busy]:
    """Looks while it is entered."""
    busy, before, began = Busy(), _own_s(), reading()
    task = asyncio.get_running_loop().create_task(_watch(busy))
    try:
        yield busy
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ended = reading()
        busy.own = (_own_s() - before) / max(ended[0] - began[0], 1e-9)


async def _watch(busy: Busy) -> None:
    before = reading()
    while True:
        await asyncio.sleep(PERIOD_S)
        after = reading()
        busy.looks.append(used(before, after))
        before = after


def reading() -> Reading:
    """Of all cores together; what the hypervisor took was not idle."""
    times = psutil.cpu_times()
    return sum(times) - times.guest - times.guest_nice, times.idle + times.iowait


def _own_s() -> float:
    """Seconds used by all processes from here down that still live."""
    me = psutil.Process()
    return sum(_used_s(process) for process in [me, *me.children(recursive=True)])


def _used_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # ended between being listed and being read
        return 0.0
    return float(times.user + times.system)
