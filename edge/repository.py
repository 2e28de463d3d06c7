"""The model repository on disk, in Triton's layout: ``<dir>/<model>/<version>/model.onnx``.

Finds what can be served and names what cannot. Not here: loading (``instances``), declarations (``model_config``).
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from edge.model_config import ModelConfig, read_config
from mesh.errors import ConfigError, ModelRejected
from mesh.values import NAME_PATTERN, ModelIdentity

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
READ_BYTES = 1 << 20
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""As Triton has it: what begins with a zero, or is no number, is no version."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One version of a model on disk. ``rejected`` is why it cannot be served, empty if it can."""

    identity: ModelIdentity
    path: Path
    config: ModelConfig
    rejected: str = ""


def scan(folder: Path, max_file_bytes: int) -> list[StoredModel]:
    """All versions to serve, read and hashed (blocking: call it off the loop).

    A model that is wrong is returned as rejected, never skipped in silence. Raises ``ConfigError`` if there is no such
    folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--models: there is no folder {folder}")
    found: list[StoredModel] = []
    for model in sorted(folder.iterdir()):
        if not model.is_dir() or model.name.startswith("."):
            continue
        if not NAME_PATTERN.match(model.name):
            log.warning("model folder %r is not served: a name has letters, digits, dot, dash, underscore", model.name)
            continue
        found += _versions(model, max_file_bytes)
    return found


def _versions(model: Path, max_file_bytes: int) -> list[StoredModel]:
    try:
        config = read_config(model)
        wanted = _wanted(model, config)
    except ModelRejected as error:
        return [StoredModel(ModelIdentity(model.name, "1", ""), model, ModelConfig(), error.text)]
    except OSError as error:
        why = f"the folder of model {model.name!r} cannot be read: {error.strerror}"
        return [StoredModel(ModelIdentity(model.name, "1", ""), model, ModelConfig(), why)]
    stored = []
    for version in wanted:
        path = model / str(version) / MODEL_FILE
        try:
            identity = ModelIdentity(model.name, str(version), _digest(path, max_file_bytes))
            stored.append(StoredModel(identity, path, config))
        except ModelRejected as error:
            stored.append(StoredModel(ModelIdentity(model.name, str(version), ""), path, config, error.text))
    return stored


def _wanted(model: Path, config: ModelConfig) -> list[int]:
    there = sorted(int(v.name) for v in model.iterdir() if _VERSION.fullmatch(v.name) and v.is_dir())
    if not there:
        raise ModelRejected(f"model {model.name!r} has no version folder such as {model.name}/1/{MODEL_FILE}")
    if config.versions == "all":
        return there
    if config.versions == "latest":
        return there[-1:]
    missing = set(config.versions) - set(there)
    if missing:
        raise ModelRejected(f"model {model.name!r} declares version {min(missing)}, which has no folder")
    return sorted(set(config.versions))


def _digest(path: Path, max_file_bytes: int) -> str:
    if path.is_symlink() or not path.is_file():
        raise ModelRejected(f"{path.parent.parent.name}/{path.parent.name} has no regular file {MODEL_FILE}")
    size = path.stat().st_size
    if size > max_file_bytes:
        raise ModelRejected(f"{path.name} has {size} bytes, the limit is {max_file_bytes} (models.max_file_bytes)")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ModelRejected(f"{path.parent.parent.name}/{path.parent.name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
