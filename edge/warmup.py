"""The inferences that must succeed before an instance is READY (DESIGN D9), and what they teach: how long a run takes,
and whether requests may run together.

Free dimensions that ``model.toml`` does not declare are guessed from sizes that image and sequence models take. Not
here: states (``instances``), what follows from the times (``latency``), comparing answers (``proof``).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from edge import batch
from edge.batching import Batching
from edge.latency import PAYS
from edge.model_config import ModelConfig, WarmupInput
from edge.proof import OTHERS, other_values, same_answers
from edge.served import Warmed
from hardware.backend import Loaded, RawTensor, TensorInfo
from hardware.errors import DeviceFault, HardwareError, InvalidInput, ModelRefused, RunFailed
from hardware.runtime import Runtime
from mesh.oip.datatypes import DATATYPES
from mesh.oip.tensor import Tensor

FREE_SIZES = (1, 32, 64, 224, 320, 640)
"""Tried in turn for free dimensions behind the first, which is the batch and stays 1."""
MAX_ELEMENTS = 1 << 26
"""Most elements of one input; whether its bytes fit is for the runtime to say."""
RUNS = 3
"""The first run is slow and pays for lazy set-up; the fastest is the first estimate of the service time."""
MEASURE_MS = 100.0
"""Time spent on each number of rows, beyond the two runs that are always made."""
MAX_MEASURED = 20
FOR_MORE = 0.5
"""Share of the time that a warm-up has in which it does more than it must: one inference, and all sizes declared."""
PROOF_ROWS = 3 * (OTHERS + 1)
"""Rows that run for a proof: each request alone, and all together in two orders."""
AUTOMATIC_ROWS = 32
"""Most rows of a run where ``model.toml`` declares none."""


class _WarmUp:
    def __init__(self, runtime: Runtime, key: str, loaded: Loaded, config: ModelConfig, limit_s: float) -> None:
        self._until = time.monotonic() + FOR_MORE * limit_s
        self._runtime = runtime
        self._key = key
        self._loaded = loaded
        self._config = config

    async def first(self) -> tuple[list[RawTensor], float]:
        """A request that the model answers, and milliseconds of its fastest run."""
        signature = self._loaded.signature
        if self._config.sequence is not None and (why := self._config.sequence.why_unfit(signature)):
            raise ModelRefused(f"model.toml: {why}")
        declared = self._config.warmup_inputs(signature)
        unknown = set(declared) - {i.name for i in signature.inputs}
        if unknown:
            raise ModelRefused(f"model.toml declares warmup for {sorted(unknown)[0]!r}, which is not an input")
        if self._config.cascade is not None and (why := self._config.cascade.why_unfit(signature.outputs)):
            raise ModelRefused(f"model.toml: {why}")
        if why := self._config.why_mislabelled(signature.outputs):
            raise ModelRefused(why)
        if why := self._why_unfit():
            raise ModelRefused(why)
        sizes = FREE_SIZES if any(-1 in i.shape[1:] for i in signature.inputs if i.name not in declared) else (1,)
        failed: HardwareError = RunFailed("no warm-up was tried")
        for size in sizes:
            try:
                inputs = [_input(info, declared.get(info.name), size) for info in signature.inputs]
                return inputs, await self._first_ms(inputs)
            except DeviceFault:  # noqa: PERF203 - at most six rounds
                raise
            except (InvalidInput, RunFailed) as error:
                failed = error
        raise RunFailed(f"the warm-up inference failed, declare [warmup] in model.toml: {failed.text}")

    def _why_unfit(self) -> str:
        """Why a step in Python cannot have what is declared for it; empty if it can."""
        config, decoupled = self._config, self._loaded.decoupled
        if config.decoupled is not None and config.decoupled != decoupled:
            is_one = "is" if decoupled else "is not"
            return f"config.pbtxt declares decoupled = {str(config.decoupled).lower()}, and infer {is_one} a generator"
        if not decoupled:
            return ""
        declared = {"batching": config.batching.max_rows > 1, "cascade": config.cascade, "sequence": config.sequence}
        unfit = next((name for name, there in declared.items() if there), "")
        return f"it declares {unfit}, which a decoupled model cannot have" if unfit else ""

    async def _first_ms(self, inputs: list[RawTensor]) -> float:
        took = [await self._run_ms(inputs)]
        while len(took) < RUNS and self._is_time(took[-1]):
            took.append(await self._run_ms(inputs))
        return min(took)

    def _is_time(self, ms: float) -> bool:
        """Whether what takes so long, and need not be done, ends early enough."""
        return time.monotonic() + ms / 1e3 <= self._until

    async def batched(self, inputs: list[RawTensor], first_ms: float) -> tuple[Batching, tuple[tuple[int, float], ...]]:
        """How requests may run together, and what runs of more rows take."""
        declared = self._config.batching
        is_code = self._loaded.effective == "python"  # which may do more than to answer: not for a proof
        limit = declared.max_rows or (1 if is_code else AUTOMATIC_ROWS)
        if self._loaded.batch_limit is not None:
            limit = min(limit, self._loaded.batch_limit)
        rows = batch.rows_of(inputs)
        alone = Batching(), ((1, first_ms),)
        if declared.max_rows == 1 or limit <= 1:
            return alone
        if declared.max_rows:
            if rows != 1:
                raise ModelRefused(
                    "model.toml declares batching, but the inputs of the warm-up do not have one row each"
                )
            points = await self._measured(inputs, first_ms, limit, lambda per_row: False)
            return Batching(limit, declared.delay_ms), points
        if rows != 1 or not self._has_free_rows() or not self._is_time(PROOF_ROWS * first_ms):
            return alone
        if not await self._is_proven(inputs, limit):
            return alone
        points = await self._measured(inputs, first_ms, limit, _no_longer_pays)
        best = _best_rows(points)
        return Batching(best, declared.delay_ms if best > 1 else 0.0), points

    def _has_free_rows(self) -> bool:
        signature = self._loaded.signature
        return all(info.shape and info.shape[0] == -1 for info in signature.inputs + signature.outputs)

    async def _is_proven(self, inputs: list[RawTensor], limit: int) -> bool:
        """Whether a request is answered the same before and behind others as alone: the first dimension is a batch."""
        requests = [inputs, *other_values(inputs, min(OTHERS, limit - 1))]
        try:
            alone = [await self._run(request) for request in requests]
            return same_answers(alone, await self._together(requests)) and same_answers(
                alone[::-1], await self._together(requests[::-1])
            )
        except DeviceFault:
            raise
        except (InvalidInput, RunFailed):
            return False

    async def _together(self, requests: list[list[RawTensor]]) -> list[list[RawTensor]]:
        outputs = await self._run(batch.merge(requests))
        return batch.split(outputs, [1] * len(requests))

    async def _measured(
        self, inputs: list[RawTensor], first_ms: float, limit: int, enough: Callable[[list[float]], bool]
    ) -> tuple[tuple[int, float], ...]:
        points = [(1, await self._fastest_ms(inputs, first_ms))]
        rows = 2
        while rows <= limit and not enough([ms / n for n, ms in points]):
            if not self._is_time(first_ms * rows):
                break  # a slow model is none the worse for what is not known of it
            try:
                started = time.monotonic()
                await self._together([inputs] * rows)
                together_ms = (time.monotonic() - started) * 1e3
                points.append((rows, await self._fastest_ms(batch.merge([inputs] * rows), together_ms)))
            except DeviceFault:
                raise
            except (InvalidInput, RunFailed) as error:
                if self._config.batching.max_rows:
                    raise ModelRefused(f"model.toml declares batching, but {rows} rows fail: {error.text}") from None
                break  # so many do not fit, fewer do
            rows = limit if rows < limit < 2 * rows else 2 * rows
        return tuple(points)

    async def _fastest_ms(self, inputs: list[RawTensor], known_ms: float) -> float:
        """Of the run that is known and as many as fit the time: the others tell more of what else the box does."""
        took: list[float] = []
        while len(took) < 2 or (sum(took) < MEASURE_MS and len(took) < MAX_MEASURED):
            if not self._is_time(known_ms):
                break
            took.append(await self._run_ms(inputs))
        return min([known_ms, *took])

    async def _run_ms(self, inputs: list[RawTensor]) -> float:
        started = time.monotonic()
        await self._run(inputs)
        return (time.monotonic() - started) * 1e3

    async def _run(self, inputs: list[RawTensor]) -> list[RawTensor]:
        if self._loaded.decoupled:
            return await self._first_answer(inputs)
        run = self._runtime.run(self._key, inputs, ())
        try:
            return await run
        except asyncio.CancelledError:
            self._runtime.abandon(run)
            raise

    async def _first_answer(self, inputs: list[RawTensor]) -> list[RawTensor]:
        """Or nothing, where there is none; returns when the stream is ended."""
        parts = self._runtime.stream(self._key, inputs, ())
        try:
            answer: list[RawTensor] = await anext(parts, [])
        finally:
            self._runtime.abandon(parts.ended)
        await asyncio.wait({parts.ended})
        return answer


async def warm_up(runtime: Runtime, key: str, loaded: Loaded, config: ModelConfig, limit_s: float = math.inf) -> Warmed:
    """Raises the ``HardwareError`` that makes the instance FAIL.

    ``limit_s`` is when the caller gives up; what is not needed is left out where it would last half as long.
    """
    work = _WarmUp(runtime, key, loaded, config, limit_s)
    inputs, first_ms = await work.first()
    batching, points = await work.batched(inputs, first_ms)
    shapes = batch.shapes_of(inputs) if batching.max_rows > 1 else tuple(tensor.shape for tensor in inputs)
    return Warmed(inputs, shapes, points, batching)


def _no_longer_pays(per_row_ms: list[float]) -> bool:
    """Twice as many rows made a row hardly cheaper, twice in a row."""
    return len(per_row_ms) > 2 and min(per_row_ms[-2:]) > PAYS * min(per_row_ms[:-2])


def _best_rows(points: tuple[tuple[int, float], ...]) -> int:
    best, unit = points[0]
    for rows, ms in points[1:]:
        if ms / rows < PAYS * unit:
            best, unit = rows, ms / rows
    return best


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
