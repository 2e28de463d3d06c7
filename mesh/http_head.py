"""The head of an HTTP/1.1 request: bytes to what the server and the door need to know. Parsed by httptools.

Clients repeat their heads to the letter, so parsed ones are kept by their bytes. Not here: bodies and connections
(``http_connection``), what a path means (``http_door``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

import httptools

from mesh.errors import InvalidRequest
from mesh.oip.recent import Recent

CACHED_HEADS = 1024
MAX_CACHED_HEAD = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """Header names are lower case; of a repeated header the last counts. ``path`` is decoded, ``query`` is not."""

    method: str
    path: str
    query: bytes
    headers: dict[bytes, bytes] = field(hash=False)
    content_length: int
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    tensors_at: int
    """Offset of the first tensor in the body (Inference-Header-Content-Length), 0 where there is none."""


class _Fields:
    """Collects what the parser calls back with."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value


_heads: Recent[bytes, Head] = Recent(CACHED_HEADS)


def parse_head(text: bytes) -> Head:
    """``text`` ends with the empty line. Raises ``InvalidRequest``."""
    head = _heads.get(text)
    if head is None:
        head = _parse(text)
        if len(text) <= MAX_CACHED_HEAD:
            _heads.put(text, head)
    return head


def _parse(text: bytes) -> Head:
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # an offer to speak something else, which is declined by answering
    except httptools.HttpParserError as error:
        raise InvalidRequest(f"this is not HTTP/1.1: {error}") from None
    headers = fields.headers
    encoding = headers.get(b"transfer-encoding", b"").lower()
    if encoding not in (b"", b"chunked"):
        raise InvalidRequest("only chunked is supported as Transfer-Encoding")
    if encoding and b"content-length" in headers:
        raise InvalidRequest("a request has either Content-Length or Transfer-Encoding, not both")
    try:
        url = httptools.parse_url(fields.url)
    except httptools.HttpParserInvalidURLError:
        raise InvalidRequest("the request line has no valid path") from None
    return Head(
        method=parser.get_method().decode("latin-1"),
        path=unquote((url.path or b"/").decode("latin-1"), "utf-8"),
        query=url.query or b"",
        headers=headers,
        content_length=int(headers.get(b"content-length", b"0") or b"0"),
        chunked=bool(encoding),
        keep_alive=parser.should_keep_alive(),
        expects_continue=headers.get(b"expect", b"").lower() == b"100-continue",
        tensors_at=int(offset) if (offset := headers.get(b"inference-header-content-length", b"")).isdigit() else 0,
    )
