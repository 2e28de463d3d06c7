"""What is declared about a model: ``model.toml`` of our own, and a useful subset of Triton's ``config.pbtxt``.

``model.toml`` wins where both stand. Not here: Triton's fields (``triton_config``), finding models on disk
(``repository``), the file's own signature.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from edge.declared import Declared
from edge.labels import LabelsByOutput
from edge.sequence_config import SequenceConfig
from edge.settings import Backend, Chain
from edge.texts import text_of
from edge.triton_config import from_json, from_pbtxt
from hardware.backend import Profile, ShapeRange, Signature, TensorInfo
from mesh import confidence
from mesh.declarations import Cascade
from mesh.errors import ModelRejected
from mesh.values import NAME_PATTERN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 1 << 20
MAX_INSTANCES = 64


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


class CascadeConfig(Declared):
    """Which larger model is asked where this one is not sure."""

    next: str = Field(pattern=NAME_PATTERN.pattern)
    next_version: PositiveInt | None = None
    """None is whatever the door takes for the default version."""
    output: str = Field(min_length=1)
    """The output that tells how sure this model is."""
    confidence: Literal["max", "margin", "entropy"] = "max"
    softmax: bool = False
    """Whether that output holds logits."""
    threshold: float = Field(default=0.8, ge=0, le=1)
    target: float | None = Field(default=None, gt=0, lt=1)
    """Agreement with the larger model wanted of the sure answers; with it the threshold is only the first one."""
    audit: float = Field(default=0.02, ge=0, le=1)
    """Share of the sure answers about which the larger model is asked afterwards."""

    @model_validator(mode="after")
    def _is_audited(self) -> CascadeConfig:
        if self.target is not None and self.audit == 0.0:
            raise ValueError("target needs audits: without them nobody knows how often the sure answers are right")
        return self

    def declared(self) -> Cascade:
        return Cascade(
            next=self.next,
            next_version=str(self.next_version or ""),
            output=self.output,
            confidence=self.confidence,
            softmax=self.softmax,
            threshold=self.threshold,
            target=self.target,
            audit=self.audit,
        )

    def why_unfit(self, outputs: tuple[TensorInfo, ...]) -> str:
        """Why a model with these outputs cannot have it; empty if it can."""
        found = next((o for o in outputs if o.name == self.output), None)
        if found is None:
            return f"cascade.output: the model has no output {self.output!r}, it has {[o.name for o in outputs]}"
        why = confidence.unfit(found.datatype, found.shape)
        return f"cascade.output: output {self.output!r} {why}" if why else ""


class RoutingConfig(Declared):
    """Where requests may run, whatever they say themselves."""

    stay: Literal["", "node", "site", "region"] = ""
    """What a request must not leave, seen from the door it came to; empty is nothing."""


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
    decoupled: bool | None = None
    """What is expected of a step in Python; None takes what it is."""
    cascade: CascadeConfig | None = None
    sequence: SequenceConfig | None = None
    """What it keeps from one request to the next; None keeps nothing."""
    routing: RoutingConfig = RoutingConfig()
    labels: LabelsByOutput = Field(default_factory=dict)
    """Names of the classes, by output."""

    def chain(self, default: tuple[Backend, ...]) -> tuple[Backend, ...]:
        return self.backends or default

    @cached_property
    def declared_cascade(self) -> Cascade | None:
        """As nodes tell each other."""
        return self.cascade.declared() if self.cascade is not None else None

    def warmup_inputs(self, signature: Signature) -> dict[str, WarmupInput]:
        """What is declared of the warm-up's inputs; those of a sequence are as in a first step."""
        first = self.sequence.first(signature) if self.sequence is not None else {}
        return {name: WarmupInput(shape=shape, value=value) for name, (shape, value) in first.items()} | self.warmup

    @property
    def label_files(self) -> tuple[str, ...]:
        """Files of the model's folder that ``labels`` were read from."""
        return tuple(sorted({labels.file for labels in self.labels.values() if labels.file}))

    def why_mislabelled(self, outputs: tuple[TensorInfo, ...]) -> str:
        """Which labels are of nothing that a model with these outputs answers; empty if there are none."""
        hidden = self.sequence.outputs if self.sequence is not None else ()
        answered = [o.name for o in outputs if o.name not in hidden]
        wrong = next((name for name in self.labels if name not in answered), None)
        return "" if wrong is None else f"labels: the model answers no output {wrong!r}, it has {answered}"

    def engine_profiles(self) -> tuple[Profile, ...]:
        """The declared profiles."""
        return tuple(
            tuple(ShapeRange(name, r.minimum, r.optimum, r.maximum) for name, r in sorted(profile.items()))
            for profile in self.profiles
        )


def read_config(folder: Path, override: str | None = None) -> ModelConfig:
    """Read the declarations in a model's folder. Raises ``ModelRejected`` naming the file and what is wrong.

    Fields of ``override``, a configuration of Triton's in JSON, stand in for those of the files.
    """
    pbtxt, toml = folder / "config.pbtxt", folder / "model.toml"
    values = from_pbtxt(text_of(pbtxt, MAX_CONFIG_BYTES), folder.name) if pbtxt.is_file() else {}
    if toml.is_file():
        try:
            values |= tomllib.loads(text_of(toml, MAX_CONFIG_BYTES))
        except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
            raise ModelRejected(f"{folder.name}/model.toml is not TOML: {error}") from None
        except RecursionError:
            raise ModelRejected(f"{folder.name}/model.toml nests too deeply") from None
    if override is not None:
        values |= from_json(override, folder.name)
    try:
        config = ModelConfig.model_validate(values, context=folder)
    except ValidationError as error:
        what = "; ".join(_said(e) for e in error.errors(include_url=False))
        file = "model.toml" if toml.is_file() else "config.pbtxt"
        file = file if override is None else "config"
        raise ModelRejected(f"{folder.name}/{file}: {what}") from None
    if config.cascade is not None and config.cascade.next == folder.name:
        raise ModelRejected(f"{folder.name}/model.toml: cascade.next: {folder.name!r} is the model itself")
    return config


def _said(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if where == "backend":
        return 'backend: what to try is a list, as in backends = ["onnxruntime-cuda", "onnxruntime-cpu"]'
    return f"{where}: {error['msg']}"
