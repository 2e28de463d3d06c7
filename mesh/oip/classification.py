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

from mesh.errors import InvalidRequest
from mesh.oip.datatypes import Array, bf16_to_float32
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response, encode_response
from mesh.oip.tensor import Tensor, pack_elements
from mesh.oip.wire import WireBody, quoted

PARAMETER = "classification"


def count(parameters: dict[str, Any], what: str) -> int:
    """How many classes an output is asked for, 0 for its values. Raises ``InvalidRequest``."""
    wanted = parameters.get(PARAMETER, 0)
    if type(wanted) is not int or not 0 <= wanted < 2**31:
        raise InvalidRequest(f"parameter {PARAMETER!r} of {what} must be a count of classes, got {quoted(wanted)}")
    return wanted


def classified(tensor: Tensor, wanted: int, labels: Sequence[str] = ()) -> Tensor:
    """BYTES of shape [rows, n], or [n] for an output of one dimension, highest first; n is at most all there are.

    Raises ``InvalidRequest`` for an output that has no values to compare.
    """
    if tensor.datatype == "BYTES":
        raise InvalidRequest(f"output {quoted(tensor.name)} holds texts, which cannot be classified")
    array = bf16_to_float32(tensor.numpy()) if tensor.datatype == "BF16" else tensor.numpy()
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    classes = prod(tensor.shape[1:]) if len(tensor.shape) > 1 else prod(tensor.shape)
    values: Array = array.reshape(rows, classes)
    best = min(wanted, classes)
    texts = [_text(values[row], index, labels) for row in range(rows) for index in _best(values[row], best)]
    shape = (rows, best) if len(tensor.shape) > 1 else (best,)
    return Tensor(tensor.name, "BYTES", shape, pack_elements(texts, f"output {quoted(tensor.name)}"))


def _best(values: Array, best: int) -> list[int]:
    """Indices of the highest; of equal ones the first. What is not a number comes last."""
    ranked = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    order: list[int] = np.argsort(-ranked.astype(np.float64), kind="stable")[:best].tolist()
    return order


def _text(values: Array, index: int, labels: Sequence[str]) -> str:
    value = values[index]
    said = f"{value:f}" if values.dtype.kind == "f" else str(int(value))
    label = labels[index] if index < len(labels) else ""
    return f"{said}:{index}:{label}" if label else f"{said}:{index}"


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
