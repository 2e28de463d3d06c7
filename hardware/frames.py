"""Messages between a parent and its worker: msgpack after a 4-byte little-endian length. Tensors stay in the arena.

Only typed values cross, never pickles, so that neither side can make the other run code. Not here: the pipe itself
(``worker_runtime``, ``worker``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from hardware.arena import Placed, Slot
from hardware.backend import Loaded, LoadOptions

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""Longest frame either side accepts: a model's labels travel in ``Opened``, tensors never."""

DEVICE_FAULT_STATUS = 74
"""Exit status of a worker that ended itself after a sticky device error; its last reply says which."""

_LENGTH = struct.Struct("<I")
_ORDER = struct.Struct("<?QQ")


class Run(msgspec.Struct, array_like=True, tag=0, frozen=True):
    slot: int
    generation: int
    key: str
    inputs: list[Placed]
    outputs: list[str]
    streams: bool = False
    """Whether it is answered in ``Part``s before its ``Done``, which is empty then."""


class Load(msgspec.Struct, array_like=True, tag=1, frozen=True):
    ticket: int
    key: str
    path: str
    options: LoadOptions


class Unload(msgspec.Struct, array_like=True, tag=2, frozen=True):
    ticket: int
    key: str


class Done(msgspec.Struct, array_like=True, tag=0, frozen=True):
    """A run is answered: its tensors lie in the output slot of the same index."""

    slot: int
    generation: int
    outputs: list[Placed]


class Failed(msgspec.Struct, array_like=True, tag=1, frozen=True):
    slot: int
    generation: int
    code: str
    text: str


class Opened(msgspec.Struct, array_like=True, tag=2, frozen=True):
    ticket: int
    loaded: Loaded


class Closed(msgspec.Struct, array_like=True, tag=3, frozen=True):
    ticket: int


class Refused(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """A load or unload failed."""

    ticket: int
    code: str
    text: str


class Ready(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """The worker has mapped its arenas and listens."""

    pid: int


class Part(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """One answer of a run that streams, placed as in ``Done``; the next is not written before the parent's go-on."""

    slot: int
    generation: int
    outputs: list[Placed]


Request = Run | Load | Unload
Reply = Done | Failed | Opened | Closed | Refused | Ready | Part

_encoder = msgspec.msgpack.Encoder()
decode_request: Callable[[Any], Request] = msgspec.msgpack.Decoder(Request).decode
decode_reply: Callable[[Any], Reply] = msgspec.msgpack.Decoder(Reply).decode


def append(buffer: bytearray, message: Request | Reply) -> None:
    """Add one frame to ``buffer``."""
    start = len(buffer)
    buffer += b"\0\0\0\0"
    _encoder.encode_into(message, buffer, start + 4)
    _LENGTH.pack_into(buffer, start, len(buffer) - start - 4)


class Order(NamedTuple):
    """What the control pipe carries about the run in a slot: ``goes_on`` after a part was taken, or nobody wants it any
    more."""

    goes_on: bool
    slot: Slot


def encode_order(order: Order) -> bytes:
    """Shorter than PIPE_BUF, so written whole."""
    return _ORDER.pack(order.goes_on, *order.slot)


def decode_orders(data: bytes) -> tuple[list[Order], bytes]:
    """The orders in ``data``, and the part of one at its end."""
    whole = len(data) - len(data) % _ORDER.size
    return [Order(goes_on, Slot(*at)) for goes_on, *at in _ORDER.iter_unpack(data[:whole])], data[whole:]


class Reader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[memoryview]:
        """Yield the complete frames; raises ``ValueError`` for one over the limit."""
        data = self._rest + chunk if self._rest else chunk
        view = memoryview(data)
        start = 0
        while len(data) - start >= 4:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = start + 4 + length
            if end > len(data):
                break
            yield view[start + 4 : end]
            start = end
        self._rest = data[start:] if start else data
