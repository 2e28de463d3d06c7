"""Compressed bodies: gzip, and deflate as HTTP means it (zlib), bounded before anything is kept.

``Inference-Header-Content-Length`` counts the bytes of the plain body, as Triton's clients do. Not here: the transfer
coding (``http_chunks``).
"""

from __future__ import annotations

import asyncio
import zlib

from mesh.errors import EncodingUnknown, InvalidRequest, PayloadTooLarge
from mesh.oip.wire import Buffer, quoted

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
STEP = 1 << 20
"""Bytes that one step of inflating may come to: what is over the limit is noticed within one."""
PIECE = 64 * 1024
"""Bytes that are given to a step: what it leaves is copied."""
MOST_MEMBERS = 4096
"""Of a gzip body: each costs as much as a piece, however empty it is."""
MAGIC = b"\x1f\x8b"
AT_ONCE = 4 * 1024
"""A body up to this size, which comes to 4 MiB at most, is inflated on the loop, a larger one on a thread."""
ON_LOOP = 64 * 1024
"""An answer up to this size is compressed on the loop."""
WORTH = 1024
"""Answers under this size are sent as they are."""
LEVEL = 1
"""Of compression: a box at the edge has little time for it."""


async def plain(body: Buffer, encoding: str, max_bytes: int) -> Buffer:
    """The body as it was before its ``Content-Encoding``.

    Raises ``EncodingUnknown``, ``InvalidRequest`` for what it did not make, or ``PayloadTooLarge``.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW_BITS:
        raise EncodingUnknown(f"Content-Encoding {quoted(encoding)} is not supported: send it plain, gzip or deflate")
    if len(body) <= AT_ONCE:
        return inflated(body, encoding, max_bytes)
    return await asyncio.to_thread(inflated, body, encoding, max_bytes)


def inflated(body: Buffer, encoding: str, max_bytes: int) -> bytearray:
    """As :func:`plain`, here and now. A gzip body may have several members."""
    found, view, at = bytearray(), memoryview(body), 0
    for _ in range(MOST_MEMBERS):
        at = _member(view, at, encoding, found, max_bytes)
        if at == view.nbytes:
            return found
        if encoding != "gzip" or view[at : at + 2] != MAGIC:
            raise InvalidRequest(f"there is something behind the end of the {encoding} body")
    raise InvalidRequest(f"the gzip body has over {MOST_MEMBERS} members")


def _member(view: memoryview, at: int, encoding: str, found: bytearray, max_bytes: int) -> int:
    """Inflate what begins at ``at`` onto ``found``; where it ended."""
    inflating = zlib.decompressobj(WINDOW_BITS[encoding])
    while not inflating.eof:
        fed: Buffer = inflating.unconsumed_tail
        if not fed:
            fed = view[at : at + PIECE]
            at += len(fed)
        try:
            piece = inflating.decompress(fed, min(STEP, max_bytes + 1 - len(found)))
        except zlib.error:
            raise InvalidRequest(f"the body is not {encoding}, which its Content-Encoding says") from None
        found += piece
        if len(found) > max_bytes:
            raise PayloadTooLarge(f"the body has over {max_bytes} bytes once it is no longer {encoding}")
        if not piece and not fed and not inflating.eof:
            raise InvalidRequest(f"the {encoding} body is cut off")
    return at - len(inflating.unused_data)


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
