"""Heads of HTTP/1.1: of requests, parsed by httptools into what server and door need to know; of answers, written.

Clients repeat their heads to the letter, so parsed ones are kept by their bytes. Not here: bodies and connections
(``http_connection``), what a path means (``http_door``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

import httptools

from mesh.errors import InvalidRequest
from mesh.oip.recent import Recent

CACHED_HEADS = 256
MAX_CACHED_HEAD = 2048
"""A head of many short lines takes thirty times its size when parsed: the two bound what anybody can make us keep."""
MAX_OFFSET_DIGITS = 15
REASONS = {
    200: b"OK", 307: b"Temporary Redirect",
    400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 409: b"Conflict",
    413: b"Content Too Large", 415: b"Unsupported Media Type",
    422: b"Unprocessable Content", 429: b"Too Many Requests", 500: b"Internal Server Error",
    501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """Shared by all requests that send the same bytes: not to be changed.

    Header names are lower case; of a repeated header the last counts. ``path`` is decoded, ``query`` is not.
    """

    method: str
    path: str
    query: bytes
    headers: dict[bytes, bytes] = field(hash=False)
    content_length: int
    chunked: bool
    keep_alive: bool
    http_1_1: bool
    expects_continue: bool
    tensors_at: int
    """Offset of the first tensor in the body (Inference-Header-Content-Length), 0 where there is none."""


class _Fields:
    """Collects what the parser calls back with."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"transfer-encoding" and name in self.headers:
            value = self.headers[name] + b", " + value  # what frames the body is not left to the last one
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self.keep_alive = self.parser.should_keep_alive()  # the parser forgets it when a message without a body ends


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
    if text.count(b"\n") != text.count(b"\r\n"):
        raise InvalidRequest("this is not HTTP/1.1: a line of the head does not end in CR LF")
    fields = _Fields()
    parser = fields.parser
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # an offer to speak something else, which is declined by answering
    except httptools.HttpParserError as error:
        raise InvalidRequest(f"this is not HTTP/1.1: {error}") from None
    headers, http_1_1 = fields.headers, parser.get_http_version() == "1.1"
    if not http_1_1 and parser.get_http_version() != "1.0":
        raise InvalidRequest("only HTTP/1.1 and HTTP/1.0 are spoken here")
    encoding = headers.get(b"transfer-encoding")
    if encoding is not None:
        _check_encoding(encoding, http_1_1=http_1_1, length=b"content-length" in headers)
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
        chunked=encoding is not None,
        keep_alive=http_1_1 and fields.keep_alive,
        http_1_1=http_1_1,
        expects_continue=http_1_1 and headers.get(b"expect", b"").lower() == b"100-continue",
        tensors_at=_offset(headers.get(b"inference-header-content-length", b"")),
    )


def _check_encoding(encoding: bytes, *, http_1_1: bool, length: bool) -> None:
    """Two readings of where a body ends are how requests are smuggled past a proxy: RFC 9112, section 6.1."""
    if encoding.lower() != b"chunked":
        raise InvalidRequest("only chunked is supported as Transfer-Encoding")
    if length or not http_1_1:
        raise InvalidRequest("a request has either Content-Length or, in HTTP/1.1, Transfer-Encoding")


def _offset(digits: bytes) -> int:
    """Only a hint for the alignment; whether it is right is judged when the body is decoded."""
    return int(digits) if digits.isdigit() and len(digits) <= MAX_OFFSET_DIGITS else 0


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines as they are sent."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def answer_head(status: int, fields: bytes, size: int, *, keep_alive: bool) -> bytes:
    """The head of an answer whose body has ``size`` bytes; ``fields`` are :func:`lines` of its other headers."""
    end = b"" if keep_alive else b"connection: close\r\n"
    reason = REASONS.get(status, b"-")
    return b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n%b\r\n" % (status, reason, fields, size, end)


def stream_head(status: int, fields: bytes, *, chunked: bool, keep_alive: bool) -> bytes:
    """As :func:`answer_head`, of an answer whose length is not known."""
    framing = b"transfer-encoding: chunked\r\n" if chunked else b""
    end = b"" if keep_alive else b"connection: close\r\n"
    return b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (status, REASONS.get(status, b"-"), fields, framing, end)
