"""The model repository on disk, in Triton's layout: ``<dir>/<model>/<version>/model.onnx``, or ``model.py``.

Finds what can be served and names what cannot; hashes a file only when it changed. Not here: loading (``instances``),
what should be loaded (``control``), declarations (``model_config``).
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edge.model_config import Latest, ModelConfig, read_config
from edge.settings import Backend
from mesh.errors import ConfigError, LoadFailed, ModelRejected
from mesh.values import NAME_PATTERN, VERSION_PATTERN, ModelIdentity

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
STEP_FILE = "model.py"
READ_BYTES = 1 << 20


class Stamp(NamedTuple):
    """What a file looks like without reading it."""

    size: int
    mtime_ns: int
    inode: int


Look = tuple[tuple[str, Stamp | None], ...]
"""A model's files by their place in its folder; None where there is a folder and no file."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One version of a model on disk. ``rejected`` is why it cannot be served, empty if it can."""

    identity: ModelIdentity
    path: Path
    config: ModelConfig
    rejected: str = ""
    stamp: Stamp | None = None
    """Of the file whose digest ``identity`` has."""

    @property
    def is_step(self) -> bool:
        """Whether it is a step in Python."""
        return self.path.name == STEP_FILE

    def chain(self, default: tuple[Backend, ...]) -> tuple[Backend, ...]:
        """Backends to try in turn."""
        return ("python",) if self.is_step else self.config.chain(default)

    def same(self, other: StoredModel) -> bool:
        """Whether loading the other would come to the same."""
        return (self.identity, self.config, self.rejected) == (other.identity, other.config, other.rejected)

    def unchanged(self) -> bool:
        """Whether the file is still the one that was hashed, as far as a look at it tells. Blocking."""
        return self.stamp is not None and _stamp(self.path) == self.stamp


class Repository:
    """Blocking: call it off the loop, from one thread at a time."""

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._digests: dict[Path, tuple[Stamp, str]] = {}
        self._looks: dict[str, Look] = {}
        self._taken: dict[str, tuple[Look, list[StoredModel]]] = {}
        self._misnamed: set[str] = set()
        self._overrides: dict[str, str] = {}

    def scan(self) -> dict[str, list[StoredModel]]:
        """All versions to serve of every model as they are now.

        A model that is wrong is returned as rejected, never skipped in silence. Raises ``ConfigError`` if there is no
        such folder.
        """
        return {name: self._take(name, look) for name, look in self._look().items()}

    def poll(self) -> dict[str, list[StoredModel]]:
        """As :meth:`scan`, but a model whose files differ from those of the last look stays what it was: they may be
        on their way still. That goes for a model that is gone as well. Unchanged files are not read again."""
        before, now = self._looks, self._look()
        found = {}
        for name in sorted(now.keys() | self._taken.keys()):
            look = now.get(name)
            settled = look == before.get(name)
            if not settled and name in self._taken:
                found[name] = self._taken[name][1]
            elif settled and look is not None:
                found[name] = self._take(name, look)
            elif settled:
                self._forget(name)
        return found

    def model(self, name: str, override: str | None = None) -> list[StoredModel]:
        """The versions to serve of one model as it is now; empty if there is none of that name.

        ``override`` stands in for its own configuration until the model is asked for again. Raises ``LoadFailed`` if it
        cannot; then all stays as it was.
        """
        look = self._look().get(name)
        if look is not None and override != self._overrides.get(name):
            self._override(name, override)
        return [] if look is None else self._take(name, look)

    def _override(self, name: str, config: str | None) -> None:
        if config is None:
            del self._overrides[name]
        else:
            try:
                read_config(self._folder / name, config)
            except ModelRejected as error:
                raise LoadFailed(f"failed to load {name!r}: {error.text}") from None
            self._overrides[name] = config
        self._taken.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self._look())

    def _take(self, name: str, look: Look) -> list[StoredModel]:
        taken = self._taken.get(name)
        if taken is None or taken[0] != look or any(m.rejected for m in taken[1]):
            taken = self._taken[name] = look, self._versions(self._folder / name)
        return taken[1]

    def _forget(self, name: str) -> None:
        self._taken.pop(name, None)
        model = self._folder / name
        self._digests = {path: known for path, known in self._digests.items() if path.parent.parent != model}

    def _look(self) -> dict[str, Look]:
        if not self._folder.is_dir():
            raise ConfigError(f"--models: there is no folder {self._folder}")
        self._looks = {}
        for model in sorted(self._folder.iterdir()):
            if not model.is_dir() or model.name.startswith("."):
                continue
            if NAME_PATTERN.match(model.name):
                self._looks[model.name] = _look_at(model, self._label_files(model.name))
            elif model.name not in self._misnamed:
                self._misnamed.add(model.name)
                log.warning(
                    "model folder %r is not served: a name has letters, digits, dot, dash, underscore", model.name
                )
        return self._looks

    def _label_files(self, name: str) -> list[str]:
        """Files of labels that its declaration named when it was last read."""
        _, stored = self._taken.get(name, ((), []))
        return sorted({file for model in stored for file in model.config.label_files})

    def _versions(self, model: Path) -> list[StoredModel]:
        try:
            config = read_config(model, self._overrides.get(model.name))
            wanted = _wanted(model, config)
        except ModelRejected as error:
            return [_rejected(model, "1", model, ModelConfig(), error.text)]
        except OSError as error:
            why = f"the folder of model {model.name!r} cannot be read: {error.strerror}"
            return [_rejected(model, "1", model, ModelConfig(), why)]
        stored = []
        for version in map(str, wanted):
            path = model / version / MODEL_FILE
            try:
                path = _file_of(model / version, config)
                stamp, digest = self._digest(path)
                stored.append(StoredModel(ModelIdentity(model.name, version, digest), path, config, "", stamp))
            except ModelRejected as error:
                stored.append(_rejected(model, version, path, config, error.text))
        return stored

    def _digest(self, path: Path) -> tuple[Stamp, str]:
        if path.is_symlink() or not path.is_file():
            raise ModelRejected(f"{path.parent.parent.name}/{path.parent.name} has no regular file {path.name}")
        try:
            with path.open("rb") as file:
                stamp = _of(os.fstat(file.fileno()))
                known = self._digests.get(path)
                if known is not None and known[0] == stamp:
                    return known
                if stamp.size > self._max_file_bytes:
                    raise ModelRejected(
                        f"{path.name} has {stamp.size} bytes, the limit is {self._max_file_bytes} "
                        "(models.max_file_bytes)"
                    )
                digest = hashlib.sha256()
                while chunk := file.read(READ_BYTES):
                    digest.update(chunk)
        except OSError as error:
            where = f"{path.parent.parent.name}/{path.parent.name}"
            raise ModelRejected(f"{where} cannot be read: {error.strerror}") from None
        self._digests[path] = stamp, digest.hexdigest()
        return self._digests[path]


def _look_at(model: Path, label_files: list[str]) -> Look:
    try:
        versions = [entry for entry in sorted(os.listdir(model)) if VERSION_PATTERN.fullmatch(entry)]
    except OSError:  # said when it is read
        versions = []
    declared = [(name, _stamp(model / name)) for name in ("model.toml", "config.pbtxt", *label_files)]
    files = [(version, model / version / file) for version in versions for file in (MODEL_FILE, STEP_FILE)]
    return (*declared, *((version, _stamp(path)) for version, path in files))


def _file_of(version: Path, config: ModelConfig) -> Path:
    """Where a version is. Raises ``ModelRejected`` where that is not clear, or not what is declared."""
    where = f"{version.parent.name}/{version.name}"
    model, step = version / MODEL_FILE, version / STEP_FILE
    if not os.path.lexists(step):
        if "python" in config.backends:
            raise ModelRejected(f"{where} has no file {STEP_FILE}, and asks for the backend python")
        return model
    if os.path.lexists(model):
        raise ModelRejected(f"{where} has both {MODEL_FILE} and {STEP_FILE}; one of them is the model")
    if config.backends not in ((), ("python",)):
        raise ModelRejected(f"{where} is a {STEP_FILE}, which no backend but python runs, and asks for others")
    return step


def _stamp(path: Path) -> Stamp | None:
    try:
        return _of(path.lstat())
    except OSError:
        return None


def _of(stat: os.stat_result) -> Stamp:
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _rejected(model: Path, version: str, path: Path, config: ModelConfig, why: str) -> StoredModel:
    return StoredModel(ModelIdentity(model.name, version, ""), path, config, why)


def _wanted(model: Path, config: ModelConfig) -> list[int]:
    there = sorted(int(v.name) for v in model.iterdir() if VERSION_PATTERN.fullmatch(v.name) and v.is_dir())
    if not there:
        raise ModelRejected(f"model {model.name!r} has no version folder such as {model.name}/1/{MODEL_FILE}")
    if config.versions == "all":
        return there
    if config.versions == "latest":
        return there[-1:]
    if isinstance(config.versions, Latest):
        return there[-config.versions.latest :]
    missing = set(config.versions) - set(there)
    if missing:
        raise ModelRejected(f"model {model.name!r} declares version {min(missing)}, which has no folder")
    return sorted(set(config.versions))
