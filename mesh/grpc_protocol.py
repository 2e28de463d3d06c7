"""The messages of gRPC, from descriptors of our own in a pool of our own.

Generated modules register in the process's one pool under the protocol's package name, and two that do so cannot live
in one process: a server made the usual way could not be imported beside ``tritonclient`` or ``kserve`` (ADR 14). The
wire carries paths and numbers only. Not here: what a message means (``grpc_codec``), calls (``grpc_door``).
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message, message_factory

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.wire import Limits

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVED = (INFERENCE, HEALTH, *REFLECTION)

UNCHECKED_BYTES = 1 << 20
"""A message up to this size is parsed as it is."""
MAX_FIELDS = 4096
MALFORMED = "the message is no protocol buffer"

LIMITS = Limits()

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Kinds of a field on the wire, and the bytes of those that have always as many."""

POOL = descriptor_pool.DescriptorPool()


def _load() -> None:
    serialized = resources.files("mesh.oip").joinpath("protocols.pb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(serialized)
    for file in files.file:
        POOL.Add(file)


_load()

_RAW = POOL.FindFieldByName("inference.ModelInferRequest.raw_input_contents").number << 3 | _BYTES


def message_class(name: str) -> Any:
    """The class of a message by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


class Method:
    """One call: its path, and the messages it takes and gives."""

    def __init__(self, served: str, name: str) -> None:
        found = POOL.FindServiceByName(served).methods_by_name[name]
        self.name = name
        self.path = f"/{served}/{name}"
        self.request = message_factory.GetMessageClass(found.input_type)
        self.response = message_factory.GetMessageClass(found.output_type)

    def parse(self, data: bytes, limits: Limits = LIMITS) -> Any:
        """Raises ``InvalidRequest`` or ``PayloadTooLarge``."""
        _check_fields(data, limits)
        try:
            return self.request.FromString(data)
        except message.DecodeError:
            raise InvalidRequest(f"the message is no {self.request.DESCRIPTOR.full_name}") from None

    def serialized(self, document: Any) -> bytes:
        """The answer of a JSON-able document; fields that this mesh's protocol does not have are left out."""
        answer = json_format.ParseDict(document, self.response(), ignore_unknown_fields=True, descriptor_pool=POOL)
        return bytes(answer.SerializeToString())


def methods(served: str) -> dict[str, Method]:
    """Every call of a protocol, by its name."""
    return {name: Method(served, name) for name in POOL.FindServiceByName(served).methods_by_name}


def _check_fields(data: bytes, limits: Limits) -> None:
    """Look at the outermost fields of a large message before it is parsed: parsed, small fields take up to fifty times
    the room that they take here, so only raw contents may be large. Raises ``PayloadTooLarge`` or ``InvalidRequest``.
    """
    if len(data) <= UNCHECKED_BYTES:
        return
    at, fields, small = 0, 0, 0
    while at < len(data):
        begin = at
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        else:
            at += _FIXED.get(kind, len(data) + 1)
        if at > len(data):
            raise InvalidRequest(MALFORMED)
        fields += 1
        small += 0 if key == _RAW else at - begin
        if fields > MAX_FIELDS or small > limits.max_json_bytes:
            raise PayloadTooLarge(
                f"the message has more than {MAX_FIELDS} fields, or more than {limits.max_json_bytes} bytes beside raw "
                "contents: send large tensors raw"
            )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise InvalidRequest(MALFORMED)


def file_of(symbol: str) -> bytes:
    """The serialized descriptor of the file that defines ``symbol``. Raises ``KeyError``."""
    return _serialized(POOL.FindFileContainingSymbol(symbol))


def file_named(name: str) -> bytes:
    """As :func:`file_of`, by the file's name."""
    return _serialized(POOL.FindFileByName(name))


def _serialized(file: Any) -> bytes:
    return bytes(file.serialized_pb)
