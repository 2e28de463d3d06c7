"""Goodput: the highest rate up to which 99 % of all arrivals are answered in time, over all seeds together.

Two rates of a grid that enclose it are searched for, each next one guessed by a straight line through the logarithms of
rate and share of misses; between the last two the line tells the rate. Its interval is a bootstrap over the seeds,
which are paired, so that a ratio of two policies has one too. Not here: the runs themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MISSES = 0.01
LOST = 0.08
"""Share of misses past which a run need not go on: the rate is far too high."""
STEP = 1.1
"""Ratio of neighbouring rates of the grid."""
LOWEST, HIGHEST = -24, 24
"""Steps below and above the scenario's own rate: a tenth to ten times."""
CLOSE = 2
"""Steps between the two rates of which the line is drawn."""
STEEP = 4.0
"""Misses are taken to grow with this power of the rate as long as there is one rate only."""
STRIDE = 8
"""Most steps from one rate to the next that is tried."""
BEYOND = 3.0
"""Steps that a resampled goodput may lie outside of the two rates."""
RESAMPLES = 500

Counts = Sequence[tuple[int, int]]
"""By seed: (misses, arrivals)."""
Runs = Callable[[int, float], "Counts | None"]
"""The counts at a step, or None where the share of misses is above the limit given."""


@dataclass(frozen=True)
class Goodput:
    """What is known at the two rates that enclose it: `step` holds, `above` does not.

    Nothing holds where `step` is below :data:`LOWEST`; everything does where `above` is beyond :data:`HIGHEST`.
    """

    step: int
    above: int
    counts: Mapping[int, Counts]
    seeds: int

    def factor(self, seeds: Sequence[int] | None = None) -> float:
        """The rate over the scenario's own; 0 where no rate holds. `seeds` are indices, repeated as they were drawn."""
        if self.step < LOWEST:
            return 0.0
        if self.above > HIGHEST:
            return math.pow(STEP, self.step)
        low = math.log(_share(self.counts[self.step], seeds))
        high = math.log(_share(self.counts[self.above], seeds))
        if high <= low:
            return math.pow(STEP, self.above if high <= math.log(MISSES) else self.step)
        steps = (self.above - self.step) * (math.log(MISSES) - low) / (high - low)
        return math.pow(STEP, self.step + min(max(steps, -BEYOND), self.above - self.step + BEYOND))

    def interval(self) -> tuple[float, float] | None:
        """95 % of the resampled factors; None for a single seed."""
        return middle(self.resampled())

    def ratio(self, other: Goodput) -> tuple[float, tuple[float, float] | None] | None:
        """This one over the other, and its interval; None where the other holds at no rate."""
        if other.step < LOWEST:
            return None
        pairs = zip(self.resampled(), other.resampled(), strict=True)
        return self.factor() / other.factor(), middle([mine / theirs for mine, theirs in pairs])

    def resampled(self) -> list[float]:
        return [self.factor(draw) for draw in draws(self.seeds)]


def draws(seeds: int) -> list[list[int]]:
    """Seeds drawn with repetition, the same draws for all figures, which keeps them paired; none for a single seed."""
    luck = random.Random(1)
    return [luck.choices(range(seeds), k=seeds) for _ in range(RESAMPLES)] if seeds > 1 else []


def middle(values: Sequence[float]) -> tuple[float, float] | None:
    """The bounds of the middle 95 %."""
    ordered = sorted(values)
    return (ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]) if ordered else None


def search(runs: Runs, seeds: int, known: Mapping[int, Counts] | None = None) -> Goodput:
    """Find it, with the counts of so many seeds; `known` are steps whose counts are there already."""
    counts: dict[int, Counts] = dict(known or {})
    low, high = LOWEST - 1, HIGHEST + 1
    step, lost = 0, False
    while True:
        found = counts.get(step) or runs(step, LOST)
        if found is not None:
            counts[step] = found
        if found is not None and _share(found, None) <= MISSES:
            low = step
        else:
            high, lost = step, found is None
        if low == HIGHEST or high == LOWEST:
            break
        if low >= LOWEST and high <= HIGHEST and high - low <= (1 if lost else CLOSE):
            break
        step = _next(low, high, counts)
    if low >= LOWEST and high <= HIGHEST and high not in counts:
        counts[high] = runs(high, 1.0) or ()
    return Goodput(low, high, {step: counts[step] for step in (low, high) if step in counts}, seeds)


def _next(low: int, high: int, counts: Mapping[int, Counts]) -> int:
    """The step to try between, or beyond, what holds and what does not."""
    inside = low >= LOWEST and high <= HIGHEST
    if inside and high in counts:
        a, b = (math.log(_share(counts[step], None)) for step in (low, high))
        guess = low + round((high - low) * (math.log(MISSES) - a) / (b - a))
        return min(max(guess, low + 1), high - 1)
    if inside:
        return (low + high) // 2
    at = low if low >= LOWEST else high
    if at not in counts:
        return max(at - STRIDE, LOWEST)
    steps = math.log(MISSES / _share(counts[at], None)) / (STEEP * math.log(STEP))
    stride = min(max(math.ceil(abs(steps)), 1 << (len(counts) - 1)), STRIDE)
    return min(at + stride, HIGHEST) if at == low else max(at - stride, LOWEST)


def _share(counts: Counts, seeds: Sequence[int] | None) -> float:
    """Misses of all arrivals; not 0, for the sake of its logarithm."""
    chosen = counts if seeds is None else [counts[seed] for seed in seeds]
    misses, arrivals = sum([count[0] for count in chosen]), sum([count[1] for count in chosen])
    return max(misses, 0.5) / max(arrivals, 1)
