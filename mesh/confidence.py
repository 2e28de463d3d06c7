"""How sure a classifier is of its answer, read off the scores it answered with. Pure.

The last axis of the tensor is the classes, everything before it are rows. Not here: what is done about an answer that
is not sure (``cascade``), how sure is sure enough (``calibration``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mesh.errors import InvalidRequest, ModelRejected
from mesh.oip.datatypes import Array, bf16_to_float32
from mesh.oip.tensor import Tensor
from mesh.oip.wire import quoted

KINDS = ("max", "margin", "entropy")
DATATYPES = ("FP16", "BF16", "FP32", "FP64")

_SLACK = 0.01
"""How far above 1 a probability may be for the rounding of its type."""


def judge(tensor: Tensor, kind: str, *, softmax: bool) -> float:
    """How sure the scores of a classifier are, 0 to 1: as its least sure row.

    With ``softmax`` they are logits, else probabilities. ``kind`` is one of

    - ``max``: the highest probability;
    - ``margin``: the highest less the second highest;
    - ``entropy``: one less the entropy over its most, the logarithm of the number of classes.

    A row with a NaN has confidence 0; no row at all is sure. Raises ``ModelRejected`` where the tensor cannot be
    judged: not of a floating-point type, fewer than two classes, or values that are no probabilities.
    """
    scores = _scores(tensor)
    if scores.size == 0:
        return 1.0
    probabilities = _softmax(scores) if softmax else scores
    highest = probabilities.max(axis=-1)  # every answer passes here: as few calls of numpy as can be
    if highest.size > 1:
        least, most = float(highest.min()), float(highest.max())
    else:
        least = most = float(highest.reshape(-1)[0])
    if math.isnan(least):
        return 0.0
    if most > 1.0 + _SLACK:
        raise ModelRejected(
            f"output {quoted(tensor.name)} does not hold probabilities: declare softmax = true for logits"
        )
    if kind != "max":
        least = float(_BY_KIND[kind](probabilities).min())
    return min(max(least, 0.0), 1.0)


def labels(tensor: Tensor) -> Array:
    """The best class of each row, flat. Raises ``ModelRejected`` where there are no classes."""
    best: Array = _scores(tensor).argmax(axis=-1).reshape(-1)
    return best


def unfit(datatype: str, shape: tuple[int, ...]) -> str:
    """Why an output of that declared type and shape (-1 is free) tells no confidence; empty if it does."""
    if datatype not in DATATYPES:
        return f"is {datatype}, confidence is read off {', '.join(DATATYPES)}"
    if shape and 0 <= shape[-1] < 2:
        return f"has {shape[-1]} classes on its last axis, confidence needs two"
    return ""


def _scores(tensor: Tensor) -> Array:
    """As ``float64`` for FP64, else ``float32``."""
    what = f"output {quoted(tensor.name)}"
    why = unfit(tensor.datatype, tensor.shape or (0,))
    if why:
        raise ModelRejected(f"{what} {why}")
    try:
        array = tensor.numpy()
    except InvalidRequest as error:
        raise ModelRejected(f"{what} cannot be read: {error.text}") from None
    if tensor.datatype == "BF16":
        return bf16_to_float32(array)
    return array.astype(np.float32) if tensor.datatype == "FP16" else array


def _softmax(logits: Array) -> Array:
    with np.errstate(invalid="ignore"):  # infinite logits make a NaN, which is a row that is not sure
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _margin(probabilities: Array) -> Array:
    best = np.partition(probabilities, -2, axis=-1)[..., -2:]
    margin: Array = best[..., 1] - best[..., 0]
    return margin


def _entropy(probabilities: Array) -> Array:
    positive = np.where(probabilities > 0.0, probabilities, 1.0)  # p log p is 0 at 0
    entropy = -(positive * np.log(positive)).sum(axis=-1)
    certainty: Array = 1.0 - entropy / math.log(probabilities.shape[-1])
    return certainty


_BY_KIND: dict[str, Any] = {"margin": _margin, "entropy": _entropy}
