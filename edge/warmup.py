"""The inference that must succeed before an instance is READY (DESIGN D9), and what it takes from then on.

Free dimensions that ``model.toml`` does not declare are guessed from sizes that image and sequence models take. Not
here: states (``instances``).
"""

from __future__ import annotations

import math
import time

from edge.model_config import ModelConfig, WarmupInput
from hardware.backend import Loaded, RawTensor, TensorInfo
from hardware.errors import HardwareError, InvalidInput, ModelRefused, RunFailed
from hardware.runtime import Runtime
from mesh.oip.datatypes import DATATYPES
from mesh.oip.tensor import Tensor

FREE_SIZES = (1, 32, 64, 224, 320, 640)
"""Tried in turn for free dimensions behind the first, which is the batch and stays 1."""
MAX_ELEMENTS = 1 << 26
"""Most elements of one input; whether its bytes fit is for the runtime to say."""
RUNS = 3
"""The first run is slow and pays for lazy set-up; the fastest is the first estimate of the service time."""


async def warm_up(runtime: Runtime, key: str, loaded: Loaded, config: ModelConfig) -> float:
    """Milliseconds of the fastest warm-up run. Raises the ``HardwareError`` that makes the instance FAIL."""
    unknown = set(config.warmup) - {i.name for i in loaded.signature.inputs}
    if unknown:
        raise ModelRefused(f"model.toml declares warmup for {sorted(unknown)[0]!r}, which is not an input")
    sizes = FREE_SIZES if any(-1 in _behind_batch(i, config) for i in loaded.signature.inputs) else FREE_SIZES[:1]
    failed: HardwareError = RunFailed("no warm-up was tried")
    for size in sizes:
        try:
            inputs = [_input(info, config.warmup.get(info.name), size) for info in loaded.signature.inputs]
            return await _runs(runtime, key, inputs)
        except (InvalidInput, RunFailed) as error:  # noqa: PERF203 - at most six rounds
            failed = error
    raise RunFailed(f"the warm-up inference failed, declare [warmup] in model.toml: {failed.text}")


async def _runs(runtime: Runtime, key: str, inputs: list[RawTensor]) -> float:
    took_ms = []
    for _ in range(RUNS):
        started = time.monotonic()
        await runtime.run(key, inputs, ())
        took_ms.append((time.monotonic() - started) * 1e3)
    return min(took_ms)


def _behind_batch(info: TensorInfo, config: ModelConfig) -> tuple[int, ...]:
    return () if info.name in config.warmup else info.shape[1:]


def _input(info: TensorInfo, declared: WarmupInput | None, size: int) -> RawTensor:
    if declared is not None:
        shape: tuple[int, ...] = declared.shape
        value = declared.value
    else:
        shape = tuple((1 if axis == 0 else size) if dim < 0 else dim for axis, dim in enumerate(info.shape))
        value = 0.0
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise InvalidInput(f"input {info.name!r} of shape {list(shape)} is too large for a warm-up")
    if info.datatype == "BYTES":
        text = value.encode() if isinstance(value, str) else b""
        return RawTensor(info.name, info.datatype, shape, (len(text).to_bytes(4, "little") + text) * count)
    item_bytes, _ = DATATYPES[info.datatype]
    if isinstance(value, str):
        raise ModelRefused(f"model.toml declares a text as warmup of {info.name!r}, which is {info.datatype}")
    if value == 0:
        return RawTensor(info.name, info.datatype, shape, bytes(count * item_bytes))
    tensor = Tensor.from_value(info.name, info.datatype, shape, value)
    return RawTensor(info.name, info.datatype, shape, tensor.data)
