"""Whether two answers are the same, as far as the arithmetic of their backend allows.

Pure. Not here: where answers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware.arrays import from_raw
from hardware.backend import RawTensor

Array = np.ndarray[Any, Any]

TOLERANCE = {"cpu": 1e-4, "fp32": 5e-3, "fp16": 3e-2}
"""Largest difference as a share of the output's largest value. GPUs multiply FP32 as TF32, with 10 bits of mantissa,
unless told not to."""
EQUAL_SHARE = 0.99
"""Of whole numbers, so many must be the same where arithmetic is reduced: they may hang on a comparison."""
SMALL = 1e-6


@dataclass(frozen=True, slots=True)
class Difference:
    worst: float = 0.0
    """Share of the largest value of the output."""
    unequal: float = 0.0
    """Share of the whole numbers that differ."""
    rows: int = 0
    """Rows of scores with a clear best."""
    flipped: int = 0
    """Of those, rows where another is best."""

    def within(self, tolerance: float) -> bool:
        """NaN is never."""
        few = 0.0 if tolerance <= TOLERANCE["cpu"] else 1 - EQUAL_SHARE
        return self.worst <= tolerance and self.unequal <= few and self.flipped == 0

    @property
    def numbers(self) -> dict[str, float | int]:
        return {
            "largest_difference_share": float(self.worst),
            "unequal_integers_share": float(self.unequal),
            "rows_with_a_clear_best": self.rows,
            "rows_with_another_best": self.flipped,
        }


def values(tensors: Sequence[RawTensor]) -> list[Array]:
    return [from_raw(tensor) for tensor in tensors]


def difference(right: Sequence[Array], given: Sequence[Array], tolerance: float) -> Difference:
    """``right`` is the reference. Another number of outputs, another shape, or NaN in another place is infinite."""
    if len(right) != len(given):
        return Difference(float("inf"))
    each = [_one(a, b, tolerance) for a, b in zip(right, given, strict=True)]
    return Difference(
        max((d.worst for d in each), default=0.0),
        max((d.unequal for d in each), default=0.0),
        sum(d.rows for d in each),
        sum(d.flipped for d in each),
    )


def _one(right: Array, given: Array, tolerance: float) -> Difference:
    if right.shape != given.shape:
        return Difference(float("inf"))
    if right.size == 0:
        return Difference()
    if right.dtype.kind != "f":
        return Difference(unequal=float((right != given).mean()))
    a, b = right.astype("f8"), given.astype("f8")
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return Difference(float("inf"))
    scale = max(float(np.abs(a[finite]).max(initial=0.0)), SMALL)
    worst = float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale
    rows, flipped = _best(a, b, tolerance * scale) if finite.all() else (0, 0)
    return Difference(worst, 0.0, rows, flipped)


def _best(right: Array, given: Array, clear: float) -> tuple[int, int]:
    """Rows of scores whose best leads clearly, and how many of them have another best."""
    if right.ndim != 2 or right.shape[1] < 2:
        return 0, 0
    ordered = np.sort(right, axis=1)
    leads = ordered[:, -1] - ordered[:, -2] > clear
    flipped = leads & (right.argmax(1) != given.argmax(1))
    return int(leads.sum()), int(flipped.sum())
