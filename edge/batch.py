"""Requests put together along the first dimension and their answers taken apart again, without copying either.

A merged input is the tuple of its requests' buffers, which the runtime copies once to where the run reads them; an
answer is a slice of the run's output. Not here: which requests run together (``batching``), whether a model may be
batched at all (``warmup``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from edge.latency import Shapes
from hardware.backend import ITEM_BYTES, Buffer, RawTensor
from hardware.errors import InvalidInput, RunFailed

LENGTH_BYTES = 4
"""A BYTES element is a little-endian uint32 length and that many bytes."""


def rows_of(inputs: Sequence[RawTensor]) -> int:
    """The first dimension that all inputs share; 0 where they do not, and the request can only run alone."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else 0
    for tensor in inputs:
        if not tensor.shape or tensor.shape[0] != first:
            return 0
    return first


def shapes_of(inputs: Sequence[RawTensor]) -> Shapes:
    """What must agree between requests of one run: all dimensions but the first."""
    return tuple([tensor.shape[1:] for tensor in inputs])


def merge(requests: Sequence[Sequence[RawTensor]]) -> list[RawTensor]:
    """The inputs of one run, in the order of the requests, which have the same inputs in the same order."""
    merged = []
    for index, first in enumerate(requests[0]):
        tensors = [inputs[index] for inputs in requests]
        rows = sum([tensor.shape[0] for tensor in tensors])
        row_bytes = ITEM_BYTES.get(first.datatype, 0) * prod(first.shape[1:])
        pieces: list[Buffer] = []
        for tensor in tensors:
            if (
                row_bytes and tensor.nbytes != tensor.shape[0] * row_bytes
            ):  # else two wrong sizes could make a right one
                raise InvalidInput(f"input '{tensor.name}' has {tensor.nbytes} bytes, not those of its shape")
            if isinstance(tensor.data, tuple):
                pieces += tensor.data
            else:
                pieces.append(tensor.data)
        merged.append(RawTensor(first.name, first.datatype, (rows, *first.shape[1:]), tuple(pieces)))
    return merged


def split(outputs: Sequence[RawTensor], rows: Sequence[int]) -> list[list[RawTensor]]:
    """The answers of requests of so many ``rows`` each. Raises ``RunFailed`` if an output has other rows in all."""
    total = sum(rows)
    answers: list[list[RawTensor]] = [[] for _ in rows]
    for tensor in outputs:
        if not tensor.shape or tensor.shape[0] != total:
            raise RunFailed(f"output '{tensor.name}' has shape {list(tensor.shape)} for a batch of {total}")
        view = memoryview(tensor.whole).cast("B")
        at = 0
        for answer, count in zip(answers, rows, strict=True):
            end = _end(tensor, view, at, count, total)
            answer.append(RawTensor(tensor.name, tensor.datatype, (count, *tensor.shape[1:]), view[at:end]))
            at = end
        if at != view.nbytes:
            raise RunFailed(f"output '{tensor.name}' has {view.nbytes} bytes, not those of its shape")
    return answers


def _end(tensor: RawTensor, view: memoryview, at: int, rows: int, total: int) -> int:
    """Where the next ``rows`` rows from ``at`` on end."""
    if tensor.datatype != "BYTES":
        return at + rows * (view.nbytes // total)
    elements = rows
    for dim in tensor.shape[1:]:
        elements *= dim
    for _ in range(elements):
        at += LENGTH_BYTES + int.from_bytes(view[at : at + LENGTH_BYTES], "little")
    return at
