"""The chunked transfer coding: the body it gives, whatever the pieces; what is refused; what it costs."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.http_chunks import MAX_LINE, MAX_TRAILER, ChunkedBody

LIMIT = 4096
NEXT = b"GET / HTTP/1.1\r\n"


def coded(*parts: bytes, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    chunks = [b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part]
    return b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


def fed(sent: bytes, steps: list[int], limit: int = LIMIT) -> tuple[ChunkedBody, int]:
    """What is made of ``sent``, arriving in pieces of ``steps`` bytes (the last again and again), and bytes used."""
    chunks, used, arrived, turn = ChunkedBody(limit), 0, 0, 0
    while not chunks.complete and arrived < len(sent):
        arrived += steps[min(turn, len(steps) - 1)]
        turn += 1
        used += chunks.feed(memoryview(sent[used:arrived]))
    return chunks, used


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.sampled_from([b"", b";name=value", b' ; name="a;b"', b"\t"]),
    st.sampled_from([b"", b"Trailer: x\r\n", b"A: 1\r\nB: 2\r\n"]),
)
def test_any_pieces_give_the_body_and_leave_what_follows(
    parts: list[bytes], steps: list[int], extension: bytes, trailer: bytes
) -> None:
    sent = coded(*parts, extension=extension, trailer=trailer)
    chunks, used = fed(sent + NEXT, steps)
    assert chunks.complete
    assert bytes(chunks.body) == b"".join(parts)
    assert used == len(sent)


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n",
        b"g\r\n",
        b"+1\r\na\r\n",
        b"-1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1_0\r\n",
        b" 1\r\na\r\n",
        b"1 1\r\na\r\n",
        b"1\n\r\na\r\n",
        b"1;x\n\r\na\r\n",
        b"1;x\ry\r\na\r\n",
        b"1\ra\r\n",
        b"f" * 16 + b"\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\na\r\r\n",
        b"2\r\na\r\n0\r\n\r\n",
        b"1;" + b"x" * MAX_LINE,
        b"0\r\n" + b"X: y\r\n" * MAX_TRAILER,
        b"0\r\n" + b"X" * MAX_LINE,
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_no_chunk_is_refused(sent: bytes, step: int) -> None:
    with pytest.raises(InvalidRequest):
        fed(sent, [step])


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_garbage_is_refused_or_waited_on(sent: bytes, steps: list[int]) -> None:
    try:
        _, used = fed(sent, steps)
    except InvalidRequest:
        return
    assert used <= len(sent)


def test_what_is_claimed_over_the_limit_is_refused_before_it_comes() -> None:
    chunks = ChunkedBody(LIMIT)
    chunks.feed(memoryview(coded(b"a" * LIMIT)[:-5]))
    with pytest.raises(PayloadTooLarge):
        chunks.feed(memoryview(b"1\r\n"))
    with pytest.raises(PayloadTooLarge):
        ChunkedBody(LIMIT).feed(memoryview(b"1001\r\n"))
    assert len(chunks.body) == LIMIT


def test_tiny_chunks_cost_no_more_than_their_bytes() -> None:
    count = 20_000
    chunks, _ = fed(coded(*[b"ab"] * count), [1 << 16], limit=1 << 20)
    assert sum(sys.getsizeof(value) for value in vars(chunks).values()) < 2 * 2 * count + 1024
