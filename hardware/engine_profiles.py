"""Whether declared profiles fit a model's inputs, said in words a person can act on before TensorRT says None.

Pure. Not here: where profiles come from (the agent's ``model.toml`` and warm-up shapes), TensorRT (``engine_plan``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hardware.backend import MAX_DIMENSION, Profile, ShapeRange
from hardware.errors import EngineNotBuilt


@dataclass(frozen=True, slots=True)
class EngineInput:
    name: str
    shape: tuple[int, ...]
    """-1 is a free dimension."""
    decides_shapes: bool
    """Its values, not its shape, decide other shapes: TensorRT wants ranges of values for it."""

    @property
    def is_free(self) -> bool:
        return -1 in self.shape


def check_profiles(inputs: Sequence[EngineInput], profiles: Sequence[Profile]) -> list[Profile]:
    """One range for each free input in each profile; ranges of fixed inputs are checked and left out.

    Raises ``EngineNotBuilt`` naming the input, the dimension and what to declare.
    """
    for known in inputs:
        if known.decides_shapes:
            raise EngineNotBuilt(
                f"the values of input '{known.name}' decide shapes, which no profile can declare here; "
                "run the model on ONNX Runtime"
            )
    free = [known for known in inputs if known.is_free]
    if not free:
        for number, profile in enumerate(profiles):
            _check_profile(inputs, number, profile)
        return []
    if not profiles:
        raise EngineNotBuilt(_undeclared(free[0], "has a free dimension and no profile"))
    return [_check_profile(inputs, number, profile) for number, profile in enumerate(profiles)]


def _check_profile(inputs: Sequence[EngineInput], number: int, profile: Profile) -> Profile:
    ranges = {shape_range.name: shape_range for shape_range in profile}
    if len(ranges) != len(profile):
        raise EngineNotBuilt(f"profile {number} declares an input twice")
    unknown = ranges.keys() - {known.name for known in inputs}
    if unknown:
        raise EngineNotBuilt(f"profile {number} declares '{min(unknown)}', which is no input of the model")
    for known in inputs:
        if known.name in ranges:
            _check_range(known, number, ranges[known.name])
        elif known.is_free:
            raise EngineNotBuilt(_undeclared(known, f"has a free dimension and is missing in profile {number}"))
    return tuple(ranges[known.name] for known in inputs if known.is_free)


def _check_range(known: EngineInput, number: int, declared: ShapeRange) -> None:
    where = f"profile {number} of input '{known.name}'"
    for shape in (declared.minimum, declared.optimum, declared.maximum):
        if len(shape) != len(known.shape):
            raise EngineNotBuilt(f"{where} has {len(shape)} dimensions, the model has {list(known.shape)}")
    dims = zip(known.shape, declared.minimum, declared.optimum, declared.maximum, strict=True)
    for at, (fixed, low, best, high) in enumerate(dims):
        if not 0 <= low <= best <= high <= MAX_DIMENSION:
            raise EngineNotBuilt(f"{where} needs 0 <= min <= opt <= max in dimension {at}, not {low}, {best}, {high}")
        if fixed != -1 and not low == high == fixed:
            raise EngineNotBuilt(f"{where} cannot vary dimension {at}, which is {fixed} in the model")


def _undeclared(known: EngineInput, what: str) -> str:
    example = [1 if dim == -1 else dim for dim in known.shape]
    return (
        f"input '{known.name}' {list(known.shape)} {what}; declare in model.toml: [[profiles]] "
        f"{known.name} = {{ min = {example}, opt = {example}, max = {example} }} with the sizes you use"
    )
