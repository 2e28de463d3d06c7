"""The memory of one input or output of an engine: filled by the CPU, read or written by the device, grown on demand.

On a GPU of its own memory that is a pinned block and a device block with a copy between them; on an integrated GPU one
mapped block and no copy; for a tensor that TensorRT wants on the CPU a pinned block alone. Not here: who runs when.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from enum import Enum
from typing import Any

import numpy as np

from hardware.backend import Buffer
from hardware.cuda import Cuda, Memory, Stream

SMALLEST = 256
"""Bytes of a block at least: an empty tensor needs an address too, and TensorRT wants it aligned to this."""
_STEP = 1024 * 1024


class Place(Enum):
    """Where a tensor lives while the engine runs."""

    DEVICE = "device"
    MAPPED = "mapped"
    HOST = "host"


class TensorBuffer:
    """One at a time: the owner has waited for the stream before it grows, fills or takes."""

    def __init__(self, cuda: Cuda, place: Place) -> None:
        self._cuda = cuda
        self._place = place
        self._host: Memory | None = None
        self._device: Memory | None = None
        self._view: np.ndarray[Any, np.dtype[np.uint8]] = np.empty(0, np.uint8)

    @property
    def address(self) -> int:
        """What TensorRT is told; 0 before the first :meth:`reserve`."""
        if self._device is not None:
            return self._device.device_address
        if self._host is None:
            return 0
        return self._host.device_address if self._place is Place.MAPPED else self._host.address

    def reserve(self, nbytes: int) -> None:
        """Make room for ``nbytes``. What was in the buffer is lost, and ``address`` another, if it has to grow."""
        if self._host is not None and nbytes <= self._host.nbytes:
            return
        self.close()  # first: the old block and the new one may not fit together
        size = _rounded(nbytes)
        with ExitStack() as made:
            host = self._cuda.mapped_memory(size) if self._place is Place.MAPPED else self._cuda.pinned_memory(size)
            made.callback(host.close)
            if self._place is Place.DEVICE:
                self._device = self._cuda.device_memory(size)
            made.pop_all()
        self._host = host
        self._view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host.address))

    def fill(self, data: Buffer | tuple[Buffer, ...]) -> int:
        """Copy ``data``, in pieces or not, into the CPU's side; returns its size."""
        pieces = data if isinstance(data, tuple) else (data,)
        flat = [np.frombuffer(piece, np.uint8) for piece in pieces if memoryview(piece).nbytes]
        size = sum([piece.size for piece in flat])
        self.reserve(size)
        at = 0
        for piece in flat:
            self._view[at : at + piece.size] = piece
            at += piece.size
        return size

    def values(self, nbytes: int) -> memoryview:
        """A copy of the first ``nbytes`` of the CPU's side, the caller's own."""
        copy: memoryview = self._view[:nbytes].copy().data
        return copy

    def upload(self, nbytes: int, stream: Stream) -> None:
        if self._device is not None and self._host is not None and nbytes:
            self._cuda.copy_to_device(self._device, self._host, nbytes, stream)

    def download(self, nbytes: int, stream: Stream) -> None:
        if self._device is not None and self._host is not None and nbytes:
            self._cuda.copy_to_host(self._host, self._device, nbytes, stream)

    def close(self) -> None:
        """Give the memory back; the next :meth:`reserve` takes new."""
        self._view = np.empty(0, np.uint8)
        host, device, self._host, self._device = self._host, self._device, None, None
        for memory in (device, host):
            if memory is not None:
                memory.close()


def _rounded(nbytes: int) -> int:
    """Powers of two up to 1 MiB, then whole MiB: a batch that grows by one row at a time seldom moves its buffer."""
    if nbytes <= _STEP:
        return max(SMALLEST, 1 << max(0, nbytes - 1).bit_length())
    return -(-nbytes // _STEP) * _STEP
