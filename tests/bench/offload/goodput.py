"""Goodput: the highest rate up to which 99 % of all arrivals are answered in time, over all seeds together.

Found on a grid of rates, then between the two grid points that enclose it by a straight line through the logarithms of
rate and share of misses. Its interval is a bootstrap over the seeds, which are paired, so that a ratio of two policies
has one too. Not here: the runs themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

MISSES = 0.01
STEP = 1.1
"""Ratio of neighbouring rates of the grid."""
LOWEST, HIGHEST = -32, 24
"""Steps below and above the scenario's own rate: 0.05 to 10 times."""
RESAMPLES = 500

Counts = Sequence[tuple[int, int]]
"""By seed: (misses, arrivals)."""


class Goodput:
    """`runs` gives the counts of all seeds at a step; `hint` is where to begin, 0 is the scenario's own rate."""

    def __init__(self, runs: Callable[[int], Counts], hint: int = 0) -> None:
        self._runs = runs
        self._counts: dict[int, Counts] = {}
        self.step = self._search(hint)
        """The highest step of the grid that holds, below `LOWEST` if none does."""
        self._steps = sorted(self._counts)
        if self.step >= LOWEST:
            for step in (self.step - 1, self.step + 1, self.step + 2):
                self._holds(step)
            self._steps = [step for step in sorted(self._counts) if abs(step - self.step - 0.5) < 2.0]

    def factor(self, seeds: Sequence[int] | None = None) -> float:
        """The rate over the scenario's own; 0 where no rate holds. `seeds` are indices, repeated as they were drawn."""
        if self.step < LOWEST:
            return 0.0
        shares = [_share(self._counts[step], seeds) for step in self._steps]
        for at in range(len(shares) - 1, -1, -1):
            if shares[at] <= MISSES:
                if at == len(shares) - 1:
                    return math.pow(STEP, self._steps[at])
                low, high = math.log(shares[at]), math.log(shares[at + 1])
                return math.pow(STEP, self._steps[at] + (math.log(MISSES) - low) / (high - low))
        return math.pow(STEP, self._steps[0])

    def interval(self) -> tuple[float, float] | None:
        """95 % of the resampled factors; None for a single seed."""
        return _middle(self.resampled())

    def ratio(self, other: Goodput) -> tuple[float, tuple[float, float] | None] | None:
        """This one over the other, and its interval; None where the other holds at no rate."""
        if other.step < LOWEST:
            return None
        pairs = zip(self.resampled(), other.resampled(), strict=True)
        return self.factor() / other.factor(), _middle([mine / theirs for mine, theirs in pairs])

    def resampled(self) -> list[float]:
        seeds = range(len(next(iter(self._counts.values()))))
        luck = random.Random(1)  # the same draws for all, which keeps them paired
        draws = [luck.choices(seeds, k=len(seeds)) for _ in range(RESAMPLES)] if len(seeds) > 1 else []
        return [self.factor(draw) for draw in draws]

    def _holds(self, step: int) -> bool:
        if step not in self._counts:
            self._counts[step] = self._runs(step)
        return _share(self._counts[step], None) <= MISSES

    def _search(self, hint: int) -> int:
        """Strides that double, from the hint up or down, then bisection."""
        low = high = min(max(hint, LOWEST), HIGHEST)
        stride = 1
        if self._holds(low):
            while self._holds(high := min(low + stride, HIGHEST)):
                if high == HIGHEST:
                    return HIGHEST
                low, stride = high, 2 * stride
        else:
            while not self._holds(low := max(high - stride, LOWEST)):
                if low == LOWEST:
                    return LOWEST - 1
                high, stride = low, 2 * stride
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._holds(middle) else (low, middle)
        return low


def _share(counts: Counts, seeds: Sequence[int] | None) -> float:
    """Misses of all arrivals; not 0, for the sake of its logarithm."""
    chosen = counts if seeds is None else [counts[seed] for seed in seeds]
    misses, arrivals = sum([count[0] for count in chosen]), sum([count[1] for count in chosen])
    return max(misses, 0.5) / max(arrivals, 1)


def _middle(values: Sequence[float]) -> tuple[float, float] | None:
    ordered = sorted(values)
    return (ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]) if ordered else None
