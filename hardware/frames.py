"""Messages between a parent and its worker: msgpack after a 4-byte little-endian length. Tensors stay in the arena.

Only typed values cross, never pickles, so that neither side can make the other run code. Not here: the pipe itself
(``worker_runtime``, ``worker``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from hardware.arena import Placed, Slot
from hardware.backend import Loaded, LoadOptions

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""Longest frame either side accepts: a model's labels travel in ``Opened``, tensors never."""

DEVICE_FAULT_STATUS = 74
"""Exit status of a worker that ended itself after a sticky device error; its last reply says which."""

_LENGTH = struct.Struct("<I")
_SLOT = struct.Struct("<QQ")


class Run(msgspec.Struct, array_like=True, tag=0, frozen=True):
    slot: int
    generation: int
    key: str
    inputs: list[Placed]
    outputs: list[str]


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


Request = Run | Load | Unload
Reply = Done | Failed | Opened | Closed | Refused | Ready

_encoder = msgspec.msgpack.Encoder()
decode_request: Callable[[Any], Request] = msgspec.msgpack.Decoder(Request).decode
decode_reply: Callable[[Any], Reply] = msgspec.msgpack.Decoder(Reply).decode


def append(buffer: bytearray, message: Request | Reply) -> None:
    """Add one frame to ``buffer``."""
    start = len(buffer)
    buffer += b"\0\0\0\0"
    _encoder.encode_into(message, buffer, start + 4)
    _LENGTH.pack_into(buffer, start, len(buffer) - start - 4)


def encode_slot(slot: Slot) -> bytes:
    """What the control pipe carries: a run that nobody wants any more. Shorter than PIPE_BUF, so written whole."""
    return _SLOT.pack(*slot)


def decode_slots(data: bytes) -> tuple[list[Slot], bytes]:
    """The slots in ``data``, and the part of one at its end."""
    whole = len(data) - len(data) % _SLOT.size
    return [Slot(*fields) for fields in _SLOT.iter_unpack(data[:whole])], data[whole:]


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
