"""Compressed bodies: whatever comes, no more than the limit is ever kept, and what is not whole is refused."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.http_content import compressed, deflated, inflated, plain, wanted

MADE = {"gzip": lambda data: gzip.compress(data), "deflate": lambda data: zlib.compress(data)}
encodings = pytest.mark.parametrize("encoding", MADE)


@encodings
@given(data=st.binary(max_size=2_000), limit=st.integers(0, 2_000))
def test_a_body_comes_back_or_is_too_large(encoding: str, data: bytes, limit: int) -> None:
    body = MADE[encoding](data)
    if len(data) <= limit:
        assert inflated(body, encoding, limit) == data
        return
    with pytest.raises(PayloadTooLarge, match=f"over {limit} bytes"):
        inflated(body, encoding, limit)


@encodings
@given(body=st.binary(max_size=300))
def test_anything_else_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises((InvalidRequest, PayloadTooLarge)):
        inflated(body, encoding, 100)


@encodings
@given(data=st.binary(min_size=1, max_size=500), cut=st.integers(1, 400))
def test_a_cut_is_noticed(encoding: str, data: bytes, cut: int) -> None:
    body = MADE[encoding](data)
    with pytest.raises(InvalidRequest):
        inflated(body[: max(len(body) - cut, 0)], encoding, 1_000)


def test_what_comes_behind() -> None:
    twice = gzip.compress(b"one") + gzip.compress(b"two")
    assert inflated(twice, "gzip", 6) == b"onetwo"
    with pytest.raises(PayloadTooLarge):
        inflated(twice, "gzip", 5)
    for body, encoding in ((gzip.compress(b"one") + b"x", "gzip"), (zlib.compress(b"one") * 2, "deflate")):
        with pytest.raises(InvalidRequest, match="behind the end"):
            inflated(body, encoding, 100)


@encodings
async def test_a_bomb_is_defused(encoding: str) -> None:
    bomb = MADE[encoding](bytes(64 << 20))
    with pytest.raises(PayloadTooLarge):
        await plain(bomb, encoding, 1 << 20)


@encodings
async def test_answers_are_compressed_where_that_is_worth_it(encoding: str) -> None:
    assert await compressed((b"short",), encoding) is None
    for size in (2_000, 200_000):
        parts = (b"head", memoryview(bytes(size)))
        packed = await compressed(parts, encoding)
        assert packed is not None
        assert len(packed) < size // 10
        assert await plain(packed, encoding, 1 << 20) == b"head" + bytes(size)
    assert inflated(deflated((b"", b"a"), encoding), encoding, 1) == b"a"


def test_only_one_coding_named_is_asked_for() -> None:
    assert [wanted(name) for name in (b"gzip", b" Deflate ", b"")] == ["gzip", "deflate", ""]
    assert {wanted(name) for name in (b"gzip, deflate", b"gzip;q=0.5", b"*", b"br", b"identity")} == {""}


async def test_unknown_codings_are_named() -> None:
    with pytest.raises(InvalidRequest, match="'br'"):
        await plain(b"", "br", 10)
    assert await plain(b"as it is", "identity", 1) == b"as it is"
