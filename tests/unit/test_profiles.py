"""Profiles of engines that nobody declared: what the warm-up runs, along a batch of any size."""

from __future__ import annotations

from edge.model_config import BatchingConfig, ModelConfig, ProfileRange, WarmupInput
from edge.profiles import ROWS, engine_profiles
from hardware.backend import ShapeRange, TensorInfo

IMAGE = TensorInfo("X", "FP32", (-1, 3, 224, 224))
FIXED = TensorInfo("F", "FP32", (1, 16))
FREE = TensorInfo("T", "INT64", (-1, -1))


def test_a_model_without_free_dimensions_needs_none() -> None:
    assert engine_profiles([FIXED], ModelConfig(), None) == ()


def test_a_free_first_dimension_is_a_batch() -> None:
    (profile,) = engine_profiles([IMAGE, FIXED], ModelConfig(), None) or ()
    assert profile == (ShapeRange("X", (1, 3, 224, 224), (ROWS // 2, 3, 224, 224), (ROWS, 3, 224, 224)),)
    (profile,) = engine_profiles([IMAGE], ModelConfig(batching=BatchingConfig(max_rows=32)), None) or ()
    assert profile[0].maximum == (32, 3, 224, 224)
    (profile,) = engine_profiles([IMAGE], ModelConfig(batching=BatchingConfig(max_rows=1)), None) or ()
    assert profile == (ShapeRange("X", (1, 3, 224, 224), (1, 3, 224, 224), (1, 3, 224, 224)),)


def test_other_free_dimensions_are_those_of_the_warm_up() -> None:
    assert engine_profiles([FREE], ModelConfig(), None) is None
    declared = ModelConfig(warmup={"T": WarmupInput(shape=(1, 128))})
    (profile,) = engine_profiles([FREE], declared, None) or ()
    assert profile == (ShapeRange("T", (1, 128), (4, 128), (8, 128)),)
    (profile,) = engine_profiles([FREE], ModelConfig(), {"T": (1, 32)}) or ()
    assert profile[0].maximum == (8, 32)


def test_a_warm_up_of_more_rows_widens_the_batch() -> None:
    declared = ModelConfig(warmup={"X": WarmupInput(shape=(16, 3, 224, 224))})
    (profile,) = engine_profiles([IMAGE], declared, None) or ()
    assert profile == (ShapeRange("X", (1, 3, 224, 224), (16, 3, 224, 224), (16, 3, 224, 224)),)


def test_what_is_declared_is_taken_as_it_is() -> None:
    wanted = ProfileRange(minimum=(1, 1), optimum=(2, 64), maximum=(4, 512))
    config = ModelConfig(profiles=({"T": wanted},), batching=BatchingConfig(max_rows=32))
    assert engine_profiles([FREE], config, None) == ((ShapeRange("T", (1, 1), (2, 64), (4, 512)),),)
