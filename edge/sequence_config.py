"""What is declared about a model that keeps state between requests: ``[sequence]`` in ``model.toml``.

State goes in and out as tensors of the model that callers never see (Triton's "implicit state"); controls are inputs
that tell the model where in a sequence it is. Not here: the sequences themselves (``sequences``), their tensors
(``sequence_tensors``).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, model_validator

from edge.declared import Declared
from hardware.backend import ITEM_BYTES, Signature, TensorInfo

FREE = -1
INTEGERS = frozenset(("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"))


class StateConfig(Declared):
    """One tensor that is fed back: what ``output`` gives in a step ``input`` takes in the next."""

    input: str = Field(min_length=1)
    output: str = Field(min_length=1)
    initial: float = Field(default=0.0, allow_inf_nan=False)
    """Every element before the first step."""
    shape: tuple[Annotated[int, Field(ge=FREE)], ...] | None = None
    """Before the first step; None is the model's own. A free first dimension takes the rows of the request."""

    @model_validator(mode="after")
    def _only_rows_are_free(self) -> StateConfig:
        if self.shape is not None and FREE in self.shape[1:]:
            raise ValueError("of a shape only the first dimension may be -1, for the rows of a request")
        return self

    def starts_as(self, info: TensorInfo) -> tuple[int, ...]:
        """The shape before the first step; a first dimension of -1 is the rows of the request."""
        return info.shape if self.shape is None else self.shape


class ControlsConfig(Declared):
    """Inputs that the node fills; 1 or 0 in the input's datatype, ``id`` the sequence's own id."""

    start: str = ""
    end: str = ""
    ready: str = ""
    id: str = ""

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.start, self.end, self.ready, self.id) if name)


class SequenceConfig(Declared):
    state: tuple[StateConfig, ...] = ()
    controls: ControlsConfig = ControlsConfig()
    idle_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """A sequence of which nothing was heard for so long is over; 0 is the agent's setting."""
    most: NonNegativeInt = 0
    """Sequences of the model on this node at once; 0 is the agent's setting."""

    @model_validator(mode="after")
    def _once(self) -> SequenceConfig:
        for names in (self.inputs, self.outputs):
            if len(set(names)) != len(names):
                raise ValueError("an input or output is named twice")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that callers do not give."""
        return tuple(s.input for s in self.state) + self.controls.names()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that callers do not see."""
        return tuple(s.output for s in self.state)

    def why_unfit(self, signature: Signature) -> str:
        """Why a model with this signature cannot have it; empty if it can."""
        inputs = {i.name: i for i in signature.inputs}
        outputs = {o.name: o for o in signature.outputs}
        for name in self.inputs:
            if name not in inputs:
                return f"sequence: the model has no input {name!r}, it has {sorted(inputs)}"
        for state in self.state:
            output = outputs.get(state.output)
            if output is None:
                return f"sequence: the model has no output {state.output!r}, it has {sorted(outputs)}"
            if why := _cannot_feed(inputs[state.input], output, state):
                return f"sequence: {why}"
        return next((f"sequence: {why}" for name in self.controls.names() if (why := self._misfit(inputs[name]))), "")

    def first(self, signature: Signature) -> dict[str, tuple[tuple[int, ...], float | str]]:
        """Shape and value of its inputs in the first of many steps of one row."""
        infos, controls = {i.name: i for i in signature.inputs}, self.controls
        found: dict[str, tuple[tuple[int, ...], float | str]] = {}
        for state in self.state:
            found[state.input] = tuple(map(abs, state.starts_as(infos[state.input]))), state.initial
        values = ((controls.start, 1.0), (controls.end, 0.0), (controls.ready, 1.0), (controls.id, 1.0))
        for name, value in values:
            if name:
                is_text = infos[name].datatype == "BYTES"
                found[name] = tuple(map(abs, infos[name].shape)), "1" if is_text else value
        return found

    def _misfit(self, info: TensorInfo) -> str:
        if info.name == self.controls.id:
            takes = info.datatype == "BYTES" or info.datatype in INTEGERS
            return "" if takes else f"control {info.name!r} is {info.datatype}, an id is an integer or BYTES"
        return "" if info.datatype in ITEM_BYTES else f"control {info.name!r} is {info.datatype}, which holds no 0 or 1"


def _cannot_feed(taken: TensorInfo, given: TensorInfo, state: StateConfig) -> str:
    if taken.datatype != given.datatype:
        return f"output {given.name!r} is {given.datatype}, input {taken.name!r} takes {taken.datatype}"
    if taken.datatype not in ITEM_BYTES:
        return f"state {taken.name!r} is {taken.datatype}, only numbers are kept"
    if given.shape and taken.shape and not _may_be(given.shape, taken.shape):
        return f"output {given.name!r} has shape {list(given.shape)}, input {taken.name!r} takes {list(taken.shape)}"
    shape = state.starts_as(taken)
    if taken.shape and len(shape) != len(taken.shape):
        return f"the shape of state {taken.name!r} has {len(shape)} dimensions, the input {len(taken.shape)}"
    if taken.shape and not _may_be(shape, taken.shape):
        return f"the shape of state {taken.name!r} is {list(shape)}, the input takes {list(taken.shape)}"
    if FREE in shape[1:]:
        return f"state {taken.name!r} of shape {list(taken.shape)} needs a declared shape: it is free behind the first"
    return ""


def _may_be(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a tensor can have both shapes."""
    return len(one) == len(other) and all(FREE in (a, b) or a == b for a, b in zip(one, other, strict=True))
