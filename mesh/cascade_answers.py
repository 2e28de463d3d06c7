"""What a cascade reads and writes: a request that has confidence in its answer, two answers beside each other. Pure.

Models are asked for binary data, whatever the caller wants: its answer is put together once, at the end. Not here:
asking (``cascade``), what confidence is (``confidence``).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from mesh.confidence import judge, labels
from mesh.declarations import Cascade
from mesh.errors import InvalidRequest, ModelRejected, ProtocolError
from mesh.messages import CLASSES
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody, quoted
from mesh.pins import Pin
from mesh.values import ModelIdentity

PARAMETER = "cascade"
"""Of a request: false asks the named model only."""


class Judged(NamedTuple):
    """The small model's answer, and how sure it is of it."""

    response: InferResponse
    confidence: float


def is_wanted(request: InferRequest) -> bool:
    """Raises ``InvalidRequest``."""
    wanted = request.parameters.get(PARAMETER, True)
    if not isinstance(wanted, bool):
        raise InvalidRequest(f"parameter {PARAMETER!r} of the request must be a bool, got {quoted(wanted)}")
    return wanted


def with_output(request: InferRequest, output: str) -> InferRequest:
    """The request itself where its answer has that output, and all as binary data; else one that asks for it."""
    named = request.outputs
    has_it = output in [o.name for o in named] if named else True
    if has_it and (False not in [o.binary for o in named] if named else request.binary_default):
        return request
    outputs = [RequestedOutput(o.name, True, o.parameters) for o in named]
    if not has_it:
        outputs.append(RequestedOutput(output, True, {}))
    return msgspec.structs.replace(request, outputs=tuple(outputs), binary_default=True, wire=None)


def kept(request: InferRequest, declared: str) -> InferRequest:
    """The request, bound to where the small model's may run: its inputs must not leave through the larger one."""
    pin = Pin.of(request.parameters, declared) if declared else None
    if pin is None:
        return request
    return msgspec.structs.replace(request, parameters=request.parameters | {"mesh_stay": pin.stay}, wire=None)


def to(identity: ModelIdentity, request: InferRequest) -> InferRequest:
    """The same inputs for another model."""
    return msgspec.structs.replace(request, model=identity.name, version=identity.version)


def in_last_class(request: InferRequest) -> InferRequest:
    """The same, behind everybody else's."""
    return msgspec.structs.replace(request, parameters=request.parameters | {"priority": CLASSES}, wire=None)


def read(body: WireBody) -> InferResponse:
    """Raises ``ProtocolError``."""
    return decode_response(body.joined(), body.header_length)


def judged(response: InferResponse, cascade: Cascade) -> Judged:
    """Raises ``ModelRejected`` where the answer does not tell how sure it is."""
    scores = _scores(response, cascade.output)
    return Judged(response, judge(scores, cascade.confidence, softmax=cascade.softmax))


def fitting(larger: InferResponse, small: InferResponse) -> InferResponse:
    """The larger model's answer with the small one's outputs, in their order. Raises ``ProtocolError`` where it has not
    all of them in the same types: whoever asked for the small model could not read it."""
    found = {t.name: t for t in larger.outputs}
    outputs: list[Tensor] = []
    for tensor in small.outputs:
        other = found.get(tensor.name)
        if other is None or other.datatype != tensor.datatype:
            has = "has no" if other is None else f"is {other.datatype}, not {tensor.datatype}, in"
            raise ProtocolError(f"model {larger.model!r} {has} output {quoted(tensor.name)}")
        outputs.append(other)
    return msgspec.structs.replace(larger, outputs=tuple(outputs))


def agree(small: InferResponse, larger: InferResponse, output: str) -> bool | None:
    """Whether every row has the same best class; None where they cannot be compared, as with other numbers of rows."""
    try:
        ours, theirs = labels(_scores(small, output)), labels(_scores(larger, output))
    except ModelRejected:
        return None
    return bool(np.array_equal(ours, theirs)) if ours.size == theirs.size else None


def as_asked(response: InferResponse, identity: ModelIdentity, request: InferRequest) -> WireBody:
    """In the name of the model that was asked for. Raises ``InvalidRequest`` for what JSON cannot carry."""
    named = msgspec.structs.replace(response, model=identity.name, version=identity.version)
    return encode_response(named, request)


def _scores(response: InferResponse, output: str) -> Tensor:
    found = next((t for t in response.outputs if t.name == output), None)
    if found is None:
        raise ModelRejected(f"model {response.model!r} answered without output {quoted(output)}")
    return found
