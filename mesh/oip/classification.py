"""Triton's classification extension: an output's best values as texts ``value:index[:label]``.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md. The first
dimension is the batch where there are two or more. Pure. Not here: where labels come from (``edge.labels``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.datatypes import Array, bf16_to_float32
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response, encode_response
from mesh.oip.tensor import Tensor, pack_elements
from mesh.oip.wire import WireBody, quoted

PARAMETER = "classification"
MOST = 1 << 16
"""Classes of one output, of all its rows together: each becomes a text, on the event loop."""


def count(parameters: dict[str, Any], what: str) -> int:
    """How many classes an output is asked for, 0 for its values. Raises ``InvalidRequest``."""
    wanted = parameters.get(PARAMETER, 0)
    if type(wanted) is not int or not 0 <= wanted < 2**31:
        raise InvalidRequest(f"parameter {PARAMETER!r} of {what} must be a count of classes, got {quoted(wanted)}")
    return wanted


def classified(tensor: Tensor, wanted: int, labels: Sequence[str] = ()) -> Tensor:
    """BYTES of shape [rows, n], or [n] for an output of one dimension, highest first; n is at most all there are.

    Raises ``InvalidRequest`` for an output that has no values to compare, ``PayloadTooLarge`` for over ``MOST``.
    """
    if tensor.datatype == "BYTES":
        raise InvalidRequest(f"output {quoted(tensor.name)} holds texts, which cannot be classified")
    array = bf16_to_float32(tensor.numpy()) if tensor.datatype == "BF16" else tensor.numpy()
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    classes = prod(tensor.shape[1:]) if len(tensor.shape) > 1 else prod(tensor.shape)
    values: Array = array.reshape(rows, classes)
    best = min(wanted, classes)
    if rows * best > MOST:
        raise PayloadTooLarge(
            f"output {quoted(tensor.name)} has {rows * best} classes to name, over the limit of {MOST}"
        )
    texts = [text for row in values for text in _texts(row, best, labels)]
    shape = (rows, best) if len(tensor.shape) > 1 else (best,)
    return Tensor(tensor.name, "BYTES", shape, pack_elements(texts, f"output {quoted(tensor.name)}"))


def _texts(values: Array, best: int, labels: Sequence[str]) -> list[str]:
    chosen = _best(values, best)
    shown = "%f:%d" if values.dtype.kind == "f" else "%d:%d"
    texts = []
    for value, index in zip(values[chosen].tolist(), chosen.tolist(), strict=True):
        label = labels[index] if index < len(labels) else ""
        said = shown % (value, index)
        texts.append(f"{said}:{label}" if label else said)
    return texts


def _best(values: Array, best: int) -> Array:
    """Indices of the highest, those first; of equal ones the first. What is not a number comes last."""
    ranked = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    within = np.arange(ranked.size)
    if best < ranked.size:
        lowest = np.partition(ranked, -best)[-best]
        within = np.flatnonzero(ranked >= lowest)
    backwards: Array = within[::-1]  # a stable order of them, read from its end, has the first of equal ones first
    return backwards[np.argsort(ranked[backwards], kind="stable")][::-1][:best]


def values_only(request: InferRequest) -> InferRequest:
    """The request that asks for the values of which the answer will be made; itself where no classes are wanted.

    Raises ``InvalidRequest``.
    """
    if not any(PARAMETER in output.parameters and _wanted(output) for output in request.outputs):
        return request
    outputs = [o if PARAMETER not in o.parameters else RequestedOutput(o.name, True, {}) for o in request.outputs]
    return msgspec.structs.replace(request, outputs=tuple(outputs), wire=None)


def as_classes(body: WireBody, request: InferRequest, labels: Mapping[str, Sequence[str]]) -> WireBody:
    """The answer with classes in place of values where ``request`` wants them; ``labels`` by output."""
    answer, wanted = decode_response(body.joined(), body.header_length), {o.name: o for o in request.outputs}
    answer.outputs = tuple(
        [
            classified(tensor, _wanted(output), labels.get(tensor.name, ()))
            if (output := wanted.get(tensor.name)) is not None and _wanted(output)
            else tensor
            for tensor in answer.outputs
        ]
    )
    return encode_response(answer, request)


def _wanted(output: RequestedOutput) -> int:
    return count(output.parameters, f"requested output {quoted(output.name)}")
