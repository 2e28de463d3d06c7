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

from mesh.errors import InvalidRequest, NotFound, Unsupported
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


class _File:
    """An open file, closed once nobody holds it: who copies on a thread may outlast the region."""

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    __del__ = close


class _Open(NamedTuple):
    region: Region
    file: _File


class Piece:
    """``nbytes`` bytes of a region, which stay what they are if the region is let go of meanwhile.

    Reading and writing block, but in memory; on any thread. They raise ``InvalidRequest``.
    """

    def __init__(self, held: _Open, offset: int, nbytes: int) -> None:
        self._held = held
        self._at = held.region.offset + offset
        self.nbytes = nbytes

    def read(self) -> bytes:
        """A copy of them all."""
        file = self._held.file.number
        data = os.pread(file, self.nbytes, self._at)
        while data and len(data) < self.nbytes:
            more = os.pread(file, self.nbytes - len(data), self._at + len(data))
            if not more:
                break
            data += more
        if len(data) != self.nbytes:
            raise self._cut_short()
        return data

    def write(self, data: Buffer) -> None:
        """At most as many bytes as there are."""
        file, left, at = self._held.file.number, memoryview(data).cast("B"), self._at
        assert left.nbytes <= self.nbytes  # noqa: S101 - whoever writes has told the caller what does not fit
        if os.fstat(file).st_size < at + left.nbytes:
            raise self._cut_short()  # writing would make it longer again
        try:
            while left:
                written = os.pwrite(file, left, at)
                left, at = left[written:], at + written
        except OSError as error:
            name = quoted(self._held.region.name)
            raise InvalidRequest(f"shared memory region {name} cannot be written: {error.strerror}") from None

    def _cut_short(self) -> InvalidRequest:
        name, key = self._held.region.name, self._held.region.key
        return InvalidRequest(f"shared memory region {quoted(name)}: {quoted(key)} is shorter than it was registered")


class SharedMemory:
    """The regions registered at the doors of this process. Every call raises ``Unsupported`` while it is off.

    Belongs to one event loop, but for its pieces.
    """

    def __init__(self, *, enabled: bool, folder: Path = FOLDER) -> None:
        self._enabled = enabled
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
        size = os.fstat(file.number).st_size
        if offset + byte_size > size:
            file.close()
            raise InvalidRequest(
                f"failed to register shared memory region {quoted(name)}: invalid args: it would end at byte "
                f"{offset + byte_size} of {quoted(key)}, which has {size}"
            )
        self._regions[name] = _Open(Region(name, key, offset, byte_size), file)

    def unregister(self, name: str = "") -> None:
        """The region of that name, or all; one that is not there is none to unregister."""
        self._check()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def close(self) -> None:
        """Let go of every region."""
        self._regions.clear()

    def piece(self, name: str, offset: int, byte_size: int) -> Piece:
        """So many bytes of a region. Raises ``NotFound`` or ``InvalidRequest``."""
        self._check()
        return Piece(self._within(name, offset, byte_size), offset, byte_size)

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
        return held

    def _open(self, key: str) -> _File:
        """The file of a shared memory object."""
        match = _KEY.fullmatch(key)
        if match is None or match[1] in (".", ".."):
            raise InvalidRequest(f"Unable to open shared memory region: {quoted(key)} is no name of one, as '/name' is")
        try:
            file = _File(os.open(self._folder / match[1], _FLAGS))
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it has no UTF-8 form"
            raise InvalidRequest(f"Unable to open shared memory region: {quoted(key)}: {why}") from None
        if not stat.S_ISREG(os.fstat(file.number).st_mode):
            file.close()
            raise InvalidRequest(f"Unable to open shared memory region: {quoted(key)} is no shared memory")
        return file
