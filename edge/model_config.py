"""What is declared about a model: ``model.toml`` of our own, and a useful subset of Triton's ``config.pbtxt``.

``model.toml`` wins where both stand. Not here: Triton's fields (``triton_config``), finding models on disk
(``repository``), the file's own signature.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from edge.settings import Backend, Chain
from edge.triton_config import from_pbtxt
from hardware.backend import Profile, ShapeRange
from mesh.errors import ModelRejected

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 1 << 20
MAX_INSTANCES = 64


class Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class WarmupInput(Declared):
    """One input of the warm-up inference; ``value`` fills it, 0 by default."""

    shape: tuple[NonNegativeInt, ...]
    value: float | str = 0.0


class BatchingConfig(Declared):
    """How requests may be run together; 0 leaves it to what the warm-up finds out."""

    max_rows: NonNegativeInt = 0
    """Most rows of a run; 1 runs every request alone."""
    delay_ms: float = Field(default=0.0, ge=0)
    """Longest that a request waits for company while the device idles."""


class ProfileRange(Declared):
    """Shapes that one input may take in an optimisation profile of TensorRT."""

    minimum: tuple[PositiveInt, ...] = Field(alias="min")
    optimum: tuple[PositiveInt, ...] = Field(alias="opt")
    maximum: tuple[PositiveInt, ...] = Field(alias="max")

    @model_validator(mode="after")
    def _in_order(self) -> ProfileRange:
        if not len(self.minimum) == len(self.optimum) == len(self.maximum):
            raise ValueError("min, opt and max have different numbers of dimensions")
        rising = zip(self.minimum, self.optimum, self.maximum, strict=True)
        if not all(low <= best <= high for low, best, high in rising):
            raise ValueError("min, opt and max are not in this order")
        return self


class Latest(Declared):
    latest: PositiveInt
    """How many of the highest versions to serve."""


class ModelConfig(Declared):
    """``model.toml``; every field has a default, so that the file is optional."""

    backends: tuple[()] | Chain = ()
    """Backends to try in turn; empty is the agent's setting."""
    versions: Literal["latest", "all"] | Latest | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = "latest"
    """Which versions to serve, as Triton's version policy."""
    deadline_ms: float = Field(default=0.0, ge=0)
    """Deadline of requests that name none; 0 is the agent's setting."""
    priority: NonNegativeInt = 0
    """Class of requests that bring none: 1 goes before 2, 0 behind all."""
    instances: int = Field(default=1, ge=1, le=MAX_INSTANCES)
    """Inferences of a version that may run at the same time."""
    batching: BatchingConfig = BatchingConfig()
    precision: Literal["fp32", "fp16"] = "fp32"
    """What TensorRT may compute in, as "tensorrt" and as "onnxruntime-tensorrt"."""
    cuda_graphs: bool = False
    """For "tensorrt": replay captured CUDA graphs for the most used shapes."""
    profiles: tuple[dict[str, ProfileRange], ...] = ()
    """Shapes that engines of "tensorrt" and "onnxruntime-tensorrt" are built for, by input. Where none are given one is
    made of the warm-up's shapes: for "onnxruntime-tensorrt" of those that ``warmup`` declares only, because it builds
    while it loads, before anything ran."""
    warmup: dict[str, WarmupInput] = Field(default_factory=dict)
    """Inputs of the warm-up by name; undeclared ones are zeros of the declared shape, free dimensions guessed."""

    def chain(self, default: tuple[Backend, ...]) -> tuple[Backend, ...]:
        return self.backends or default

    def engine_profiles(self) -> tuple[Profile, ...]:
        """The declared profiles."""
        return tuple(
            tuple(ShapeRange(name, r.minimum, r.optimum, r.maximum) for name, r in sorted(profile.items()))
            for profile in self.profiles
        )


def read_config(folder: Path) -> ModelConfig:
    """Read the declarations in a model's folder. Raises ``ModelRejected`` naming the file and what is wrong."""
    pbtxt, toml = folder / "config.pbtxt", folder / "model.toml"
    values = from_pbtxt(_text(pbtxt), folder.name) if pbtxt.is_file() else {}
    if toml.is_file():
        try:
            values |= tomllib.loads(_text(toml))
        except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
            raise ModelRejected(f"{folder.name}/model.toml is not TOML: {error}") from None
        except RecursionError:
            raise ModelRejected(f"{folder.name}/model.toml nests too deeply") from None
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        what = "; ".join(_said(e) for e in error.errors(include_url=False))
        file = "model.toml" if toml.is_file() else "config.pbtxt"
        raise ModelRejected(f"{folder.name}/{file}: {what}") from None


def _said(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if where == "backend":
        return 'backend: what to try is a list, as in backends = ["onnxruntime-cuda", "onnxruntime-cpu"]'
    return f"{where}: {error['msg']}"


def _text(path: Path) -> str:
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ModelRejected(f"{where} is larger than {MAX_CONFIG_BYTES} bytes")
        return text.decode("utf-8")
    except OSError as error:
        raise ModelRejected(f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelRejected(f"{where} is not UTF-8 text") from None
