"""Heads: what is taken, what is refused, what is kept. Not here: what a connection makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import http_head
from mesh.errors import InvalidRequest
from mesh.http_head import Head, answer_head, lines, parse_head


def head(*fields: bytes, request: bytes = b"POST /v2 HTTP/1.1") -> Head:
    return parse_head(b"\r\n".join([request, b"Host: door", *fields]) + b"\r\n\r\n")


def test_what_a_head_says() -> None:
    said = head(b"Content-Length: 12", b"Expect: 100-Continue", request=b"PUT /v2/m%C3%A9?a=%20 HTTP/1.1")
    assert (said.method, said.path, said.query) == ("PUT", "/v2/m\u00e9", b"a=%20")
    assert said.headers == {b"host": b"door", b"content-length": b"12", b"expect": b"100-Continue"}
    assert (said.content_length, said.chunked, said.keep_alive, said.expects_continue) == (12, False, True, True)
    assert head(b"transfer-encoding: CHUNKED").chunked


@pytest.mark.parametrize(
    ("request_line", "connection", "kept"),
    [
        (b"GET / HTTP/1.1", b"close", False),
        (b"GET / HTTP/1.1", b"keep-alive", True),
        (b"GET / HTTP/1.0", b"close", False),
        (b"GET / HTTP/1.0", b"keep-alive", False),  # it would wait for our "keep-alive", or for the end
    ],
)
def test_what_is_kept_alive(request_line: bytes, connection: bytes, kept: bool) -> None:
    assert head(b"Connection: " + connection, request=request_line).keep_alive is kept


@pytest.mark.parametrize(
    "fields",
    [
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: +5"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: 1_0"],
        [b"Content-Length: 5 5"],
        [b"Content-Length:"],
        [b"Content-Length: " + b"9" * 5000],
        [b"Content-Length : 5"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding:"],
        [b"Transfer-Encoding:\r\n chunked"],
        [b"X: folded\r\n line"],
        [b"X: y\nContent-Length: 5"],
        [b"X: y\rContent-Length: 5"],
        [b"X: a\0b"],
        [b"X\0: a"],
        [b"X: y\r\n\nGET /v2 HTTP/1.1"],
        [b"no colon"],
        [b": no name"],
    ],
)
def test_what_two_servers_could_read_in_two_ways_is_refused(fields: list[bytes]) -> None:
    with pytest.raises(InvalidRequest):
        head(*fields)


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3.0", b"http/1.1", b""])
def test_other_versions_are_refused(version: bytes) -> None:
    with pytest.raises(InvalidRequest):
        head(request=b"GET / " + version)


def test_chunks_are_of_http_1_1() -> None:
    with pytest.raises(InvalidRequest):
        head(b"Transfer-Encoding: chunked", b"Connection: keep-alive", request=b"POST / HTTP/1.0")


@pytest.mark.parametrize(
    ("digits", "offset"), [(b"12", 12), (b"", 0), (b"-1", 0), (b"1e3", 0), (b"\xb2", 0), (b"9" * 5000, 0)]
)
def test_the_offset_of_the_tensors_is_a_hint(digits: bytes, offset: int) -> None:
    assert head(b"Inference-Header-Content-Length: " + digits).tensors_at == offset


def test_heads_that_repeat_are_parsed_once_and_long_ones_are_not_kept() -> None:
    assert head(b"X: repeats") is head(b"X: repeats")
    long = b"X: " + b"a" * http_head.MAX_CACHED_HEAD
    assert head(long) is not head(long)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(text: bytes) -> None:
    for sent in (text, b"GET / HTTP/1.1\r\n" + text, b"POST / HTTP/1.1\r\nHost: " + text):
        try:
            said = parse_head(sent + b"\r\n\r\n")
        except InvalidRequest:
            continue
        assert said.path.startswith("/")
        assert said.content_length >= 0


def test_the_head_of_an_answer() -> None:
    fields = lines([(b"mesh-node", b"a"), (b"x", b"")])
    assert answer_head(200, fields, 3, keep_alive=True) == (
        b"HTTP/1.1 200 OK\r\nmesh-node: a\r\nx: \r\ncontent-length: 3\r\n\r\n"
    )
    assert answer_head(418, b"", 0, keep_alive=False) == (
        b"HTTP/1.1 418 -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
