"""Frames of a stream: whatever the pieces they arrive in, what is no frame, and errors as they were."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BY_CODE, MeshError, Overloaded, ProtocolError
from mesh.oip.parts import END, MAX_BYTES, NO_HEAD, Frames, error_frame, frame
from mesh.oip.wire import WireBody
from tests.builders import a_load

BODIES = st.lists(
    st.lists(st.binary(max_size=60), min_size=1, max_size=3).flatmap(
        lambda parts: st.one_of(st.none(), st.integers(0, sum(map(len, parts)))).map(
            lambda head: WireBody(tuple(parts), head)
        )
    ),
    max_size=6,
)


@given(BODIES, st.lists(st.integers(1, 50), min_size=1, max_size=30), st.booleans())
def test_any_pieces_give_the_same_answers(bodies: list[WireBody], sizes: list[int], failed: bool) -> None:
    last = error_frame(Overloaded("busy", retry_after_s=2.5)) if failed else END
    sent = b"".join(bytes(part) for body in bodies for part in frame(body)) + last
    frames, found, at = Frames(), [], 0
    for turn in range(len(sent)):
        assert frames.ended == (at >= len(sent))
        piece = sent[at : at + sizes[turn % len(sizes)]]
        at += len(piece)
        found += frames.feed(piece)
    assert [(body.joined(), body.header_length) for body in found] == [(b.joined(), b.header_length) for b in bodies]
    assert frames.ended
    if failed:
        assert isinstance(frames.error, Overloaded)
        assert (frames.error.text, frames.error.retry_after_s) == ("busy", 2.5)
    else:
        assert frames.error is None


@given(st.binary(max_size=200), st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_garbage_is_an_error_or_waited_on(garbage: bytes, sizes: list[int]) -> None:
    frames, at = Frames(), 0
    for size in sizes * 40:
        for body in frames.feed(garbage[at : at + size]):
            assert body.nbytes <= len(garbage)
        at += size
    assert frames.error is None or isinstance(frames.error, MeshError)


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_arrives_as_it_was(code: str) -> None:
    error = BY_CODE[code]("what went wrong")
    error.load = a_load(wait_ms=7.0)
    frames = Frames()
    assert frames.feed(error_frame(error)) == []
    assert type(frames.error) is type(error)
    assert frames.error is not None
    assert (frames.error.text, frames.error.load) == ("what went wrong", error.load)


@pytest.mark.parametrize(
    "head",
    [(0, NO_HEAD, 0), (4, NO_HEAD, 0), (255, 0, 0), (1, 5, 4), (1, NO_HEAD, MAX_BYTES + 1), (1, 0, 0xFFFFFFFF)],
)
def test_what_is_no_frame_is_refused_before_it_is_gathered(head: tuple[int, int, int]) -> None:
    frames, good = Frames(), b"".join(map(bytes, frame(WireBody((b"{}",), None))))
    assert [body.joined() for body in frames.feed(good + struct.pack("<BII", *head))] == [b"{}"]
    assert isinstance(frames.error, ProtocolError)
    assert frames.feed(good) == []


def test_a_limit_is_a_limit() -> None:
    frames = Frames(max_bytes=10)
    assert len(frames.feed(b"".join(map(bytes, frame(WireBody((bytes(10),), 0)))))) == 1
    frames.feed(bytes(frame(WireBody((bytes(11),), 0))[0]))
    assert isinstance(frames.error, ProtocolError)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"code":1}', b'{"code":"internal","text":"x","status":500,"load":"no"}']
)
def test_an_error_that_is_none(text: bytes) -> None:
    frames = Frames()
    frames.feed(struct.pack("<BII", 3, NO_HEAD, len(text)) + text)
    assert isinstance(frames.error, ProtocolError)
