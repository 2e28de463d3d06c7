"""Reading the kernel's small files: one value each, or the reason why there is none.

Every path hangs from a root that tests replace. Not here: what a file means (``hwmon``, ``zones``, ``jetson``,
``cgroup``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_REASONS = {
    errno.ENOENT: "there is none",
    errno.ENOTDIR: "there is none",
    errno.EACCES: "not permitted",
    errno.EPERM: "not permitted",
    errno.EAGAIN: "switched off",
    errno.ENODATA: "switched off",
    errno.ENODEV: "gone",
}


class Unknown(Exception):
    """A reading that cannot be had now; its text is the reason, for people."""


class Fields:
    """Asks for readings one by one: each fails alone, ``unknown`` keeps why, by the reading's name."""

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}

    def ask(self, name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Unknown as why:
            self.unknown[name] = str(why)
            return None


def text(path: Path) -> str:
    """What the file says, without the newline or NUL at its end.

    Raises ``Unknown``; ``OSError`` only when this process has no file or memory left, which says nothing of the sensor.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \t\n\0")
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise Unknown(f"{path.name}: {_REASONS.get(error.errno or 0, error.strerror)}") from None


def number(path: Path) -> int:
    """The decimal number in the file. Raises as :func:`text`."""
    said = text(path)
    try:
        return int(said)
    except ValueError:
        raise Unknown(f"{path.name}: says {said[:20]!r}, no number") from None


def known(path: Path) -> str:
    """:func:`text`, or empty where that is unknown."""
    try:
        return text(path)
    except Unknown:
        return ""


def folders(parent: Path, prefix: str = "") -> list[Path]:
    """What lies in a folder under names that begin so, in the order of their numbers; nothing if there is no folder."""
    try:
        found = [entry for entry in parent.iterdir() if entry.name.startswith(prefix)]
    except OSError as error:
        if error.errno in _OURS:
            raise
        return []
    return sorted(found, key=lambda entry: (len(entry.name), entry.name))
