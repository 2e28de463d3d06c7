"""The persisted identity of a node: a random id for life, an incarnation that grows with every start.

One folder per process under the state directory, locked while the process lives: two agents on one box never share an
id. A node must serve even where nothing can be written; it then has an identity for this run only, and says so. Not
here: the node's name (``node``), its secrets (``trust``).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh.errors import ConfigError
from mesh.settings import process_environ
from mesh.values import NAME_PATTERN

log = logging.getLogger(__name__)

APP = "inference-mesh"
MAX_AGENTS = 64
MAX_INCARNATION = 2**53
"""Larger numbers do not survive JSON readers that use doubles."""

_ID = re.compile(r"[0-9a-f]{32}")


class _Stored(msgspec.Struct):
    id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """``id`` is a uuid4 in hex; of two incarnations of one id the higher is the later start.

    ``folder`` keeps what the node remembers between runs; None where nothing can be kept.
    """

    id: str
    incarnation: int
    folder: Path | None = None

    def known_bus(self) -> str:
        """The bus of last time, empty if there was none."""
        if self.folder is None:
            return ""
        try:
            return (self.folder / "bus").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def remember_bus(self, url: str) -> None:
        """Keep ``url`` for a start without neighbours; it must not carry credentials."""
        if self.folder is None or url == self.known_bus():
            return
        try:
            _write(self.folder / "bus", url.encode())
        except OSError as error:
            log.warning("cannot remember the bus in %s: %s", self.folder, error.strerror)


@contextlib.contextmanager
def claim(state_dir: Path | None, name: str | None) -> Iterator[NodeIdentity]:
    """The identity of this process, its alone while entered.

    ``name`` picks the folder under ``state_dir``; without one it is the first free of ``default``, ``default-2``, ...
    Raises ``ConfigError`` if another process holds the named folder.
    """
    try:
        folder, lock = _lock(state_dir or default_state_dir(), name)
    except OSError as error:
        log.warning(
            "state directory: %s: %s; the identity of this run is lost with it, the next will look like a new node",
            error.filename or "lock", error.strerror,
        )  # fmt: skip
        yield NodeIdentity(uuid.uuid4().hex, _now_ms())
        return
    try:
        yield _next(folder)
    finally:
        os.close(lock)


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``$STATE_DIRECTORY`` (systemd), else ``$XDG_STATE_HOME/inference-mesh``, else ``~/.local/state/inference-mesh``.

    Without a home directory it is ``/var/lib/inference-mesh``.
    """
    environ = process_environ() if environ is None else environ
    if systemd := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(systemd)
    xdg = Path(environ.get("XDG_STATE_HOME", ""))
    if xdg.is_absolute():
        return xdg / APP
    home = Path(environ.get("HOME", ""))
    return home / ".local" / "state" / APP if home.is_absolute() else Path("/var/lib") / APP


def _lock(base: Path, name: str | None) -> tuple[Path, int]:
    """The folder and the open lock; raises ``OSError`` where nothing can be kept."""
    if name is not None:
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigError(f"node.name: {name!r} is not a name: letters, digits, '.', '_' and '-'")
        lock = _try_lock(base / name)
        if lock is None:
            raise ConfigError(f"another process runs as node {name} ({base / name} is locked); choose another --node")
        return base / name, lock
    for number in range(1, MAX_AGENTS + 1):
        folder = base / ("default" if number == 1 else f"default-{number}")
        lock = _try_lock(folder)
        if lock is not None:
            return folder, lock
    raise ConfigError(f"{MAX_AGENTS} agents run on this box already; name this one with --node")


def _try_lock(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        os.close(lock)
        raise
    return lock


def _next(folder: Path) -> NodeIdentity:
    """The stored identity with its next incarnation, stored again before it is used."""
    stored = _read(folder / "node.json") or _Stored(uuid.uuid4().hex, 0)
    stored.incarnation = max(stored.incarnation + 1, _now_ms())
    try:
        _write(folder / "node.json", msgspec.json.encode(stored))
    except OSError as error:
        log.warning("cannot store the node's identity in %s: %s", folder, error.strerror)
    return NodeIdentity(stored.id, stored.incarnation, folder)


def _read(path: Path) -> _Stored | None:
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        if not _ID.fullmatch(stored.id) or not 0 <= stored.incarnation < MAX_INCARNATION:
            raise msgspec.ValidationError("no id, or an incarnation out of range")
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s cannot be used (%s): the node gets a new id", path, error)
        with contextlib.suppress(OSError):  # it is only kept aside for whoever wants to look at it
            os.replace(path, path.with_name("node.json.bad"))
        return None
    return stored


def _write(path: Path, content: bytes) -> None:
    """Replace the file as a whole; on return it survives a power cut."""
    draft = path.with_name(path.name + ".new")
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
