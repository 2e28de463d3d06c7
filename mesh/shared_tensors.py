"""The tensors of one request that lie in shared memory: copied in before it goes on, copied out when it is answered.

Copied before they are judged, for the client may change them meanwhile; from then on the request is one like any other
and may go to any node. Not here: the regions (``shared_memory``), what the parameters look like (``oip.head``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.head import OFFSET, REGION, SIZE, Place, TensorHead, binary_tensor, place_of
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Limits, WireBody, quoted
from mesh.shared_memory import SharedMemory

PARAMETERS = {REGION, OFFSET, SIZE}


def is_shared(request: InferRequest) -> bool:
    """Whether any tensor of it lies, or is to be written, in shared memory. Asked of every request."""
    for tensor in request.inputs:
        if tensor.parameters and REGION in tensor.parameters:
            return True
    for output in request.outputs:  # noqa: SIM110 - a generator costs more than this
        if output.parameters and REGION in output.parameters:
            return True
    return False


def fetch(
    request: InferRequest, memory: SharedMemory, limits: Limits, hop_headers: Mapping[str, str] | None
) -> InferRequest:
    """A request with all tensors in it and all outputs in the body of its answer: the very same one if it is that
    already. ``hop_headers`` are None at the first door, the only one that may.

    Raises ``InvalidRequest`` for what does not fit, before anything is run, ``NotFound`` or ``Unsupported``.
    """
    if not is_shared(request):
        return request
    if hop_headers is not None:
        raise InvalidRequest("shared memory is of the first door's host, and is not passed on")
    places = [place_of(tensor.parameters, f"input {quoted(tensor.name)}") for tensor in request.inputs]
    total = sum(place.byte_size for place in places if place is not None)
    if total > limits.max_body_bytes:
        raise PayloadTooLarge(
            f"the inputs in shared memory have {total} bytes, over the limit of {limits.max_body_bytes}"
        )
    for output in request.outputs:
        _check_output(output, memory)
    inputs = tuple(
        tensor if place is None else _fetched(tensor, place, memory, limits)
        for tensor, place in zip(request.inputs, places, strict=True)
    )
    outputs = tuple(
        RequestedOutput(o.name, True, _without(o.parameters)) if REGION in o.parameters else o for o in request.outputs
    )
    who = request.model, request.version, request.id
    return InferRequest(*who, request.parameters, inputs, outputs, request.binary_default, None)


def deliver(body: WireBody, request: InferRequest, memory: SharedMemory) -> WireBody:
    """Write the outputs where ``request``, as it came, wants them; the answer then names the place in their stead.

    Raises ``InvalidRequest`` if one does not fit.
    """
    wanted = {o.name: place for o in request.outputs if (place := place_of(o.parameters, "an output")) is not None}
    if not wanted:
        return body
    answer = decode_response(body.joined(), body.header_length)
    outputs = tuple(
        tensor if tensor.name not in wanted else _delivered(tensor, wanted[tensor.name], memory)
        for tensor in answer.outputs
    )
    return encode_response(InferResponse(answer.model, answer.version, answer.id, answer.parameters, outputs), request)


def _fetched(tensor: Tensor, place: Place, memory: SharedMemory, limits: Limits) -> Tensor:
    data = memoryview(memory.read(*place))
    head = TensorHead(tensor.name, tensor.datatype, list(tensor.shape), _without(tensor.parameters))
    return binary_tensor(head, data.nbytes, data, f"input {quoted(tensor.name)}", limits)


def _check_output(output: RequestedOutput, memory: SharedMemory) -> None:
    what = f"requested output {quoted(output.name)}"
    if (place := place_of(output.parameters, what)) is None:
        return
    if "classification" in output.parameters:
        raise InvalidRequest(f"{what} cannot be a classification and go to shared memory")
    memory.check(*place)


def _delivered(tensor: Tensor, place: Place, memory: SharedMemory) -> Tensor:
    if tensor.nbytes > place.byte_size:
        raise InvalidRequest(
            f"shared memory size specified with the request for output {quoted(tensor.name)} ({place.byte_size} bytes) "
            f"should be at least {tensor.nbytes} bytes to hold the results"
        )
    memory.write(place.region, place.offset, tensor.data)
    where: dict[str, Any] = {REGION: place.region, SIZE: tensor.nbytes}
    if place.offset:
        where[OFFSET] = place.offset
    return Tensor(tensor.name, tensor.datatype, tensor.shape, b"", tensor.parameters | where)


def _without(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in PARAMETERS}
