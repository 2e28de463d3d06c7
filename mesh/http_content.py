"""Compressed bodies: gzip, and deflate as HTTP means it (zlib), bounded before anything is kept.

``Inference-Header-Content-Length`` counts the bytes of the plain body, as Triton's clients do. Not here: the transfer
coding (``http_chunks``).
"""

from __future__ import annotations

import asyncio
import zlib

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.wire import Buffer, quoted

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
STEP = 1 << 20
"""Bytes that one step of inflating may come to: what is over the limit is noticed within one."""
ON_LOOP = 64 * 1024
"""Up to this size it is done at once, above it on a thread."""
WORTH = 1024
"""Answers under this size are sent as they are."""
LEVEL = 1
"""Of compression: a box at the edge has little time for it."""


async def plain(body: Buffer, encoding: str, max_bytes: int) -> Buffer:
    """The body as it was before its ``Content-Encoding``.

    Raises ``InvalidRequest`` for an unknown one and for what it did not make, or ``PayloadTooLarge``.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW_BITS:
        raise InvalidRequest(f"Content-Encoding {quoted(encoding)} is not supported: send it plain, gzip or deflate")
    if len(body) <= ON_LOOP and max_bytes <= ON_LOOP:
        return inflated(body, encoding, max_bytes)
    return await asyncio.to_thread(inflated, body, encoding, max_bytes)


def inflated(body: Buffer, encoding: str, max_bytes: int) -> bytes:
    """As :func:`plain`, here and now. A gzip body may have several members."""
    found, rest = bytearray(), bytes(body)
    while True:
        inflating = zlib.decompressobj(WINDOW_BITS[encoding])
        while not inflating.eof:
            try:
                piece = inflating.decompress(rest, min(STEP, max_bytes + 1 - len(found)))
            except zlib.error:
                raise InvalidRequest(f"the body is not {encoding}, which its Content-Encoding says") from None
            found += piece
            if len(found) > max_bytes:
                raise PayloadTooLarge(f"the body has over {max_bytes} bytes once it is no longer {encoding}")
            rest = inflating.unconsumed_tail
            if not piece and not rest and not inflating.eof:
                raise InvalidRequest(f"the {encoding} body is cut off")
        rest = inflating.unused_data
        if not rest:
            return bytes(found)
        if encoding != "gzip" or rest[:2] != b"\x1f\x8b":
            raise InvalidRequest(f"there is something behind the end of the {encoding} body")


def wanted(accept: bytes) -> str:
    """The coding that an answer is asked in, if exactly one is named: lists are what browsers and libraries send to
    everybody, and compressing tensors costs more than it saves."""
    name = accept.decode("latin-1").strip().lower()
    return name if name in WINDOW_BITS else ""


async def compressed(parts: tuple[Buffer, ...], encoding: str) -> Buffer | None:
    """All of them as one, compressed; None where that is not worth it."""
    size = sum(memoryview(part).nbytes for part in parts)
    if size < WORTH:
        return None
    if size <= ON_LOOP:
        return deflated(parts, encoding)
    return await asyncio.to_thread(deflated, parts, encoding)


def deflated(parts: tuple[Buffer, ...], encoding: str) -> bytes:
    deflating = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW_BITS[encoding])
    return b"".join([*map(deflating.compress, parts), deflating.flush()])
