"""The state of a fake CUDA device: memory, streams with work that waits, events, graphs, and what was not given back.

Memory is real, so addresses can be read and written. Work on a stream is only noted down, and done when somebody waits
for it, so that whoever reads too early reads what was there before. Not here: CUDA's functions (``cudart``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hardware.fakes.faults import Failed, Faults, Misuse

STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810})
ALIGNMENT = 256
_POISON = 0xCD
_GRAVEYARD = 512  # freed blocks whose addresses are kept from being used again


@dataclass
class Block:
    """A piece of memory; ``reachable`` where kernels may use it."""

    array: np.ndarray[Any, np.dtype[np.uint8]]
    address: int
    nbytes: int
    host: bool
    mapped: bool
    reachable: bool
    freed: bool = False


@dataclass
class Stream:
    work: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None
    thread: int = 0
    spoilt: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass
class Event:
    stream: Stream | None = None
    done: bool = True


class Handle(int):
    """As the binding's opaque types: an object with an integer inside."""


class FakeDevice:
    """Read by tests and by the fake TensorRT; what they may rely on has no underscore."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        given = environment or {}
        self.devices = int(given.get("FAKE_CUDA_DEVICES", "1"))
        self.integrated = given.get("FAKE_CUDA_INTEGRATED", "") == "1"
        self.memory_bytes = int(given.get("FAKE_CUDA_MEMORY", str(8 * 1024**3)))
        self.compute_capability = tuple(map(int, given.get("FAKE_CUDA_CC", "8.7").split(".")))
        self.faults = Faults(",".join(filter(None, (given.get("FAKE_CUDA_FAIL"), given.get("FAKE_TRT_FAIL")))))
        self.calls: list[str] = []
        self.sticky = 0
        self.used_bytes = 0
        self.last = 0
        self._lock = threading.RLock()
        self._next = 1
        self.blocks: dict[int, Block] = {}
        self._graveyard: OrderedDict[int, Block] = OrderedDict()
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}

    def live(self) -> dict[str, int]:
        """How many of each kind nobody has given back, kinds without any left out."""
        tables: dict[str, dict[int, Any]] = {
            "memory": self.blocks,
            "streams": self.streams,
            "events": self.events,
            "graphs": self.graphs,
            "executables": self.executables,
        }
        return {name: len(table) for name, table in tables.items() if table}

    def enter(self, name: str) -> int:
        """Note a call, of TensorRT's too; the code it must fail with, or 0."""
        with self._lock:
            self.calls.append(name)
            if self.sticky:
                return self.sticky
            code = self.faults.enter(name)
            self.note(code)
            return code

    def note(self, code: int) -> None:
        if code:
            self.last = code
        if code in STICKY:
            self.sticky = code

    def take(self, nbytes: int) -> bool:
        """Account for device memory; False where there is not so much."""
        with self._lock:
            if self.used_bytes + nbytes > self.memory_bytes:
                return False
            self.used_bytes += nbytes
            return True

    def put_back(self, nbytes: int) -> None:
        with self._lock:
            self.used_bytes -= nbytes

    def at(self, address: int, nbytes: int, *, kernel: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes at ``address``, as a kernel or as the copy engine and the CPU may touch them."""
        with self._lock:
            for block in (*self.blocks.values(), *self._graveyard.values()):
                if block.address <= address < block.address + block.nbytes:
                    break
            else:
                raise Misuse(f"{address:#x} is nobody's memory")
        if block.freed:
            raise Misuse("memory is used after it was freed")
        if kernel and not block.reachable:
            raise Misuse("a kernel uses host memory that has no device address")
        start = address - block.address
        if start + nbytes > block.nbytes:
            raise Misuse(f"{nbytes} bytes at {start} of a block of {block.nbytes}")
        return block.array[start : start + nbytes]

    def enqueue(self, stream: int, operation: Callable[[], None]) -> None:
        """Put work on a stream, or into the graph that is captured from it."""
        if int(stream) == 0:
            raise Misuse("work on the default stream")
        found = self.stream(stream)
        with found.lock:
            (found.work if found.captured is None else found.captured).append(operation)

    def is_capturing(self, stream: int) -> bool:
        return self.stream(stream).captured is not None

    def spoil_capture(self, stream: int) -> None:
        """Something that a graph cannot hold was asked for."""
        self.stream(stream).spoilt = True

    def drain(self, stream: int) -> None:
        """Do what is on a stream, now."""
        self.work_off(self.stream(stream), lambda: False)

    def end_capture(self, stream: Any) -> list[Callable[[], None]] | None:
        found = self.stream(stream)
        captured, found.captured = found.captured, None
        return captured

    def abandon(self, handle: Any) -> None:
        """Count something as given back that CUDA refuses to take: whoever tried is not to blame."""
        with self._lock:
            tables: tuple[dict[int, Any], ...] = (self.blocks, self.streams, self.events, self.graphs, self.executables)
            for table in tables:
                if int(handle) in table:
                    gone: Any = table.pop(int(handle))
                    if isinstance(gone, Block) and not gone.host:
                        self.put_back(gone.nbytes)
                    return

    def allocate(self, size: int, *, host: bool, mapped: bool) -> int:
        if size <= 0:
            raise Misuse("an allocation of no bytes has no address")
        array = np.full(size + ALIGNMENT, _POISON, np.uint8)
        skip = -array.ctypes.data % ALIGNMENT
        address = array.ctypes.data + skip
        with self._lock:
            self.blocks[address] = Block(array[skip : skip + size], address, size, host, mapped, not host)
        return address

    def free(self, address: int, *, host: bool) -> int:
        with self._lock:
            block = self.blocks.get(address)
            if block is None or block.host is not host:
                raise Misuse("freed twice, or by the wrong function, or never allocated")
            del self.blocks[address]
            block.freed = True
            self._graveyard[address] = block
            if len(self._graveyard) > _GRAVEYARD:
                self._graveyard.popitem(last=False)
        return block.nbytes

    def holder(self, address: int) -> Block:
        with self._lock:
            return next(b for b in self.blocks.values() if b.address <= address < b.address + b.nbytes)

    def new(self, table: dict[int, Any], value: Any) -> Handle:
        with self._lock:
            handle, self._next = Handle(self._next), self._next + 1
            table[handle] = value
            return handle

    def require(self, table: dict[int, Any], handle: Any) -> Any:
        with self._lock:
            if int(handle) not in table:
                raise Misuse("a handle is used that is not open")
            return table[int(handle)]

    def forget(self, table: dict[int, Any], handle: Any) -> None:
        self.require(table, handle)
        with self._lock:
            del table[int(handle)]

    def stream(self, handle: Any) -> Stream:
        found: Stream = self.require(self.streams, handle)
        return found

    def work_off(self, stream: Stream, until: Callable[[], bool]) -> None:
        with stream.lock:
            while stream.work and not until():
                operation = stream.work.pop(0)
                if self.sticky:
                    stream.work.clear()
                    raise Failed(self.sticky)
                try:
                    operation()
                except Failed:
                    stream.work.clear()
                    raise
