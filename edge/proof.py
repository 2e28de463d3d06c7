"""Whether a model treats the rows of its first dimension apart: shown by example, before requests are ever merged.

A free first dimension is a batch in most models and something else in some (a sequence, points, detections); merged
there, one caller's values would change another's answer. Not here: the runs (``warmup``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hardware.arrays import from_raw
from hardware.backend import RawTensor

TOLERANCE = 1e-3
"""Largest difference, relative to the largest value of the output: other row counts take other kernels."""
OTHERS = 3
"""Requests beside the first: a model that looks some rows back or ahead is found out as far as they reach."""
CLEARLY = 8.0
"""Answers to different requests must differ so many times as much as those to one do, or nothing is shown."""
SMALL = 1e-6
"""Below this, values count as if they were as large."""
SEED = 20


def other_values(inputs: Sequence[RawTensor], count: int) -> list[list[RawTensor]]:
    """``count`` requests of the same shapes and other values that a model will probably take."""
    random = np.random.default_rng(SEED)
    return [[_other(tensor, random) for tensor in inputs] for _ in range(count)]


def _other(tensor: RawTensor, random: np.random.Generator) -> RawTensor:
    if tensor.datatype in ("BYTES", "BF16"):
        return tensor
    values = from_raw(tensor)
    if values.dtype.kind == "f":
        fresh = random.random(values.shape)
    else:  # pictures, or else likely numbers of classes, words or masks, of which few are certain to exist
        fresh = random.integers(0, 256 if tensor.datatype == "UINT8" else 2, values.shape)
    return RawTensor(tensor.name, tensor.datatype, tensor.shape, fresh.astype(values.dtype).tobytes())


def same_answers(alone: Sequence[Sequence[RawTensor]], together: Sequence[Sequence[RawTensor]]) -> bool:
    """Whether each request got the same answer in the batch as alone, and not all of them get the same anyway."""
    if any(output.datatype in ("BYTES", "BF16") for output in alone[0]):
        return False
    apart = max([_difference(alone[0], answer) for answer in alone])
    wrong = max([_difference(mine, batched) for mine, batched in zip(alone, together, strict=True)])
    return wrong <= TOLERANCE and apart > CLEARLY * wrong


def _difference(answer: Sequence[RawTensor], other: Sequence[RawTensor]) -> float:
    """The largest of any value, in shares of the largest value; infinite where shapes or whole numbers differ."""
    return max([_apart(one, two) for one, two in zip(answer, other, strict=True)], default=0.0)


def _apart(one: RawTensor, other: RawTensor) -> float:
    if bytes(one.whole) == bytes(other.whole) and one.shape == other.shape:
        return 0.0
    if one.shape != other.shape:
        return math.inf
    a, b = from_raw(one), from_raw(other)
    finite = np.isfinite(a)
    if a.dtype.kind != "f" or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    a, b = a[finite].astype("f8"), b[finite].astype("f8")
    if not np.isfinite(b).all():
        return math.inf
    return float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(a).max(initial=0.0)), SMALL)
