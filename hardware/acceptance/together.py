"""Many runs at once: each answer is compared with what the same request got alone.

Wrong values, not errors, are what contexts that share something give (NVIDIA/TensorRT#2648). Not here: single runs
(``exam``), crashes (``faults``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from hardware.acceptance.compare import Array
from hardware.acceptance.finding import CheckFailed, Found
from hardware.acceptance.place import Opened, Place
from hardware.acceptance.subjects import Subject

INSTANCES = 4
MOST_RUNS = 1000
LEAST_RUNS = 25
MOST_S = 60.0
SEEDS = 8


class Checked:
    """Runs of one model whose answers are all compared with those that the same requests got alone."""

    def __init__(self, place: Place, opened: Opened) -> None:
        self._place = place
        self._opened = opened
        self._requests = [opened.subject.request(1 + s % opened.subject.most_rows(), s) for s in range(SEEDS)]
        self.right: list[Sequence[Array]] = []
        self.runs = 0
        self.ran = asyncio.Event()
        """Set by every run."""

    async def learn(self) -> None:
        self.right = [await self._opened.ask(request) for request in self._requests]

    async def run(self, number: int, runs: int, until_s: float) -> None:
        """Raises ``CheckFailed`` at the first wrong answer."""
        for n in range(runs):
            if time.monotonic() > until_s:
                return
            which = (number + n) % SEEDS
            given = await self._opened.ask(self._requests[which])
            self._place.demand(self.right[which], given, f"run {n} of caller {number}")
            self.runs += 1
            self.ran.set()


async def instances(place: Place, subject: Subject) -> Found:
    """Four callers of one model with four instances."""
    runs = int(place.desk.share(MOST_RUNS, LEAST_RUNS))
    async with place.opened(subject, instances=INSTANCES) as opened:
        checked = Checked(place, opened)
        await checked.learn()
        started = time.monotonic()
        until_s = started + place.desk.share(MOST_S, 5)
        await all_of([checked.run(number, runs, until_s) for number in range(INSTANCES)])
        took_s = time.monotonic() - started
    numbers = {"callers": INSTANCES, "runs": checked.runs, "runs_per_s": checked.runs / took_s}
    return Found(
        f"{checked.runs} runs of {INSTANCES} callers, all right, {checked.runs / took_s:.0f} a second", numbers
    )


async def two_models(place: Place, one: Subject, other: Subject) -> Found:
    """Two models in one worker, then each in a worker of its own, always at the same time."""
    numbers = {}
    async with place.opened(one) as first, place.opened(other) as second:
        numbers["one_worker_runs_per_s"] = await _both(place, first, second)
    async with place.alone(one) as first, place.alone(other) as second:
        numbers["two_workers_runs_per_s"] = await _both(place, first, second)
    rates = " and ".join(f"{rate:.0f}" for rate in numbers.values())
    return Found(f"{one.name} and {other.name} are right at the same time; {rates} runs a second", numbers)


async def _both(place: Place, first: Opened, second: Opened) -> float:
    checked = [Checked(place, opened) for opened in (first, second)]
    for each in checked:
        await each.learn()
    started = time.monotonic()
    runs, until_s = int(place.desk.share(MOST_RUNS, LEAST_RUNS)), started + place.desk.share(MOST_S / 2, 5)
    await all_of([each.run(0, runs, until_s) for each in checked])
    if any(each.runs == 0 for each in checked):
        raise CheckFailed("one of two models was not answered while the other ran")
    return sum(each.runs for each in checked) / (time.monotonic() - started)


async def all_of(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of it, or the first failure and none of the rest."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
