"""One request to a model with a known right answer, and how its answer is read. Nothing about how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, Array]
"""Inputs or outputs of a model by tensor name."""


class Unreadable(ValueError):
    """Outputs that cannot be an answer of the model: a tensor is missing, of the wrong shape or type, or not finite."""


@dataclass(frozen=True, slots=True)
class Request:
    """Inputs to send and the answer they must bring.

    ``read`` turns outputs into words ("python", "180", "voice") and raises ``Unreadable`` where they are no answer.
    ``then`` makes the next request of a stream from this one's outputs: the server keeps no state.
    """

    inputs: Tensors
    expected: str
    read: Callable[[Tensors], str]
    then: Callable[[Tensors], Request] | None = None

    def check(self, outputs: Tensors) -> bool:
        """Whether ``outputs`` are the right answer."""
        try:
            return self.read(outputs) == self.expected
        except Unreadable:
            return False


def floats(outputs: Tensors, name: str, shape: tuple[int, ...]) -> Floats:
    """Output ``name`` as finite FP32 of exactly ``shape``. Raises ``Unreadable``."""
    found = outputs.get(name)
    if found is None:
        raise Unreadable(f"output {name} is missing")
    if found.shape != shape or found.dtype != np.float32:
        raise Unreadable(f"output {name} is {found.dtype}{list(found.shape)}, not float32{list(shape)}")
    if not np.isfinite(found).all():
        raise Unreadable(f"output {name} holds values that are not finite")
    return found


def probabilities(outputs: Tensors, name: str, shape: tuple[int, ...]) -> Floats:
    """As :func:`floats`, and within 0..1 up to rounding."""
    found = floats(outputs, name, shape)
    if found.min() < -1e-3 or found.max() > 1 + 1e-3:
        raise Unreadable(f"output {name} holds values that are no probabilities")
    return found


def distribution(outputs: Tensors, name: str, shape: tuple[int, ...]) -> Floats:
    """As :func:`probabilities`, and adding up to 1 over the classes, the last axis."""
    found = probabilities(outputs, name, shape)
    if np.abs(found.sum(axis=-1) - 1).max() > 1e-2:
        raise Unreadable(f"output {name} does not add up to 1 over its classes")
    return found
