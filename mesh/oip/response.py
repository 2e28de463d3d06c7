"""An inference response: encoded the way its request asked for, and decoded.

An output is JSON unless the request asked for binary data, by output or as a whole. One that JSON cannot carry is
``InvalidRequest``: asking again for binary data is all that helps. Not here: response headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec

from mesh.errors import InferenceFailed, MeshError, ProtocolError
from mesh.oip.datatypes import DATATYPES
from mesh.oip.head import REGION, Parameter, TensorHead, check_parameters, parse_head, read_tensors, split
from mesh.oip.json_data import encode_data
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest, WireBody
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Buffer, Limits, quoted

CACHED_HEADS = 512
_ANY = 2**63 - 1
_UNLIMITED = Limits(_ANY, max_header_bytes=_ANY, max_json_bytes=_ANY, max_rank=32, max_bytes_elements=_ANY)
"""The caller holds the whole answer already; a server that is not of the mesh may have other limits."""


class InferResponse(msgspec.Struct):
    model: str
    version: str
    id: str
    parameters: dict[str, Any]
    outputs: tuple[Tensor, ...]


class _ResponseHead(msgspec.Struct):
    model_name: str
    outputs: list[TensorHead]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Parameter] = {}


_decoder = msgspec.json.Decoder(_ResponseHead)
_encoder = msgspec.json.Encoder()

_heads: Recent[tuple[Any, ...], bytes] = Recent(CACHED_HEADS)
"""Heads by all that they say: model, version, and name, datatype, shape and size of each output."""


def encode_response(response: InferResponse, request: InferRequest) -> WireBody:
    """``header_length`` is None if no output is binary; tensors are not copied.

    Raises ``InvalidRequest`` for what JSON cannot carry, ``InferenceFailed`` if an output is missing or has another
    size than its shape says.
    """
    outputs, binary = _selected(response, request)
    if response.id or response.parameters or not outputs or False in binary or _marked(outputs):
        head = _head(response, outputs, binary)
        data = [tensor.data for tensor, as_binary in zip(outputs, binary, strict=True) if as_binary]
        return WireBody((head, *data), len(head) if data else None)
    layout: list[Any] = [response.model, response.version]
    for t in outputs:
        layout += (t.name, t.datatype, t.shape, t.nbytes)
    key = tuple(layout)
    cached = _heads.get(key)
    if cached is None:
        cached = _head(response, outputs, binary)
        _heads.put(key, cached)
    return WireBody((cached, *[t.data for t in outputs]), len(cached))


def decode_response(body: Buffer, header_length: int | None) -> InferResponse:
    """Tensors stay where they are in ``body``. Raises ``ProtocolError`` on anything that is not a response."""
    try:
        text, tail = split(memoryview(body), header_length, _UNLIMITED)
        head: _ResponseHead = parse_head(_decoder, text, "the response")
        check_parameters(head.parameters, "the response")
        outputs = read_tensors(head.outputs, tail, "output", _UNLIMITED)
    except MeshError as error:
        raise ProtocolError(f"the answer is not an inference response: {error.text}") from None
    return InferResponse(head.model_name, head.model_version, head.id, head.parameters, outputs)


def _selected(response: InferResponse, request: InferRequest) -> tuple[Sequence[Tensor], Sequence[bool]]:
    """The outputs to answer, in the order of the request, and which of them are binary."""
    if not request.outputs:
        return response.outputs, (request.binary_default,) * len(response.outputs)
    found = {tensor.name: tensor for tensor in response.outputs}
    try:
        return [found[wanted.name] for wanted in request.outputs], [wanted.binary for wanted in request.outputs]
    except KeyError as missing:
        raise InferenceFailed(f"model {response.model!r} answered without {quoted(missing.args[0])}") from None


def _marked(outputs: Sequence[Tensor]) -> bool:
    for tensor in outputs:  # noqa: SIM110 - a generator costs as much as the rest of a cached answer
        if tensor.parameters:
            return True
    return False


def _head(response: InferResponse, outputs: Sequence[Tensor], binary: Sequence[bool]) -> bytes:
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    head["outputs"] = [_output(tensor, as_binary) for tensor, as_binary in zip(outputs, binary, strict=True)]
    return _encoder.encode(head)


def _output(tensor: Tensor, as_binary: bool) -> dict[str, Any]:
    if REGION in tensor.parameters:
        where = tensor.parameters  # its bytes are in shared memory
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "parameters": where}
    expected = prod(tensor.shape) * DATATYPES[tensor.datatype].item_bytes
    if tensor.datatype != "BYTES" and tensor.nbytes != expected:
        raise InferenceFailed(f"output {quoted(tensor.name)}: expected {expected} bytes, got {tensor.nbytes}")
    output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if as_binary:
        output["parameters"] = {**tensor.parameters, "binary_data_size": tensor.nbytes}
        return output
    if tensor.parameters:
        output["parameters"] = tensor.parameters
    output["data"] = encode_data(tensor)
    return output
