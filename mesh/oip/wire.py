"""What a request or response is on the wire, and how large it may be. Values only: the codec is elsewhere.

Values that every request makes are ``msgspec.Struct``: they are built four times as fast as dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mesh.errors import InvalidRequest

Buffer = bytes | bytearray | memoryview

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Checked before anything is allocated. OIP itself knows none of them."""

    max_body_bytes: int = 64 * MIB
    max_header_bytes: int = MIB
    """Of the JSON head, where tensors follow it."""
    max_json_bytes: int = 16 * MIB
    """Of a body that is JSON only: while it is decoded, a number takes up to 16 times the room of its text."""
    max_rank: int = 8
    """TensorRT's ``Dims::MAX_DIMS``, the lowest of the runtimes: a higher rank would run on some nodes only."""
    max_inputs: int = 256
    max_outputs: int = 256
    max_bytes_elements: int = 1 << 20
    """Elements of one BYTES tensor: each is walked in Python, about 0.1 us, on the event loop."""


class WireBody(msgspec.Struct, frozen=True):
    """A body in parts that are sent one after the other; ``header_length`` is None where it is JSON only."""

    parts: tuple[Buffer, ...]
    header_length: int | None

    @property
    def nbytes(self) -> int:
        return sum(buffer_bytes(part) for part in self.parts)

    def joined(self) -> bytes:
        """The whole body; copies nothing if it is one ``bytes`` object already."""
        if len(self.parts) == 1:
            return bytes(self.parts[0])
        return b"".join(self.parts)


def read_length(header: str | bytes | None) -> int | None:
    """Bytes of the head, as ``Inference-Header-Content-Length`` gives them. Raises ``InvalidRequest``."""
    if header is None:
        return None
    if not header.isdigit() or not header.isascii():
        text = header if isinstance(header, str) else header.decode("latin-1")
        raise InvalidRequest(f"Inference-Header-Content-Length must be a count of bytes, got {quoted(text)}")
    return int(header[:20])


def buffer_bytes(buffer: Buffer) -> int:
    """Size in bytes; ``len`` of a memoryview counts elements."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def quoted(value: object) -> str:
    """A caller's value inside an error's text: short, and with anything unprintable escaped."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "an integer of more than 64 bits"  # which Python may refuse to print
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 64 else text[:61] + "...")
