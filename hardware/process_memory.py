"""What the kernel says of a process's memory: what is resident, and whether it has killed for want of it.

:func:`oom_kills` reads so that a loop may call it. Not here: the box's memory and limits (``memory``, ``cgroup``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil


def resident_bytes(pid: int) -> int | None:
    """Resident memory that is a process's own, arenas and libraries not counted; None once the process ends.

    Blocks for the moment that reading it takes: call it off the loop.
    """
    try:
        held = psutil.Process(pid).memory_info()
    except psutil.Error:
        return None
    return (held.rss - held.shared) or None  # a process that is ending has no memory left to speak of


def oom_kills(root: str = "") -> int | None:
    """Processes of this process's control group that were killed for want of memory, ever; None if unknown."""
    for path in _oom_files(root):
        for line in _read(path).splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _oom_files(root: str) -> Iterator[str]:
    """Of version 2, then 1. In a container the group's path may be the host's: its files then lie at the top."""
    base = f"{root}/sys/fs/cgroup"
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from (f"{base}{group}/memory.events", f"{base}/memory.events")
        elif "memory" in controllers.split(","):
            yield from (f"{base}/memory{group}/memory.oom_control", f"{base}/memory/memory.oom_control")


def _read(path: str) -> str:
    """Empty for what is not there."""
    parts = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError, ProcessLookupError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while part := os.read(fd, 65536):
                parts.append(part)
        finally:
            os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")
