"""The chunked transfer coding of a request body (RFC 9112, section 7.1), bounded before anything is kept.

Not here: bodies of known length (``http_connection``), which are received where they stay.
"""

from __future__ import annotations

import re

from mesh.errors import InvalidRequest, PayloadTooLarge

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
MAX_LINE = 4096
USUAL_LINE = 32
MAX_TRAILER = 8192


class ChunkedBody:
    """Feed it what has arrived; it says how much it used. Extensions and trailers are read past."""

    def __init__(self, max_bytes: int) -> None:
        self.complete = False
        self.body = bytearray()
        self._max_bytes = max_bytes
        self._size = 0
        self._left = 0
        """Bytes of the current chunk that are still to come, its line end included."""
        self._in_trailer = False
        self._trailer = 0

    def feed(self, data: memoryview) -> int:
        """Bytes of ``data`` that were used. Raises ``InvalidRequest`` or ``PayloadTooLarge``."""
        used = 0
        while not self.complete:
            step = self._data(data[used:]) if self._left else self._line(data[used:])
            if step == 0:
                break
            used += step
        return used

    def _data(self, data: memoryview) -> int:
        take = min(self._left, data.nbytes)
        content = min(max(self._left - 2, 0), take)
        if content:
            self.body += data[:content]  # one piece: chunks of two bytes must not cost fifty each
        ending = bytes(data[content:take])
        if ending != b"\r\n"[2 - (self._left - content) :][: len(ending)]:
            raise InvalidRequest("a chunk of the body is longer than it says")
        self._left -= take
        return take

    def _line(self, data: memoryview) -> int:
        line, end, _ = bytes(data[:USUAL_LINE]).partition(b"\r\n")
        if not end:
            line, end, _ = bytes(data[:MAX_LINE]).partition(b"\r\n")
        if not end:
            if data.nbytes >= MAX_LINE:
                raise InvalidRequest("a line of the chunked body is too long")
            return 0
        used = len(line) + 2
        if self._in_trailer:
            self._trailer += used
            if self._trailer > MAX_TRAILER:
                raise InvalidRequest("the trailer of the chunked body is too long")
            self.complete = not line
            return used
        match = _SIZE.fullmatch(line)
        if match is None:
            raise InvalidRequest("a chunk of the body has no valid size")
        size = int(match[1], 16)
        self._size += size
        if self._size > self._max_bytes:
            raise PayloadTooLarge(f"the body has over {self._max_bytes} bytes, which is what this door takes")
        self._in_trailer = size == 0
        self._left = size + 2 if size else 0
        return used
