"""Triton's ``statistics`` extension: what was counted of a model, its sum over several nodes, and its JSON.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md. Field names are
Triton's. Not here: counting (``edge.statistics``), asking the nodes (``mesh.inquiry``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from mesh.errors import InvalidRequest, ProtocolError
from mesh.oip.json_data import parse


class Duration(msgspec.Struct, frozen=True):
    """How often something happened, and the nanoseconds of it all together."""

    count: int = 0
    ns: int = 0


NEVER = Duration()


class InferStatistics(msgspec.Struct, frozen=True):
    """By request. What is not measured apart has count 0: its time is part of ``compute_infer``."""

    success: Duration = NEVER
    """From the request's arrival at the model to its answer."""
    fail: Duration = NEVER
    queue: Duration = NEVER
    compute_input: Duration = NEVER
    compute_infer: Duration = NEVER
    """The run that answered it, its whole time for each of the requests that it answered."""
    compute_output: Duration = NEVER
    cache_hit: Duration = NEVER
    cache_miss: Duration = NEVER


class BatchStatistics(msgspec.Struct, frozen=True):
    """The runs of exactly so many rows."""

    batch_size: int
    compute_input: Duration = NEVER
    compute_infer: Duration = NEVER
    compute_output: Duration = NEVER


class MemoryUsage(msgspec.Struct, frozen=True):
    """``type`` is "CPU" or "GPU", ``id`` that of the device."""

    type: str
    id: int
    byte_size: int


class ModelStatistics(msgspec.Struct, frozen=True):
    """One version of a model, since its node started."""

    name: str
    version: str
    last_inference: int = 0
    """Milliseconds since the epoch, on the node's own clock; 0 is never."""
    inference_count: int = 0
    """Rows answered."""
    execution_count: int = 0
    """Runs that answered them."""
    inference_stats: InferStatistics = InferStatistics()
    batch_stats: tuple[BatchStatistics, ...] = ()
    memory_usage: tuple[MemoryUsage, ...] = ()
    response_stats: dict[str, Any] = {}
    """By number of the answer, for models that answer several times; empty: they are not counted by number."""


class _Document(msgspec.Struct):
    model_stats: list[ModelStatistics]


_decoder = msgspec.json.Decoder(_Document)

S = TypeVar("S", Duration, InferStatistics, BatchStatistics)


def encode_statistics(found: Iterable[ModelStatistics]) -> bytes:
    return msgspec.json.encode(_Document(list(found)))


def decode_statistics(body: bytes) -> list[ModelStatistics]:
    """Raises ``ProtocolError``."""
    try:
        document: _Document = parse(_decoder, body, "statistics")
    except InvalidRequest as error:
        raise ProtocolError(f"the answer is not statistics: {error.text}") from None
    return document.model_stats


def merged(found: Iterable[ModelStatistics]) -> list[ModelStatistics]:
    """One of each version: what several nodes counted of it, added up. By name and version."""
    of: dict[tuple[str, str], ModelStatistics] = {}
    for each in found:
        key = each.name, each.version
        of[key] = _both(of[key], each) if key in of else each
    return [of[key] for key in sorted(of, key=lambda key: (key[0], len(key[1]), key[1]))]


def _both(one: ModelStatistics, other: ModelStatistics) -> ModelStatistics:
    batches = {batch.batch_size: batch for batch in one.batch_stats}
    for batch in other.batch_stats:
        known = batches.get(batch.batch_size)
        batches[batch.batch_size] = batch if known is None else _added(known, batch, ("batch_size",))
    memory = {(usage.type, usage.id): usage.byte_size for usage in one.memory_usage}
    for usage in other.memory_usage:
        memory[usage.type, usage.id] = memory.get((usage.type, usage.id), 0) + usage.byte_size
    return ModelStatistics(
        one.name,
        one.version,
        max(one.last_inference, other.last_inference),
        one.inference_count + other.inference_count,
        one.execution_count + other.execution_count,
        _added(one.inference_stats, other.inference_stats),
        tuple(batches[size] for size in sorted(batches)),
        tuple(MemoryUsage(kind, device, size) for (kind, device), size in sorted(memory.items())),
    )


def _added(one: S, other: S, same: tuple[str, ...] = ()) -> S:
    """Field by field, but for those that are the ``same``."""
    fields = {name: getattr(one, name) for name in same}
    for name in one.__struct_fields__:
        if name not in same:
            a, b = getattr(one, name), getattr(other, name)
            fields[name] = a + b if isinstance(a, int) else _added(a, b)
    return type(one)(**fields)
