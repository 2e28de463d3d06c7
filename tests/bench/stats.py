"""Arithmetic of the benchmarks: percentiles, paired ratios, the order of rounds. No I/O, no clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of ascending values: the smallest with at least ``share`` (0..1] of them at or below it.

    Raises ``ValueError`` where there is nothing to rank.
    """
    if not ordered or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(ordered)} values")
    return ordered[math.ceil(share * len(ordered)) - 1]


def paired_ratio(ours: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of ours/base, both taken in the same round, so that a slow phase of the machine cancels."""
    if len(ours) != len(base) or not ours:
        raise ValueError(f"{len(ours)} rounds cannot be paired with {len(base)}")
    return statistics.median(mine / other for mine, other in zip(ours, base, strict=True))


def in_round(items: Sequence[T], number: int) -> list[T]:
    """The items in the order of round ``number``: every other round runs backwards, so that drift favours nobody."""
    return list(items) if number % 2 == 0 else list(reversed(items))
