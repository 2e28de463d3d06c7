"""Answers as serialized messages, put together from pieces: tensors are copied once, into the message that is sent.

What an answer says beside its tensors is kept by its head, which repeats. Serialized messages that stand one behind the
other are one message, so that an answer can be completed without being parsed. Not here: requests (``grpc_codec``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mesh.grpc_protocol import message_class
from mesh.hop import Reply
from mesh.oip.recent import Recent
from mesh.oip.response import InferResponse, decode_response
from mesh.oip.wire import Buffer, WireBody, buffer_bytes

FINAL = "triton_final_response"
"""Parameter of an answer on a stream: whether it is the last one to its request."""
MAX_CACHED_HEAD = 4096
CACHED_HEADS = 512

_Response = message_class("inference.ModelInferResponse")
_Part = message_class("inference.ModelStreamInferResponse")


def _key(message: Any, field: str) -> bytes:
    """What stands before the length of a field of bytes."""
    number = message.DESCRIPTOR.fields_by_name[field].number << 3 | 2
    return bytes((number,))


_CONTENT = _key(_Response, "raw_output_contents")
_ANSWER = _key(_Part, "infer_response")


class _Layout(msgspec.Struct, frozen=True):
    """What a head says: the message without contents, and the bytes of each content."""

    message: bytes
    sizes: tuple[int, ...]


_layouts: Recent[bytes, _Layout] = Recent(CACHED_HEADS)


def encode_reply(reply: Reply) -> bytes:
    """A serialized ``ModelInferResponse``. Raises ``ProtocolError``."""
    return b"".join(_pieces(reply))


def encode_part(reply: Reply, *, final: bool) -> bytes:
    """A serialized ``ModelStreamInferResponse``. Raises ``ProtocolError``."""
    pieces = [*_pieces(reply), _FINAL if final else _NOT_FINAL]
    return b"".join((_ANSWER, _length(sum(map(buffer_bytes, pieces))), *pieces))


def encode_end(model: str, version: str, request_id: str) -> bytes:
    """The part that only says that nothing more comes."""
    response = _Response(model_name=model, model_version=version, id=request_id)
    response.parameters[FINAL].bool_param = True
    return bytes(_Part(infer_response=response).SerializeToString())


def encode_failure(text: str, request_id: str) -> bytes:
    """The part that answers one request of a stream with an error; the stream goes on."""
    return bytes(_Part(error_message=text, infer_response=_Response(id=request_id)).SerializeToString())


def write_parameters(into: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bool):
            into[name].bool_param = value
        elif isinstance(value, int):
            if value < 2**63:
                into[name].int64_param = value
            else:
                into[name].uint64_param = value
        elif isinstance(value, float):
            into[name].double_param = value
        else:
            into[name].string_param = str(value)


def _pieces(reply: Reply) -> list[Buffer]:
    body = reply.body
    key = _head(body)
    layout = _layouts.get(key) if key else None
    if layout is not None and body.nbytes == len(key) + sum(layout.sizes):
        return _with_contents(layout.message, _contents(body, layout.sizes))
    answer = decode_response(body.joined(), body.header_length)
    message, sizes = _message(answer), tuple(tensor.nbytes for tensor in answer.outputs)
    if key and not answer.id and body.nbytes == len(key) + sum(sizes):  # no tensor is in the head
        _layouts.put(key, _Layout(message, sizes))
    return _with_contents(message, [tensor.data for tensor in answer.outputs])


def _head(body: WireBody) -> bytes:
    """The JSON head of a body that has tensors behind it, empty where it is not worth remembering."""
    first, length = body.parts[0], body.header_length
    if length is None or not length <= min(MAX_CACHED_HEAD, buffer_bytes(first)):
        return b""
    return first if type(first) is bytes and len(first) == length else bytes(memoryview(first)[:length])


def _contents(body: WireBody, sizes: tuple[int, ...]) -> Sequence[Buffer]:
    """The tensors behind the head."""
    if tuple(map(buffer_bytes, body.parts[1:])) == sizes:
        return body.parts[1:]
    assert body.header_length is not None  # noqa: S101 - there was a head
    whole, at, found = memoryview(body.joined()), body.header_length, []
    for size in sizes:
        found.append(whole[at : at + size])
        at += size
    return found


def _with_contents(message: bytes, contents: Sequence[Buffer]) -> list[Buffer]:
    pieces: list[Buffer] = [message]
    for content in contents:
        pieces += (_CONTENT, _length(buffer_bytes(content)), content)
    return pieces


def _length(count: int) -> bytes:
    """A varint."""
    encoded = bytearray()
    while count > 0x7F:
        encoded.append(count & 0x7F | 0x80)
        count >>= 7
    encoded.append(count)
    return bytes(encoded)


def _message(answer: InferResponse) -> bytes:
    response = _Response(model_name=answer.model, model_version=answer.version, id=answer.id)
    write_parameters(response.parameters, answer.parameters)
    for tensor in answer.outputs:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        write_parameters(output.parameters, tensor.parameters)
    return bytes(response.SerializeToString())


def _final(value: bool) -> bytes:
    response = _Response()
    response.parameters[FINAL].bool_param = value
    return bytes(response.SerializeToString())


_FINAL, _NOT_FINAL = _final(True), _final(False)
