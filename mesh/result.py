"""What the SDK gives and takes: arrays to a request, an answer to arrays.

Not here: sending (``client``), the codec (``oip``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mesh.hop import Reply
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response
from mesh.oip.tensor import Tensor
from mesh.values import Route

Inputs = Mapping[str, "np.ndarray[Any, Any]"] | Sequence[Tensor]
"""Arrays by name; tensors where numpy has no type for them (BF16)."""


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs by name, and where they were computed."""

    outputs: dict[str, np.ndarray[Any, Any]]
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
    """Raises ``InvalidRequest`` for arrays that the protocol has no datatype for."""
    if isinstance(inputs, Mapping):
        tensors = tuple(Tensor.from_numpy(name, array) for name, array in inputs.items())
    else:
        tensors = tuple(inputs)
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


def read_result(reply: Reply) -> Result:
    """Raises ``ProtocolError`` for an answer that is none."""
    response = decode_response(reply.body.joined(), reply.body.header_length)
    arrays = {t.name: t.numpy() for t in response.outputs}
    answered = response.model, response.version, reply.node, reply.route, reply.hops
    return Result(arrays, *answered, reply.cascade, reply.confidence, response.parameters)
