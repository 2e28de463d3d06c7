"""Tensors and models as the runtime suites use them: short to write, with answers that are easy to state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hardware.backend import Loaded, LoadOptions, RawTensor
from hardware.runtime import Runtime
from tests import onnx_models

ENDLESS = 2**62
"""Rounds of ``onnx_models.loop`` that outlast any test."""


async def load(runtime: Runtime, directory: Path, model: bytes, key: str = "m", **options: Any) -> Loaded:
    path = onnx_models.save(model, directory / f"{key}.onnx")
    return await runtime.load(key, str(path), LoadOptions(**options))


def fp32(name: str, values: object) -> RawTensor:
    array = np.asarray(values, dtype=np.float32)
    return RawTensor(name, "FP32", array.shape, array.tobytes())


def int64(name: str, values: object) -> RawTensor:
    array = np.asarray(values, dtype=np.int64)
    return RawTensor(name, "INT64", array.shape, array.tobytes())


def floats(tensor: RawTensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.whole, dtype=np.float32).reshape(tensor.shape)


def pair(first: int = 0) -> list[RawTensor]:
    """Inputs of ``simple``: sums are ``first + 1`` and differences ``first - 1``, sixteen times."""
    data = np.full((1, 16), first, dtype=np.int32)
    ones = np.ones((1, 16), dtype=np.int32)
    return [RawTensor(name, "INT32", (1, 16), x.tobytes()) for name, x in (("INPUT0", data), ("INPUT1", ones))]
