"""Built engines on disk: found by content key, signed, bounded, and never half there.

``<folder>/<key>/`` holds ``plan`` and, written last, ``meta.json``; it gets that name by a rename once both are on
disk. What does not verify is renamed ``<key>.bad`` and never loaded: a plan is code (DESIGN D7). Every entry is signed
under the device's secret, so that one from another device is as bad as a damaged one; one of another TensorRT has
another key. Not here: what makes a key (``engine_key``), building (``engine_process``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from hardware import durable, signing
from hardware.engine_key import Ingredients
from hardware.errors import EngineNotBuilt

log = logging.getLogger(__name__)

MAX_META_BYTES = 1024**2
_PURPOSE = "engine"
_BAD = ".bad"
_UNFINISHED = "unfinished-"
_LOCK = "lock"
_NOT_AS_WRITTEN = (errno.ENOENT, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.ENOTDIR)
"""Missing, longer than written, or no regular file; any other failure is the disk's."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """``meta.json``; the plan is signed through its digest in here."""

    key: str
    ingredients: Ingredients
    plan_sha256: str
    plan_bytes: int
    driver_version: int
    """CUDA driver at the build, 0 where there was none; a plan outlives driver updates."""
    build_s: float


class _Signed(msgspec.Struct, frozen=True):
    signature: str
    meta: msgspec.Raw


class _Unsound(Exception):
    """An entry that must not be loaded, and why."""


class Entry(NamedTuple):
    path: Path
    meta: Meta


def read(entry: Path, key_file: Path) -> bytes:
    """The verified plan of an entry; raises ``EngineNotBuilt`` where there is none, after setting a bad one aside.

    The bytes returned are those that were verified, whatever happens to the file.
    """
    secret = signing.read_secret(key_file)
    with hold(entry):
        return _verified(entry, secret)[1]


@contextlib.contextmanager
def hold(entry: Path) -> Iterator[None]:
    """Keep an entry from being evicted while entered; for whoever runs it and may have to load it again."""
    try:
        fd = durable.lock_folder(entry, shared=True)
    except OSError as error:
        raise EngineNotBuilt(f"the cached engine cannot be opened: {error.strerror}") from None
    if fd is None:
        raise EngineNotBuilt("the cached engine is being removed")
    try:
        yield
    finally:
        os.close(fd)


class EngineCache:
    """One folder of entries, which several processes may share."""

    def __init__(self, folder: Path, secret: bytes, limit_bytes: int) -> None:
        """Make the folder if it is missing; raises ``EngineNotBuilt``."""
        self._folder = folder
        self._secret = secret
        self._limit = limit_bytes
        with _named("the engine cache cannot be made"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, key: str) -> Entry | None:
        """The verified entry of ``key``, from now on the last used; a bad one is set aside and not found."""
        path = self._folder / key
        if not path.is_dir():
            return None
        try:
            with hold(path):
                meta, _ = _verified(path, self._secret)
                with contextlib.suppress(OSError):  # a cache that cannot be written still serves
                    os.utime(path / "meta.json")
        except EngineNotBuilt:
            return None
        return Entry(path, meta)

    def store(self, plan: memoryview, ingredients: Ingredients, driver_version: int, build_s: float) -> Entry:
        """Keep a new plan, then evict what is over the limit; raises ``EngineNotBuilt`` where it cannot be kept."""
        digest = hashlib.sha256(plan).hexdigest()
        meta = Meta(
            key=ingredients.key,
            ingredients=ingredients,
            plan_sha256=digest,
            plan_bytes=plan.nbytes,
            driver_version=driver_version,
            build_s=build_s,
        )
        with _named("the engine cannot be kept"), self._unfinished() as unfinished:
            durable.write(unfinished / "plan", plan)
            durable.write(unfinished / "meta.json", self._signed(meta))
            durable.sync_folder(unfinished)
            path = self._publish(unfinished, meta.key)
        self.evict(meta.key)
        return Entry(path, meta)

    def evict(self, keep: str = "") -> None:
        """Remove leftovers, then what is bad, then what was used longest ago, until the limit is kept.

        Neither ``keep`` nor what somebody holds is removed, so that the limit may be overrun.
        """
        try:
            with self._locked():
                self._evict(keep)
        except OSError as error:  # the engine that was just built is none the worse for it
            log.warning("the engine cache cannot be cut to its limit: %s", error.strerror)

    def _evict(self, keep: str) -> None:
        for unfinished in self._folder.glob(f"{_UNFINISHED}*"):  # left behind by builds that were killed
            _remove(unfinished)
        entries = sorted(map(_Used.of, filter(_is_entry, self._folder.iterdir())))
        total = sum(entry.nbytes for entry in entries)
        for entry in entries:
            if total <= self._limit:
                return
            if entry.path.name != keep and _remove(entry.path):
                total -= entry.nbytes

    def _signed(self, meta: Meta) -> bytes:
        raw = msgspec.json.encode(meta, order="sorted")
        return msgspec.json.encode(_Signed(signing.sign(self._secret, _PURPOSE, raw), msgspec.Raw(raw)))

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A new folder that a sweep leaves alone while it is entered, and that is gone afterwards."""
        with self._locked():
            path = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
            fd = durable.lock_folder(path)
        try:
            yield path
        finally:
            if fd is not None:
                os.close(fd)
            shutil.rmtree(path, ignore_errors=True)

    def _publish(self, unfinished: Path, key: str) -> Path:
        path = self._folder / key
        with self._locked():
            if self.find(key) is None:  # else another process built the same meanwhile
                unfinished.rename(path)
                durable.sync_folder(self._folder)
        return path

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return durable.locked(self._folder / _LOCK)


class _Used(NamedTuple):
    """Sorts into the order of eviction."""

    is_good: bool
    last_used: float
    nbytes: int
    path: Path

    @classmethod
    def of(cls, path: Path) -> _Used:
        stats = [file.stat() for file in path.iterdir()]
        last_used = max((stat.st_mtime for stat in stats), default=0.0)
        return cls(path.suffix != _BAD, last_used, sum(stat.st_size for stat in stats), path)


def _is_entry(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(_UNFINISHED)


def _verified(path: Path, secret: bytes) -> tuple[Meta, bytes]:
    """What the entry at ``path`` holds; sets it aside and raises ``EngineNotBuilt`` unless all of it is sound."""
    try:
        return _check(path, secret)
    except _Unsound as error:
        set_aside(path, str(error))
        raise EngineNotBuilt(f"the cached engine {path.name[:12]} was set aside: {error}") from None
    except OSError as error:
        raise EngineNotBuilt(f"the cached engine {path.name[:12]} cannot be read: {error.strerror}") from None


def _check(path: Path, secret: bytes) -> tuple[Meta, bytes]:
    try:
        signed = msgspec.json.decode(durable.read(path / "meta.json", MAX_META_BYTES), type=_Signed)
        if not signing.is_signed(secret, _PURPOSE, bytes(signed.meta), signed.signature):
            raise _Unsound("it was not signed by this device")
        meta = msgspec.json.decode(signed.meta, type=Meta)
        if not meta.key == meta.ingredients.key == path.name:
            raise _Unsound("it is the engine of another key")
        plan = durable.read(path / "plan", meta.plan_bytes)
    except msgspec.MsgspecError:
        raise _Unsound("its description is damaged") from None
    except OSError as error:
        if error.errno not in _NOT_AS_WRITTEN:
            raise
        raise _Unsound(f"its files are not those that were written: {error.strerror}") from None
    if hashlib.sha256(plan).hexdigest() != meta.plan_sha256:
        raise _Unsound("its plan is damaged")
    return meta, plan


def set_aside(path: Path, reason: str) -> None:
    """Rename an entry so that it is never loaded; for a plan that verifies and that TensorRT refuses all the same."""
    bad = path.with_name(path.name + _BAD)
    with contextlib.suppress(OSError):  # where it cannot be renamed it stays, and is refused each time
        shutil.rmtree(bad, ignore_errors=True)
        path.rename(bad)
        (bad / "reason.txt").write_text(reason + "\n", encoding="utf-8")


def _remove(path: Path) -> bool:
    """Remove an entry unless it is in use; whether it is gone."""
    fd = durable.lock_folder(path)
    if fd is None:
        return False
    try:
        gone = path.with_name(f"{_UNFINISHED}removed-{path.name}")  # no reader finds half an entry
        if not path.name.startswith(_UNFINISHED):
            path.rename(gone)
            path = gone
        shutil.rmtree(path)
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn a failure of the disk into ``EngineNotBuilt``."""
    try:
        yield
    except OSError as error:
        raise EngineNotBuilt(f"{what}: {error.strerror}") from None
