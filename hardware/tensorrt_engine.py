"""What a deserialized TensorRT engine takes and gives: its tensors, its profiles, its memory, read once.

Not here: where the plan comes from (``engine_cache``), contexts and runs (``tensorrt_context``, ``tensorrt_instance``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from hardware.backend import ITEM_BYTES, RawTensor, Signature, TensorInfo
from hardware.errors import InvalidInput, ModelRefused, RunFailed

DATATYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}
"""OIP datatype of a TensorRT one; FP8, FP4, E8M0 and INT4 have none."""

_SHAPE_DTYPES: dict[str, np.dtype[Any]] = {
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
    "FP32": np.dtype("<f4"),
}

Limits = tuple[tuple[int, ...], tuple[int, ...]]
"""Smallest and largest, dimension by dimension or value by value."""


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """One input or output; ``on_host`` where TensorRT reads or writes it on the CPU, ``of_shapes`` where its values
    decide shapes."""

    info: TensorInfo
    on_host: bool
    of_shapes: bool

    @property
    def name(self) -> str:
        return self.info.name

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) * ITEM_BYTES[self.info.datatype]


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """The shapes, and for shape tensors the values, that one optimisation profile takes."""

    index: int
    shapes: dict[str, Limits]
    values: dict[str, Limits]

    @property
    def volume(self) -> int:
        return sum(prod(largest) for _, largest in self.shapes.values())


class Engine:
    """Read-only once made, so that threads may share it. Owns the engine and the runtime it came from."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        self.trt = trt
        self._runtime = runtime  # must outlive the engine
        self.engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(self._tensor(n) for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(self._tensor(n) for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        self.signature = Signature(tuple(t.info for t in self.inputs), tuple(t.info for t in self.outputs))
        profiles = [self._profile(index) for index in range(max(1, engine.num_optimization_profiles))]
        self.profiles = tuple(sorted(profiles, key=lambda profile: profile.volume))  # the narrowest first
        self.activation_bytes = int(engine.device_memory_size_v2)
        self.has_shape_inputs = any(tensor.of_shapes for tensor in self.inputs)

    @property
    def batch_limit(self) -> int | None:
        """Most rows that some profile takes; None where no input has a free first dimension."""
        batched = [t.name for t in self.inputs if t.info.shape[:1] == (-1,) and not t.of_shapes]
        if not batched:
            return None
        return max(min(profile.shapes[name][1][0] for name in batched) for profile in self.profiles)

    def profile_for(self, inputs: Sequence[RawTensor]) -> int:
        """Index of the narrowest profile that takes these inputs; raises ``InvalidInput`` that names what does not fit.

        The inputs must have been checked against the signature.
        """
        given = {tensor.name: tensor for tensor in inputs}
        shapes = {name: tensor.shape for name, tensor in given.items()}
        values = {t.name: _integers(given[t.name]) for t in self.inputs if t.of_shapes} if self.has_shape_inputs else {}
        for profile in self.profiles:
            if _all_inside(shapes, profile.shapes) and _all_inside(values, profile.values):
                return profile.index
        raise InvalidInput(self._misfit(shapes, values))

    def _misfit(self, shapes: dict[str, tuple[int, ...]], values: dict[str, tuple[int, ...]]) -> str:
        for word, found, every in (
            ("shape", shapes, [profile.shapes for profile in self.profiles]),
            ("values", values, [profile.values for profile in self.profiles]),
        ):
            for name, given in found.items():
                ranges = [limits[name] for limits in every if name in limits]
                if ranges and not any(_inside(given, limits) for limits in ranges):
                    taken = " or ".join(dict.fromkeys(f"{list(low)} to {list(high)}" for low, high in ranges))
                    return f"input '{name}' has {word} {_short(given)}; the engine takes {taken}"
        return f"no profile of the engine takes these shapes together: {shapes}"

    def _tensor(self, name: str) -> EngineTensor:
        engine, trt = self.engine, self.trt
        type_name = engine.get_tensor_dtype(name).name
        if type_name not in DATATYPES:
            raise ModelRefused(f"tensor '{name}' is {type_name}, which the protocol has no datatype for")
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise ModelRefused(f"tensor '{name}' does not lie row by row in memory; build the engine without formats")
        return EngineTensor(
            info=TensorInfo(name, DATATYPES[type_name], dims(engine.get_tensor_shape(name))),
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
            of_shapes=bool(engine.is_shape_inference_io(name)),
        )

    def _profile(self, index: int) -> EngineProfile:
        shapes: dict[str, Limits] = {}
        values: dict[str, Limits] = {}
        for tensor in self.inputs:
            shapes[tensor.name] = (tensor.info.shape, tensor.info.shape)
            if -1 in tensor.info.shape:
                smallest, _, largest = self.engine.get_tensor_profile_shape(tensor.name, index)
                shapes[tensor.name] = (dims(smallest), dims(largest))
            if tensor.of_shapes and (limits := self._profile_values(tensor.name, index)) is not None:
                values[tensor.name] = limits
        return EngineProfile(index, shapes, values)

    def _profile_values(self, name: str, index: int) -> Limits | None:
        try:
            found = self.engine.get_tensor_profile_values(index, name)  # the order of the bindings, 10.3 to 11.4
        except TypeError:
            found = self.engine.get_tensor_profile_values(name, index)  # the order of their documentation
        return (tuple(found[0]), tuple(found[2])) if found else None


def dims(shape: Any) -> tuple[int, ...]:
    """TensorRT's ``Dims`` as a tuple. Raises ``RunFailed`` for a rank of -1, which is how it reports an error."""
    try:
        return tuple(int(dim) for dim in shape)
    except ValueError:
        raise RunFailed("TensorRT does not know the rank of a tensor") from None


def _integers(tensor: RawTensor) -> tuple[int, ...]:
    dtype = _SHAPE_DTYPES.get(tensor.datatype)
    return () if dtype is None else tuple(int(value) for value in np.frombuffer(tensor.whole, dtype))


def _all_inside(found: dict[str, tuple[int, ...]], limits: dict[str, Limits]) -> bool:
    return all(_inside(found[name], limit) for name, limit in limits.items())


def _inside(given: tuple[int, ...], limits: Limits) -> bool:
    smallest, largest = limits
    return len(given) == len(smallest) and all(
        low <= value <= high for low, value, high in zip(smallest, given, largest, strict=True)
    )


def _short(values: tuple[int, ...]) -> str:
    return str(list(values)) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, ...]"
