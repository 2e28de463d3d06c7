"""The small JSON documents of OIP: server metadata, model metadata, model ready, error. Not here: inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mesh.errors import InvalidRequest, ProtocolError
from mesh.oip.json_data import parse
from mesh.values import ModelMetadata, TensorSpec


class ServerMetadata(msgspec.Struct, frozen=True):
    """What ``GET /v2`` answers."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


class _Spec(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct, omit_defaults=True):
    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[_Spec, ...] = ()
    outputs: tuple[_Spec, ...] = ()
    parameters: dict[str, str] = {}


class _Ready(msgspec.Struct):
    name: str
    ready: bool


class _Error(msgspec.Struct):
    error: str


_encoder = msgspec.json.Encoder()
_server = msgspec.json.Decoder(ServerMetadata)
_metadata = msgspec.json.Decoder(_Metadata)
_ready = msgspec.json.Decoder(_Ready)
_error = msgspec.json.Decoder(_Error)


def encode_server_metadata(name: str, version: str, extensions: Sequence[str]) -> bytes:
    return _encoder.encode(ServerMetadata(name, version, tuple(extensions)))


def decode_server_metadata(body: bytes) -> ServerMetadata:
    """Raises ``ProtocolError``, as all decoders here that do not say otherwise."""
    found: ServerMetadata = _parsed(_server, body, "server metadata")
    return found


def encode_model_metadata(metadata: ModelMetadata) -> bytes:
    """``parameters`` are this mesh's addition, and left out if there are none; every other field is always there."""
    document: dict[str, Any] = {
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": metadata.inputs,
        "outputs": metadata.outputs,
    }
    if metadata.parameters:
        document["parameters"] = metadata.parameters
    return _encoder.encode(document)


def decode_model_metadata(body: bytes) -> ModelMetadata:
    found: _Metadata = _parsed(_metadata, body, "model metadata")
    inputs, outputs = _specs(found.inputs), _specs(found.outputs)
    return ModelMetadata(found.name, found.versions, found.platform, inputs, outputs, found.parameters)


def encode_model_ready(name: str, ready: bool) -> bytes:
    return _encoder.encode(_Ready(name, ready))


def decode_model_ready(body: bytes) -> bool:
    found: _Ready = _parsed(_ready, body, "a model-ready document")
    return found.ready


def encode_error(text: str) -> bytes:
    """Never fails: an error that cannot be told would hide itself."""
    return _encoder.encode(_Error(text.encode("utf-8", "backslashreplace").decode()))


def decode_error(body: bytes) -> str:
    """The text of an error document, empty if ``body`` is none (a proxy's page, say)."""
    try:
        found: _Error = parse(_error, body, "the error")
    except InvalidRequest:
        return ""
    return found.error


def _parsed(decoder: msgspec.json.Decoder[Any], body: bytes, what: str) -> Any:
    try:
        return parse(decoder, body, what)
    except InvalidRequest as error:
        raise ProtocolError(f"the answer is not {what}: {error.text}") from None


def _specs(found: tuple[_Spec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, spec.shape) for spec in found)
