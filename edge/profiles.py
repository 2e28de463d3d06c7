"""The optimisation profiles an engine is built for where ``model.toml`` declares none: what the warm-up runs.

Pure. Not here: building (``engines``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge.model_config import ModelConfig
from hardware.backend import Profile, ShapeRange, TensorInfo

ROWS = 8
"""Most rows of an engine for a model whose batching is left to be found out."""

Shape = tuple[int, ...]


def engine_profiles(
    inputs: Sequence[TensorInfo], config: ModelConfig, warmed: Mapping[str, Shape] | None
) -> tuple[Profile, ...] | None:
    """The declared profiles, or one that spans the first dimension of the warm-up's shapes.

    ``warmed`` are shapes that ran on another backend; without them and without a declaration the free dimensions behind
    the first are anybody's guess: None.
    """
    if config.profiles:
        return config.engine_profiles()
    ranges = []
    for info in inputs:
        if -1 not in info.shape:
            continue
        shape = _shape(info, config, warmed)
        if shape is None:
            return None
        ranges.append(_range(info, shape, config.batching.max_rows or ROWS))
    return (tuple(ranges),) if ranges else ()


def _shape(info: TensorInfo, config: ModelConfig, warmed: Mapping[str, Shape] | None) -> Shape | None:
    declared = config.warmup.get(info.name)
    if declared is not None:
        return declared.shape
    if warmed is not None and info.name in warmed:
        return warmed[info.name]
    return (1, *info.shape[1:]) if -1 not in info.shape[1:] else None


def _range(info: TensorInfo, shape: Shape, rows: int) -> ShapeRange:
    """A dimension of no elements in a warm-up cannot be a profile's."""
    shape = tuple(max(dim, 1) for dim in shape)
    if info.shape[0] != -1:
        return ShapeRange(info.name, shape, shape, shape)
    most = max(rows, shape[0])
    behind = shape[1:]
    return ShapeRange(info.name, (1, *behind), (max(most // 2, shape[0]), *behind), (most, *behind))
