"""What is said between an agent and its build process: one request in, then lines of JSON out.

The request is an ``EngineRequest``; closing its pipe cancels. Not here: the pipes (``engine_build``,
``engine_process``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from hardware.backend import GIB, EngineOptions


@dataclass(frozen=True, slots=True)
class EngineRequest:
    model_path: str
    model_digest: str
    """SHA-256 of the model file in hex; a file that has another by now is refused."""
    options: EngineOptions
    device: int
    """Which GPU, as CUDA numbers them."""
    cache_dir: str
    key_file: str
    """Secret of the device; made where it is missing."""
    cache_limit_bytes: int = 8 * GIB
    compute_capability: tuple[int, int] | None = None
    """Build for a device that is not at hand; only TensorRT-RTX can."""
    max_model_bytes: int = 2 * GIB


@dataclass(frozen=True, slots=True)
class Engine:
    entry: str
    """Folder of the cache entry."""
    key: str
    cached: bool
    build_s: float
    """How long the build took, also if that was before."""
    plan_bytes: int
    backend: str
    """"tensorrt", "tensorrt-rtx" or "tensorrt-fake"."""


class Progressed(msgspec.Struct, tag="progressed", frozen=True):
    """Also a sign of life: sent now and then while TensorRT reports anything."""

    share: float
    phase: str


class Built(msgspec.Struct, tag="built", frozen=True):
    engine: Engine


class NotBuilt(msgspec.Struct, tag="not_built", frozen=True):
    """A code and text of ``hardware.errors``."""

    code: str
    text: str


Reply = Progressed | Built | NotBuilt

MAX_LINE_BYTES = 64 * 1024
_request = msgspec.json.Decoder(EngineRequest)
_reply: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def line(message: EngineRequest | Reply) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_request(data: Any) -> EngineRequest:
    return _request.decode(data)


def decode_reply(data: Any) -> Reply:
    return _reply.decode(data)
