"""The answers of a stream on a wire between nodes: frames one behind the other, the last of which says how it ended.

A frame is its kind (one byte), the length of the JSON head (uint32, ``NO_HEAD`` where the body is JSON only), the
length of the body (uint32), little-endian, and the body. An answer's body is that of an inference response; that of an
error is a JSON document. Not here: server-sent events (``http_stream``), what carries the frames.
"""

from __future__ import annotations

import struct

import msgspec

from mesh.errors import MeshError, ProtocolError, from_wire
from mesh.messages import Load
from mesh.oip.wire import Buffer, WireBody

CONTENT_TYPE = "application/vnd.mesh.frames"
NO_HEAD = 0xFFFFFFFF
MAX_BYTES = 1 << 30
_HEAD = struct.Struct("<BII")
_ANSWER, _END, _ERROR = 1, 2, 3


class _Failed(msgspec.Struct, omit_defaults=True):
    code: str
    text: str
    status: int
    retry_after_s: float | None = None
    load: str = ""
    """Of the node that failed, as its header has it."""


_decoder = msgspec.json.Decoder(_Failed)

END = _HEAD.pack(_END, NO_HEAD, 0)
"""The frame behind the last answer."""


def frame(body: WireBody) -> tuple[Buffer, ...]:
    """One answer, its tensors not copied."""
    length = NO_HEAD if body.header_length is None else body.header_length
    return (_HEAD.pack(_ANSWER, length, body.nbytes), *body.parts)


def error_frame(error: MeshError) -> bytes:
    """The frame of a stream that ended with an error."""
    load = error.load.header() if error.load is not None else ""
    text = msgspec.json.encode(_Failed(error.code, error.text, error.status, error.retry_after_s, load))
    return _HEAD.pack(_ERROR, NO_HEAD, len(text)) + text


class Frames:
    """Cuts what arrives into answers. Once the last frame was read it has ``ended``, with an ``error`` or without.

    A frame over ``max_bytes`` is refused before it is gathered. What is no frame ends the stream too.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.ended = False
        self.error: MeshError | None = None
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: Buffer) -> list[WireBody]:
        """The answers that are whole by now."""
        rest = self._rest
        rest += data
        whole: list[WireBody] = []
        while len(rest) >= _HEAD.size and not self.ended:
            kind, head, size = _HEAD.unpack_from(rest)
            end = _HEAD.size + size
            if size > self._max_bytes or kind not in (_ANSWER, _END, _ERROR) or (head > size and head != NO_HEAD):
                self._end(ProtocolError("a stream of the mesh holds something that is no frame of it"))
            elif len(rest) < end:
                break
            else:
                body = bytes(memoryview(rest)[_HEAD.size : end])
                del rest[:end]
                if kind == _ANSWER:
                    whole.append(WireBody((body,), None if head == NO_HEAD else head))
                else:
                    self._end(_error(body) if kind == _ERROR else None)
        return whole

    def _end(self, error: MeshError | None) -> None:
        self.ended, self.error = True, error
        self._rest.clear()


def _error(body: bytes) -> MeshError:
    try:
        failed = _decoder.decode(body)
        load = Load.from_header(failed.load) if failed.load else None
    except (msgspec.MsgspecError, ProtocolError):
        return ProtocolError("a stream of the mesh ended with an error that is none")
    error = from_wire(failed.code, failed.text, failed.status, failed.retry_after_s)
    error.load = load
    return error
