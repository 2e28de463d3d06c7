"""Files that are whole or not there: written beside their place, synced to disk, renamed; and locks on them.

Every failure is an ``OSError``. Not here: what is in the files (``engine_cache``, ``timing_cache``, ``signing``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

Data = bytes | memoryview


def write(path: Path, data: Data) -> None:
    """Create the file at ``path``, which must not exist, readable by its owner alone, and sync it to disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: Data) -> None:
    """Put ``data`` at ``path``, over what was there: whoever opens it sees the old or the new, never a part."""
    beside = _beside(path)
    try:
        write(beside, data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create(path: Path, data: Data) -> None:
    """As :func:`replace`, but what was there wins: raises ``FileExistsError``."""
    beside = _beside(path)
    try:
        write(beside, data)
        os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def read(path: Path, limit: int) -> bytes:
    """The whole file, if it is a regular one of at most ``limit`` bytes; ``OSError`` otherwise."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        if found.st_size > limit:
            raise OSError(errno.EFBIG, f"{path.name} has more than {limit} bytes")
        return file.read(found.st_size)


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in ``folder`` outlast a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(folder: Path, *, shared: bool = False) -> int | None:
    """Lock ``folder`` without waiting; the descriptor that holds the lock, None if another has it.

    Closing the descriptor, or the end of the process, gives the lock back.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock file at ``path``, which is made where it is missing, and hold it while entered."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
