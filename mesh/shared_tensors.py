"""The tensors of one request that lie in shared memory: copied in before it goes on, copied out when it is answered.

Copied before they are judged, for the client may change them meanwhile; from then on the request is one like any other
and may go to any node. Large copies are made on a thread. Not here: the regions (``shared_memory``), what the
parameters look like (``oip.head``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from mesh.errors import InvalidRequest, PayloadTooLarge, Unsupported
from mesh.oip.head import OFFSET, REGION, SIZE, Place, TensorHead, binary_tensor, place_of
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Limits, WireBody, quoted
from mesh.shared_memory import Piece, SharedMemory

PARAMETERS = {REGION, OFFSET, SIZE}
ON_LOOP = 1 << 20
"""Bytes that are copied on the loop: it takes about as long as handing them to a thread and back."""


def is_shared(request: InferRequest) -> bool:
    """Whether any tensor of it lies, or is to be written, in shared memory. Asked of every request."""
    for tensor in request.inputs:
        if tensor.parameters and REGION in tensor.parameters:
            return True
    for output in request.outputs:  # noqa: SIM110 - a generator costs more than this
        if output.parameters and REGION in output.parameters:
            return True
    return False


def check_none(request: InferRequest) -> None:
    """For doors whose callers need not be on this host. Raises ``InvalidRequest``."""
    if is_shared(request):
        raise InvalidRequest("shared memory is for callers on this host, by HTTP or gRPC")


def check_stream(request: InferRequest) -> None:
    """For requests that are answered any number of times. Raises ``Unsupported``."""
    if any(REGION in output.parameters for output in request.outputs):
        raise Unsupported("outputs of a stream cannot lie in shared memory: the next answer would overwrite the last")


class Outputs:
    """The outputs of a request that go to shared memory, where they were found when it came."""

    def __init__(self, asked: InferRequest, places: Mapping[str, tuple[Place, Piece]]) -> None:
        self._asked = asked
        self._places = places

    async def deliver(self, body: WireBody) -> WireBody:
        """Write them where the request, as it came, wants them; the answer then names the place in their stead.

        Raises ``InvalidRequest`` if one does not fit, before any is written.
        """
        if not self._places:
            return body
        return self._delivered(body) if body.nbytes <= ON_LOOP else await asyncio.to_thread(self._delivered, body)

    def _delivered(self, body: WireBody) -> WireBody:
        answer = decode_response(body.joined(), body.header_length)
        for tensor in answer.outputs:
            if tensor.name in self._places:
                _check_room(tensor, self._places[tensor.name][0])
        answer.outputs = tuple(
            [_written(t, *self._places[t.name]) if t.name in self._places else t for t in answer.outputs]
        )
        return encode_response(answer, self._asked)


async def fetch(
    request: InferRequest, memory: SharedMemory, limits: Limits, hop_headers: Mapping[str, str] | None
) -> tuple[InferRequest, Outputs | None]:
    """A request with all tensors in it and all outputs in the body of its answer, and where these go then; itself and
    None if it is that already. ``hop_headers`` are None at the first door, the only one that may.

    Raises ``InvalidRequest`` for what does not fit, before anything is run, ``NotFound`` or ``Unsupported``.
    """
    if not is_shared(request):
        return request, None
    if hop_headers is not None:
        raise InvalidRequest("shared memory is of the first door's host, and is not passed on")
    pieces = [_piece(tensor.parameters, f"input {quoted(tensor.name)}", memory) for tensor in request.inputs]
    total = sum(piece.nbytes for piece in pieces if piece is not None)
    if total > limits.max_body_bytes:
        raise PayloadTooLarge(
            f"the inputs in shared memory have {total} bytes, over the limit of {limits.max_body_bytes}"
        )
    places = {output.name: found for output in request.outputs if (found := _place(output, memory)) is not None}

    def inputs() -> tuple[Tensor, ...]:
        pairs = zip(request.inputs, pieces, strict=True)
        return tuple([tensor if piece is None else _fetched(tensor, piece, limits) for tensor, piece in pairs])

    fetched = inputs() if total <= ON_LOOP else await asyncio.to_thread(inputs)
    outputs = tuple(
        RequestedOutput(o.name, True, _without(o.parameters)) if REGION in o.parameters else o for o in request.outputs
    )
    who = request.model, request.version, request.id
    asked = InferRequest(*who, request.parameters, fetched, outputs, request.binary_default, None)
    return asked, Outputs(request, places)


def _piece(parameters: dict[str, Any], what: str, memory: SharedMemory) -> Piece | None:
    place = place_of(parameters, what)
    return None if place is None else memory.piece(*place)


def _fetched(tensor: Tensor, piece: Piece, limits: Limits) -> Tensor:
    data = memoryview(piece.read())
    head = TensorHead(tensor.name, tensor.datatype, list(tensor.shape), _without(tensor.parameters))
    return binary_tensor(head, data.nbytes, data, f"input {quoted(tensor.name)}", limits)


def _place(output: RequestedOutput, memory: SharedMemory) -> tuple[Place, Piece] | None:
    what = f"requested output {quoted(output.name)}"
    if (place := place_of(output.parameters, what)) is None:
        return None
    if "classification" in output.parameters:
        raise InvalidRequest(f"{what} cannot be a classification and go to shared memory")
    return place, memory.piece(*place)


def _check_room(tensor: Tensor, place: Place) -> None:
    if tensor.nbytes > place.byte_size:
        raise InvalidRequest(
            f"shared memory size specified with the request for output {quoted(tensor.name)} ({place.byte_size} bytes) "
            f"should be at least {tensor.nbytes} bytes to hold the results"
        )


def _written(tensor: Tensor, place: Place, piece: Piece) -> Tensor:
    piece.write(tensor.data)
    where: dict[str, Any] = {REGION: place.region, SIZE: tensor.nbytes}
    if place.offset:
        where[OFFSET] = place.offset
    return Tensor(tensor.name, tensor.datatype, tensor.shape, b"", tensor.parameters | where)


def _without(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in PARAMETERS}
