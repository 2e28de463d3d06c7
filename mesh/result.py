"""What the SDK gives and takes: arrays to a request, an answer to arrays.

Not here: sending (``client``), the codec (``oip``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mesh.deadline import Deadline
from mesh.errors import InvalidRequest
from mesh.hop import Reply
from mesh.oip.datatypes import datatype_of
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import quoted
from mesh.values import Route

Inputs = Mapping[str, "np.ndarray[Any, Any]"] | Sequence[Tensor]
"""Arrays by name; tensors where numpy has no type for them (BF16)."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Outputs by name, and where they were computed."""

    outputs: dict[str, np.ndarray[Any, Any]]
    """Read-only arrays, on the memory of the answer; BYTES as objects of ``bytes``, BF16 as its bits in ``uint16``."""
    model: str
    version: str
    node: str
    route: Route
    """``local``, ``peer`` or ``cloud``, as seen from the door that took the request."""
    hops: int
    cascade: str = ""
    """Of a cascade: "small" or "large", whichever model answered; empty where none was applied."""
    confidence: float | None = None
    """How sure the small model of the cascade was, 0 to 1."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the answer, as the model and the mesh gave them."""

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.outputs[name]


def make_request(
    model: str, version: str, inputs: Inputs, outputs: Sequence[str], parameters: Mapping[str, Any] | None
) -> InferRequest:
    """Raises ``InvalidRequest`` for what is no request, and for arrays that the protocol has no datatype for."""
    if isinstance(outputs, str):
        raise InvalidRequest(f"outputs are a list of names, got the text {quoted(outputs)}")
    if parameters and "timeout" in parameters:
        raise InvalidRequest("say deadline_ms, in milliseconds, in place of the parameter 'timeout'")
    if isinstance(inputs, Mapping):
        tensors = tuple([_tensor(name, array) for name, array in inputs.items()])
    elif isinstance(inputs, (list, tuple)) and all(isinstance(tensor, Tensor) for tensor in inputs):
        tensors = tuple(inputs)
    else:
        raise InvalidRequest(f"inputs are arrays by their names, or a list of tensors, got {type(inputs).__name__}")
    return InferRequest(
        model=model,
        version=version,
        id="",
        parameters=dict(parameters or {}),
        inputs=tensors,
        outputs=tuple(RequestedOutput(name, True, {}) for name in outputs),
        binary_default=True,
        wire=None,
    )


def _tensor(name: str, array: Any) -> Tensor:
    try:
        array = np.asarray(array)
        datatype_of(array.dtype)
    except (ValueError, InvalidRequest) as error:
        raise InvalidRequest(f"input {quoted(name)}: {error}") from None
    return Tensor.from_numpy(name, array)


def deadline_of(deadline_ms: float) -> Deadline:
    """Raises ``InvalidRequest`` for NaN, which would never pass."""
    if math.isnan(deadline_ms):
        raise InvalidRequest("deadline_ms is not a number")
    return Deadline.after_ms(deadline_ms)


def read_result(reply: Reply) -> Result:
    """Raises ``ProtocolError`` for an answer that is none."""
    response = decode_response(reply.body.joined(), reply.body.header_length)
    arrays = {t.name: t.numpy() for t in response.outputs}
    answered = response.model, response.version, reply.node, reply.route, reply.hops
    return Result(arrays, *answered, reply.cascade, reply.confidence, response.parameters)
