"""The sealed arena: what the kernel refuses, what the slot table hands out, what is copied in and out."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.arena import ALIGN, Arena, Placed, Slot, SlotTable, copy_out, put
from hardware.backend import RawTensor
from hardware.errors import TensorTooLarge

PAGE = mmap.PAGESIZE


@pytest.fixture(params=[True, False], ids=["peer_reads", "peer_writes"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    arena = Arena.create("test", 3, PAGE - 1, peer_reads_only=request.param)
    yield arena
    arena.close()


def test_the_size_is_whole_pages_and_sealed(arena: Arena) -> None:
    assert arena.slot_bytes == PAGE
    for size in (0, PAGE, 4 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(arena.fd, 1033, 0x8)  # no further seals either: F_SEAL_WRITE would lock the owner out


def test_a_peer_that_may_only_read_cannot_write_in_any_way() -> None:
    arena = Arena.create("test", 1, PAGE, peer_reads_only=True)
    reopened = os.open(f"/proc/self/fd/{arena.fd}", os.O_RDWR)  # a descriptor of one's own changes nothing
    for fd in (arena.fd, reopened):
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE)
        with pytest.raises(PermissionError):
            Arena.attach(fd, 1, PAGE, writable=True)
    arena.slot(0)[:5] = b"hello"  # the mapping made before the seal still writes
    peer = Arena.attach(os.dup(arena.fd), 1, PAGE, writable=False)
    assert bytes(peer.slot(0)[:5]) == b"hello"
    with pytest.raises(TypeError):
        peer.slot(0)[0] = 1
    peer.close()
    arena.close()
    os.close(reopened)


def test_both_sides_see_what_the_writer_wrote() -> None:
    arena = Arena.create("test", 2, PAGE, peer_reads_only=False)
    peer = Arena.attach(os.dup(arena.fd), 2, PAGE, writable=True)
    peer.slot(1)[:3] = b"out"
    assert bytes(arena.slot(1)[:3]) == b"out"
    peer.close()
    arena.close()


def test_attaching_checks_size_and_seals(arena: Arena) -> None:
    with pytest.raises(OSError, match="another size"):
        Arena.attach(arena.fd, 4, PAGE, writable=False)
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    with pytest.raises(OSError, match="not sealed"):
        Arena.attach(fd, 1, PAGE, writable=False)
    os.close(fd)


@pytest.mark.parametrize("number", [-1, 3, 2**40])
def test_there_is_no_slot_outside(arena: Arena, number: int) -> None:
    with pytest.raises(IndexError):
        arena.slot(number)


def test_memory_is_resident_only_where_it_was_written() -> None:
    arena = Arena.create("test", 8, 64 * 1024 * 1024, peer_reads_only=False)
    arena.slot(0)[: 10 * PAGE] = bytes(10 * PAGE)
    assert os.fstat(arena.fd).st_blocks * 512 < 4 * 1024 * 1024  # huge pages may round up
    arena.close()


def test_a_view_survives_close_and_close_may_be_repeated() -> None:
    arena = Arena.create("test", 1, PAGE, peer_reads_only=False)
    view = arena.slot(0)
    view[:3] = b"abc"
    arena.close()
    arena.close()
    assert bytes(view[:3]) == b"abc"


def test_the_last_slot_released_is_the_first_taken() -> None:
    table = SlotTable(3)
    first, second = table.take(), table.take()
    assert (first, second) == (Slot(0, 1), Slot(1, 1))
    assert first is not None
    table.release(first)
    assert table.take() == Slot(0, 2)
    assert table.take() == Slot(2, 1)
    assert table.take() is None
    assert len(table) == 3


@pytest.mark.parametrize("wrong", [Slot(0, 1), Slot(0, 3), Slot(1, 1), Slot(9, 1), Slot(-1, 0)])
def test_a_slot_is_released_once_and_only_by_its_holder(wrong: Slot) -> None:
    table = SlotTable(2)
    first = table.take()
    assert first is not None
    table.release(first)
    held = table.take()
    assert held == Slot(0, 2)
    with pytest.raises(ValueError, match="not held"):
        table.release(wrong)
    assert len(table) == 1


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_tensors_come_out_as_they_were_put_in_and_aligned(parts: list[bytes]) -> None:
    slot = memoryview(bytearray(PAGE))
    tensors = [RawTensor(f"t{n}", "UINT8", (len(part),), part) for n, part in enumerate(parts)]
    placed = put(slot, tensors)
    assert copy_out(slot, placed) == tensors
    assert all(tensor.offset % ALIGN == 0 for tensor in placed)


@given(st.lists(st.binary(max_size=40), max_size=8), st.binary(max_size=40))
def test_pieces_come_out_joined(pieces: list[bytes], after: bytes) -> None:
    slot = memoryview(bytearray(PAGE))
    whole = b"".join(pieces)
    tensors = [RawTensor("a", "UINT8", (len(whole),), tuple(pieces)), RawTensor("b", "UINT8", (len(after),), after)]
    placed = put(slot, tensors)
    assert copy_out(slot, placed) == [tensors[0]._replace(data=whole), tensors[1]]


def test_pieces_that_end_beyond_the_slot_are_refused_by_their_whole_size() -> None:
    memory = bytearray(PAGE + 64)
    with pytest.raises(TensorTooLarge, match=f"'a' ends at byte {PAGE + 9}"):
        put(memoryview(memory)[:PAGE], [RawTensor("a", "UINT8", (PAGE + 9,), (bytes(PAGE), b"x", b"12345678"))])
    assert not any(memory)


def test_nothing_is_written_beyond_the_slot() -> None:
    memory = bytearray(PAGE + 64)
    with pytest.raises(TensorTooLarge, match="'b'"):
        put(
            memoryview(memory)[:PAGE],
            [RawTensor("a", "UINT8", (8,), b"12345678"), RawTensor("b", "UINT8", (PAGE,), b"x" * PAGE)],
        )
    assert memory[8:] == bytes(PAGE + 56)


@pytest.mark.parametrize(
    "placed",
    [
        Placed("t", "UINT8", (1,), PAGE, 1),
        Placed("t", "UINT8", (1,), -1, 1),
        Placed("t", "UINT8", (-1,), 10, -1),
        Placed("t", "BYTES", (1,), 0, PAGE + 1),
        Placed("t", "BYTES", (1,), 2**62, 2**62),
        Placed("t", "INT32", (2,), 0, 4),
    ],
)
def test_what_a_peer_claims_is_checked(placed: Placed) -> None:
    with pytest.raises(ValueError, match="tensor 't'"):
        copy_out(memoryview(bytearray(PAGE)), [placed])
