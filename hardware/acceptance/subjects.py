"""The models a run is about: those that are made here and those of a repository, each with inputs it takes.

Of a repository's ``model.toml`` only what inputs need is read: ``[warmup]`` and ``[[profiles]]``. Not here: running
them, whether an answer is right.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hardware.acceptance import made
from hardware.backend import ITEM_BYTES, Profile, RawTensor, ShapeRange, TensorInfo
from hardware.errors import ModelRefused
from hardware.onnx_graph import read_graph
from hardware.protobuf import Malformed
from hardware.validate import check_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FREE_SIZES = (1, 32, 64, 224, 320, 640)
"""Tried in turn for free dimensions behind the first, as a warm-up does."""
MAX_ROWS = 16
MAX_MODEL_BYTES = 2 << 30
_DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
_DTYPES |= {f"{sign}INT{8 * size}": f"<{sign.lower() or 'i'}{size}" for sign in ("", "U") for size in (1, 2, 4, 8)}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    path: str
    digest: str
    """SHA-256 of the file."""
    inputs: tuple[TensorInfo, ...]
    answer: Callable[..., tuple[made.Array, ...]] | None = None
    """Known right answers; None where only another backend can tell."""
    control_flow: bool = False
    warmup: Mapping[str, tuple[Shape, float]] = field(default_factory=dict)
    profiles: tuple[Profile, ...] = ()
    """Those that ``model.toml`` declares."""
    free_size: int = 1
    """For free dimensions behind the first that nothing declares."""

    @property
    def takes_rows(self) -> bool:
        """Whether every input has a first dimension that is free, and nothing says what it must be."""
        return all(i.shape[:1] == (-1,) and i.name not in self.warmup for i in self.inputs)

    @property
    def is_made(self) -> bool:
        return self.answer is not None

    @property
    def must_run(self) -> bool:
        """Whether a backend that does not take it does not work at all."""
        return self.is_made and not self.control_flow

    def sizes(self) -> tuple[int, ...]:
        undeclared = [i for i in self.inputs if i.name not in self.warmup]
        return FREE_SIZES if any(-1 in i.shape[1:] for i in undeclared) else (1,)

    def with_size(self, size: int) -> Subject:
        return replace(self, free_size=size)

    def request(self, rows: int = 1, seed: int = 0) -> list[RawTensor]:
        """Inputs of ``rows`` rows where it takes rows, else of the one shape; the same values for the same seed."""
        random = np.random.default_rng([made.SEED, seed])
        return [self._input(info, rows, random) for info in self.inputs]

    def engine_profiles(self, rows: int = MAX_ROWS) -> tuple[Profile, ...]:
        """The declared ones, or one from one row to ``rows``."""
        if self.profiles:
            return self.profiles
        free = [info for info in self.inputs if -1 in info.shape]
        ranges = []
        for info in free:
            low, best, high = (self._shape(info, n) for n in (1, max(1, rows // 2), rows))
            ranges.append(ShapeRange(info.name, low, best, high))
        return (tuple(ranges),) if ranges else ()

    def most_rows(self) -> int:
        """Rows that one run may have for comparisons, within the declared profiles."""
        if not self.takes_rows:
            return 1
        return min([MAX_ROWS, *(r.maximum[0] for profile in self.profiles for r in profile)])

    def _shape(self, info: TensorInfo, rows: int) -> Shape:
        if info.name in self.warmup:
            return self.warmup[info.name][0]
        first = rows if self.takes_rows else 1
        return tuple((first if axis == 0 else self.free_size) if d < 0 else d for axis, d in enumerate(info.shape))

    def _input(self, info: TensorInfo, rows: int, random: np.random.Generator) -> RawTensor:
        shape = self._shape(info, rows)
        given = self.warmup.get(info.name, ((), 0.0))[1]
        if info.datatype == "BYTES":
            return RawTensor(info.name, "BYTES", shape, b"\0\0\0\0" * math.prod(shape))
        if info.datatype == "BF16":
            return RawTensor(info.name, "BF16", shape, bytes(math.prod(shape) * ITEM_BYTES["BF16"]))
        dtype = np.dtype(_DTYPES[info.datatype])
        if given:
            array = np.full(shape, given, dtype)
        elif dtype.kind == "f":
            array = random.random(shape).astype(dtype)
        else:  # pictures, or else likely numbers of words or masks, of which few are certain to exist
            array = random.integers(0, 256 if info.datatype == "UINT8" else 2, shape).astype(dtype)
        return RawTensor(info.name, info.datatype, shape, array.tobytes())


def make_all(folder: Path) -> list[Subject]:
    """Write the made models below ``folder``."""
    return [of_made(folder, model) for model in made.all_models()]


def of_made(folder: Path, model: made.Made) -> Subject:
    path = folder / f"{model.name}.onnx"
    path.write_bytes(model.file)
    subject = of_file(model.name, path)
    return replace(subject, answer=model.answer, control_flow=model.control_flow)


def in_repository(folder: Path) -> list[Path]:
    """The highest version of each model: ``<folder>/<model>/<version>/model.onnx``."""
    newest: dict[str, Path] = {}
    files = [p for p in folder.glob("*/*/model.onnx") if p.parent.name.isdigit()]
    for path in sorted(files, key=lambda path: int(path.parent.name)):
        newest[path.parent.parent.name] = path
    return [newest[name] for name in sorted(newest)]


def of_file(name: str, path: Path, declared: Path | None = None) -> Subject:
    """Raises ``ModelRefused``."""
    check_model(str(path), MAX_MODEL_BYTES)
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        inputs = read_graph(data).inputs
    except Malformed as error:
        raise ModelRefused(f"the file is not a well-formed ONNX model: {error}") from None
    odd = next((i for i in inputs if i.datatype not in _DTYPES and i.datatype not in ("BYTES", "BF16")), None)
    if odd is not None:
        raise ModelRefused(f"input '{odd.name}' has a type that the protocol has no name for")
    warmup, profiles = _declared(declared) if declared is not None and declared.is_file() else ({}, ())
    digest = hashlib.sha256(data).hexdigest()
    return Subject(name, str(path), digest, inputs, warmup=warmup, profiles=profiles)


def _declared(file: Path) -> tuple[dict[str, tuple[Shape, float]], tuple[Profile, ...]]:
    try:
        document: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        warmup = {
            name: (tuple(given["shape"]), float(given.get("value", 0.0)))
            for name, given in document.get("warmup", {}).items()
        }
        profiles = tuple(
            tuple(ShapeRange(n, tuple(r["min"]), tuple(r["opt"]), tuple(r["max"])) for n, r in sorted(profile.items()))
            for profile in document.get("profiles", ())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefused(f"{file.parent.name}/{file.name} cannot be understood: {error}") from None
    return warmup, profiles
