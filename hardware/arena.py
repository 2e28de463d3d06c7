"""Shared memory between a parent and its worker: a sealed memfd, cut into slots that are reused.

A parent creates two arenas per worker: one it writes and the worker can only read, one the worker writes. The seals
are the kernel's: the size never changes (so nobody can be made to fault on a truncated mapping), and an arena made
with ``peer_reads_only`` cannot be written or mapped for writing by anyone who gets its descriptor later. An arena is
virtual: only pages that were written are resident, and slots are reused last-in first-out, so that a quiet worker
touches one slot. A slot keeps the pages of the largest tensors it ever held until the arena is closed.

Not here: the messages that say where a tensor lies (``frames``), when a slot is free (``worker_runtime``).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import msgspec

from hardware.backend import ITEM_BYTES, RawTensor
from hardware.errors import TensorTooLarge

ALIGN = 64
"""Tensors start at multiples of a cache line, so that vector code reads them aligned."""

_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL, _SHRINK, _GROW, _FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10  # linux/fcntl.h; FUTURE_WRITE since Linux 5.1
_SIZE_SEALS = _SEAL | _SHRINK | _GROW


class Arena:
    """``slots`` pieces of ``slot_bytes`` bytes each, mapped into this process."""

    def __init__(self, fd: int, mapping: mmap.mmap, slots: int, slot_bytes: int) -> None:
        self.fd = fd
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._mapping = mapping
        with memoryview(mapping) as whole:
            self._views = [whole[index * slot_bytes : (index + 1) * slot_bytes] for index in range(slots)]

    @classmethod
    def create(cls, name: str, slots: int, slot_bytes: int, *, peer_reads_only: bool) -> Arena:
        """``slot_bytes`` is rounded up to whole pages."""
        slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, slots * slot_bytes)
            mapping = mmap.mmap(fd, slots * slot_bytes)
            fcntl.fcntl(fd, _ADD_SEALS, _SIZE_SEALS | (_FUTURE_WRITE if peer_reads_only else 0))
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, mapping, slots, slot_bytes)

    @classmethod
    def attach(cls, fd: int, slots: int, slot_bytes: int, *, writable: bool) -> Arena:
        """Map an arena another process made; raises ``OSError`` where its size or its seals are not as promised."""
        if os.fstat(fd).st_size != slots * slot_bytes:
            raise OSError("the arena has another size than announced")
        if fcntl.fcntl(fd, _GET_SEALS) & _SIZE_SEALS != _SIZE_SEALS:
            raise OSError("the arena's size is not sealed")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return cls(fd, mmap.mmap(fd, slots * slot_bytes, access=access), slots, slot_bytes)

    def slot(self, index: int) -> memoryview:
        """The bytes of one slot; raises ``IndexError`` outside the arena."""
        if not 0 <= index < self.slots:
            raise IndexError(f"the arena has no slot {index}")
        return self._views[index]

    def close(self) -> None:
        """Unmap and close. Memory of a slot that is still referenced elsewhere goes with the last reference."""
        if self.fd < 0:
            return
        self._views.clear()
        with contextlib.suppress(BufferError):
            self._mapping.close()
        os.close(self.fd)
        self.fd = -1


class Slot(NamedTuple):
    """A slot as handed out once: ``generation`` counts its uses, so that a late answer for an earlier one shows."""

    number: int
    generation: int


class SlotTable:
    """Which slots are free. Last released, first taken."""

    def __init__(self, count: int) -> None:
        self._generations = [0] * count
        self._free = list(range(count - 1, -1, -1))
        self._taken: set[int] = set()

    def __len__(self) -> int:
        """Slots that are taken."""
        return len(self._taken)

    def take(self) -> Slot | None:
        if not self._free:
            return None
        index = self._free.pop()
        self._taken.add(index)
        self._generations[index] += 1
        return Slot(index, self._generations[index])

    def holds(self, slot: Slot) -> bool:
        """Whether ``slot`` is in the table, taken, and of the current generation."""
        return slot.number in self._taken and self._generations[slot.number] == slot.generation

    def release(self, slot: Slot) -> None:
        """Raises ``ValueError`` for a slot that is not taken, or was since taken anew."""
        if not self.holds(slot):
            raise ValueError(f"slot {slot.number} is not held in generation {slot.generation}")
        self._taken.remove(slot.number)
        self._free.append(slot.number)


class Placed(msgspec.Struct, array_like=True, frozen=True):
    """A tensor in a slot: ``offset`` and ``nbytes`` count from the start of the slot."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def put(slot: memoryview, tensors: Sequence[RawTensor]) -> list[Placed]:
    """Copy ``tensors`` into a slot, pieces one after another; raises ``TensorTooLarge`` before writing beyond it."""
    placed = []
    at = 0
    for name, datatype, shape, data in tensors:
        start = at
        for piece in data if isinstance(data, tuple) else (data,):
            source = memoryview(piece)
            if source.format != "B":
                source = source.cast("B")
            end = at + source.nbytes
            if end > len(slot):
                total = start + RawTensor(name, datatype, shape, data).nbytes
                raise TensorTooLarge(f"tensor '{name}' ends at byte {total} of a slot of {len(slot)}")
            slot[at:end] = source
            at = end
        placed.append(Placed(name, datatype, shape, start, at - start))
        at = -(-at // ALIGN) * ALIGN
    return placed


def copy_out(slot: memoryview, placed: Sequence[Placed]) -> list[RawTensor]:
    """Copy the tensors a worker says it placed, then judge them; raises ``ValueError`` where they cannot be as said."""
    tensors = []
    for tensor in placed:
        start, end = tensor.offset, tensor.offset + tensor.nbytes
        if not 0 <= start <= end <= len(slot):
            raise ValueError(f"tensor '{tensor.name}' lies outside its slot")
        item_bytes = ITEM_BYTES.get(tensor.datatype)
        if item_bytes is not None and prod(tensor.shape) * item_bytes != tensor.nbytes:
            raise ValueError(f"tensor '{tensor.name}' has another size than its shape")
        tensors.append(RawTensor(tensor.name, tensor.datatype, tensor.shape, bytes(slot[start:end])))
    return tensors
