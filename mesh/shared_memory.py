"""System shared memory that a client on this host passes tensors in: regions by name, and reading and writing them.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md. Regions are never
mapped: a client may cut its file short at any moment, which would kill whoever reads the mapping, while ``pread`` only
finds less. For the same reason nothing of this process grows with the size of a region. Whoever may ask the door may
name any file in ``/dev/shm`` that this process may open, so it is off unless a setting allows it. Not here: which
tensors of a request lie there (``shared_tensors``).
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

import msgspec

from mesh.errors import InvalidRequest, NotFound, PayloadTooLarge, Unsupported
from mesh.oip.wire import Buffer, quoted

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
OFF = "system shared memory is off at this door: set http.shared_memory = true"
MAX_REGIONS = 1024
"""Each holds an open file."""
MAX_NAME_CHARS = 1024
_KEY = re.compile(r"/?([^/\0]{1,254})")
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MAX = 2**63 - 1


class Region(msgspec.Struct, frozen=True):
    """``byte_size`` bytes from ``offset`` on of the shared memory object ``key``."""

    name: str
    key: str
    offset: int
    byte_size: int


class _Open(NamedTuple):
    region: Region
    file: int


class SharedMemory:
    """The regions registered at the doors of this process. Every call raises ``Unsupported`` while it is off.

    At most ``max_bytes`` are read or written at once. Blocking, but in memory. Belongs to one event loop.
    """

    def __init__(self, *, enabled: bool, max_bytes: int, folder: Path = FOLDER) -> None:
        self._enabled = enabled
        self._max_bytes = max_bytes
        self._folder = folder
        self._regions: dict[str, _Open] = {}

    @property
    def enabled(self) -> bool:
        return self._enabled

    def status(self, name: str = "") -> list[Region]:
        """The region of that name, or all. Raises ``NotFound``."""
        self._check()
        return [self._found(name).region] if name else [held.region for held in self._regions.values()]

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises ``InvalidRequest`` for what is no shared memory of that size, and for a name that is taken."""
        self._check()
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise InvalidRequest(f"a shared memory region needs a name of at most {MAX_NAME_CHARS} characters")
        if name in self._regions:
            raise InvalidRequest(f"shared memory region {quoted(name)} already in manager")
        if len(self._regions) >= MAX_REGIONS:
            raise InvalidRequest(f"{MAX_REGIONS} shared memory regions are registered, no more are taken")
        if not 0 <= offset <= _MAX or not 0 < byte_size <= _MAX:
            raise InvalidRequest(f"shared memory region {quoted(name)} needs an offset from 0 on and a size above 0")
        file = self._open(key)
        size = os.fstat(file).st_size
        if offset + byte_size > size:
            os.close(file)
            raise InvalidRequest(
                f"failed to register shared memory region {quoted(name)}: invalid args: it would end at byte "
                f"{offset + byte_size} of {quoted(key)}, which has {size}"
            )
        self._regions[name] = _Open(Region(name, key, offset, byte_size), file)

    def unregister(self, name: str = "") -> None:
        """The region of that name, or all; one that is not there is none to unregister."""
        self._check()
        for gone in [name] if name else list(self._regions):
            if (held := self._regions.pop(gone, None)) is not None:
                os.close(held.file)

    def close(self) -> None:
        """Let go of every region."""
        for held in self._regions.values():
            os.close(held.file)
        self._regions.clear()

    def read(self, name: str, offset: int, byte_size: int) -> bytes:
        """A copy of bytes of a region. Raises ``NotFound``, ``InvalidRequest``, or ``PayloadTooLarge``."""
        self._check()
        held = self._within(name, offset, byte_size)
        data = os.pread(held.file, byte_size, held.region.offset + offset)
        while data and len(data) < byte_size:
            more = os.pread(held.file, byte_size - len(data), held.region.offset + offset + len(data))
            if not more:
                break
            data += more
        if len(data) != byte_size:
            raise self._cut_short(held)
        return data

    def check(self, name: str, offset: int, byte_size: int) -> None:
        """Whether so many bytes could be written there. Raises as :meth:`read`."""
        self._check()
        self._within(name, offset, byte_size)

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Raises as :meth:`read`."""
        self._check()
        left = memoryview(data).cast("B")
        held = self._within(name, offset, left.nbytes)
        at = held.region.offset + offset
        if os.fstat(held.file).st_size < at + left.nbytes:
            raise self._cut_short(held)  # writing would make it longer again
        try:
            while left:
                written = os.pwrite(held.file, left, at)
                left, at = left[written:], at + written
        except OSError as error:
            raise InvalidRequest(f"shared memory region {quoted(name)} cannot be written: {error.strerror}") from None

    def _check(self) -> None:
        if not self._enabled:
            raise Unsupported(OFF)

    def _found(self, name: str) -> _Open:
        held = self._regions.get(name)
        if held is None:
            raise NotFound(f"Unable to find system shared memory region: {quoted(name)}")
        return held

    def _within(self, name: str, offset: int, byte_size: int) -> _Open:
        held = self._found(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > held.region.byte_size:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: {quoted(name)} has {held.region.byte_size} "
                f"bytes, asked for {quoted(byte_size)} from {quoted(offset)} on"
            )
        if byte_size > self._max_bytes:
            raise PayloadTooLarge(
                f"{byte_size} bytes of shared memory region {quoted(name)} are over the limit of {self._max_bytes}"
            )
        return held

    def _open(self, key: str) -> int:
        """File descriptor of a shared memory object."""
        match = _KEY.fullmatch(key)
        if match is None or match[1] in (".", ".."):
            raise InvalidRequest(f"Unable to open shared memory region: {quoted(key)} is no name of one, as '/name' is")
        try:
            file = os.open(self._folder / match[1], _FLAGS)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it has no UTF-8 form"
            raise InvalidRequest(f"Unable to open shared memory region: {quoted(key)}: {why}") from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise InvalidRequest(f"Unable to open shared memory region: {quoted(key)} is no shared memory")
        return file

    def _cut_short(self, held: _Open) -> InvalidRequest:
        name, key = held.region.name, held.region.key
        return InvalidRequest(f"shared memory region {quoted(name)}: {quoted(key)} is shorter than it was registered")
