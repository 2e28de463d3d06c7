"""An inference request: decoded from a body without copying its tensors, and encoded.

A repeated binary request differs only in tensor bytes, so what was learned from its head is kept and the head is not
parsed again (docs/adr/0005). Not here: whether a model takes these inputs.
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.head import (
    REGION,
    Parameter,
    TensorHead,
    check_parameters,
    check_unique,
    parse_head,
    place_of,
    pop_flag,
    read_tensors,
    split,
)
from mesh.oip.recent import Recent
from mesh.oip.tensor import Tensor, check_elements
from mesh.oip.wire import Buffer, Limits, WireBody, quoted

__all__ = ["InferRequest", "Limits", "RequestedOutput", "WireBody", "decode_request", "encode_request"]

MAX_CACHED_HEAD = 4096
CACHED_HEADS = 512


class RequestedOutput(msgspec.Struct, frozen=True):
    """Shared between requests with the same head: never changed. ``binary`` says how it is to be answered."""

    name: str
    binary: bool
    parameters: dict[str, Any]


class InferRequest(msgspec.Struct):
    """One inference. ``parameters`` hold neither ``binary_data_output`` nor a tensor's ``binary_data_size``."""

    model: str
    version: str
    id: str
    parameters: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...]
    """Empty for all outputs."""
    binary_default: bool
    """Whether outputs that are not requested by name are answered as binary data (``binary_data_output``)."""
    wire: WireBody | None
    """The body as it came: it is forwarded as it is. Set to None after a change, so that it is encoded anew."""

    @property
    def timeout_us(self) -> int | None:
        """Microseconds the caller allows, None where it does not say, 0 for no limit of its own (OIP ``timeout``)."""
        return _unsigned(self.parameters, "timeout")

    @property
    def priority(self) -> int:
        """1 is the highest, 0 the model's default (OIP ``priority``)."""
        return _unsigned(self.parameters, "priority") or 0

    def body(self) -> WireBody:
        """The body to send; encoded at most once."""
        if self.wire is None:
            self.wire = encode_request(self)
        return self.wire


class _OutputHead(msgspec.Struct):
    name: str
    parameters: dict[str, Parameter] = {}


class _RequestHead(msgspec.Struct):
    inputs: list[TensorHead]
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[_OutputHead] = []


_decoder = msgspec.json.Decoder(_RequestHead)
_encoder = msgspec.json.Encoder()


class _Plan(msgspec.Struct, frozen=True):
    """What a head says, once it was found good under ``limits``."""

    limits: Limits
    body_bytes: int
    inputs: tuple[tuple[str, str, tuple[int, ...], slice, int | None, dict[str, Any]], ...]
    """Name, datatype, shape, place in the body, number of elements where it is BYTES, parameters."""
    parameters: dict[str, Any]
    outputs: tuple[RequestedOutput, ...]
    binary_default: bool


_plans: Recent[bytes, _Plan] = Recent(CACHED_HEADS)


def decode_request(model: str, version: str, body: Buffer, header_length: int | None, limits: Limits) -> InferRequest:
    """Binary tensors stay where they are in ``body``, which must not change while the request lives.

    ``header_length`` is the value of ``Inference-Header-Content-Length``, None where there is none. Raises
    ``InvalidRequest``, ``PayloadTooLarge`` or ``Unsupported``, and nothing else, whatever the bytes.
    """
    view = memoryview(body)
    key = b""
    if header_length is not None and 0 < header_length <= MAX_CACHED_HEAD:
        key = bytes(view[:header_length])
        plan = _plans.get(key)
        if plan is not None and plan.limits is limits and plan.body_bytes == view.nbytes:
            return _planned(plan, model, version, view, WireBody((body,), header_length))
    text, tail = split(view, header_length, limits)
    head: _RequestHead = parse_head(_decoder, text, "the request")
    if not head.inputs:
        raise InvalidRequest("the request has no inputs")
    if len(head.inputs) > limits.max_inputs or len(head.outputs) > limits.max_outputs:
        raise PayloadTooLarge(f"the request has more than {limits.max_inputs} inputs or {limits.max_outputs} outputs")
    parameters = head.parameters
    check_parameters(parameters, "the request")
    binary_default = bool(pop_flag(parameters, "binary_data_output", "the request"))
    outputs = _requested(head.outputs, binary_default)
    inputs = read_tensors(head.inputs, tail, "input", limits)
    wire = WireBody((body,), header_length)
    request = InferRequest(model, version, head.id, parameters, inputs, outputs, binary_default, wire)
    check_times(parameters)
    if key and not head.id and not any(memoryview(i.data).nbytes or REGION in i.parameters for i in head.inputs):
        _plans.put(key, _plan(request, len(key), view.nbytes, limits))
    return request


def check_times(parameters: dict[str, Any]) -> None:
    """Raises ``InvalidRequest`` for a ``timeout`` or ``priority`` that is none."""
    _unsigned(parameters, "timeout")
    _unsigned(parameters, "priority")


def encode_request(request: InferRequest) -> WireBody:
    """Head and binary tensors, without copying those. Raises ``InvalidRequest`` for what OIP cannot say."""
    check_parameters(request.parameters, "the request")
    head: dict[str, Any] = {"id": request.id} if request.id else {}
    parameters = dict(request.parameters)
    if request.binary_default:
        parameters["binary_data_output"] = True
    if parameters:
        head["parameters"] = parameters
    head["inputs"] = [
        {
            "name": tensor.name,
            "shape": tensor.shape,
            "datatype": tensor.datatype,
            "parameters": {**tensor.parameters, "binary_data_size": tensor.nbytes},
        }
        for tensor in request.inputs
    ]
    if request.outputs:
        head["outputs"] = [
            {"name": output.name, "parameters": {**output.parameters, "binary_data": output.binary}}
            for output in request.outputs
        ]
    try:
        text = _encoder.encode(head)
    except UnicodeEncodeError:
        raise InvalidRequest("a name or parameter of the request has no UTF-8 form") from None
    return WireBody((text, *(t.data for t in request.inputs if t.nbytes)), len(text))


def _requested(heads: list[_OutputHead], binary_default: bool) -> tuple[RequestedOutput, ...]:
    check_unique((head.name for head in heads), "output request")
    outputs = []
    for head in heads:
        what = f"requested output {quoted(head.name)}"
        check_parameters(head.parameters, what)
        place_of(head.parameters, what)
        binary = pop_flag(head.parameters, "binary_data", what)
        outputs.append(RequestedOutput(head.name, binary_default if binary is None else binary, head.parameters))
    return tuple(outputs)


def _plan(request: InferRequest, at: int, body_bytes: int, limits: Limits) -> _Plan:
    places = []
    for t in request.inputs:
        count = prod(t.shape) if t.datatype == "BYTES" else None
        places.append((t.name, t.datatype, t.shape, slice(at, at + t.nbytes), count, dict(t.parameters)))
        at += t.nbytes
    return _Plan(limits, body_bytes, tuple(places), dict(request.parameters), request.outputs, request.binary_default)


def _planned(plan: _Plan, model: str, version: str, view: memoryview, wire: WireBody) -> InferRequest:
    inputs = []
    for name, datatype, shape, place, count, parameters in plan.inputs:
        data = view[place]
        if count is not None:
            check_elements(data, count, f"input {quoted(name)}")
        inputs.append(Tensor(name, datatype, shape, data, dict(parameters)))
    return InferRequest(
        model, version, "", dict(plan.parameters), tuple(inputs), plan.outputs, plan.binary_default, wire
    )


def _unsigned(parameters: dict[str, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 2**64:
        raise InvalidRequest(f"parameter {name!r} of the request must be an unsigned integer, got {quoted(value)}")
    return value
