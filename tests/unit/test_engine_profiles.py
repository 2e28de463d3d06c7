"""Profiles against a model's inputs: what fits passes, what does not is named before TensorRT only says None."""

from __future__ import annotations

import pytest

from hardware.backend import Profile, ShapeRange
from hardware.engine_profiles import EngineInput, check_profiles
from hardware.errors import EngineNotBuilt

X = EngineInput("x", (-1, 3, -1), decides_shapes=False)
FIXED = EngineInput("scale", (1,), decides_shapes=False)
GOOD = ShapeRange("x", (1, 3, 8), (4, 3, 16), (8, 3, 32))


def test_each_profile_covers_the_free_inputs_in_the_models_order() -> None:
    other = EngineInput("a", (-1,), decides_shapes=False)
    one = ShapeRange("a", (1,), (1,), (1,))
    assert check_profiles([X, FIXED, other], [(one, GOOD), (GOOD, one)]) == [(GOOD, one), (GOOD, one)]


def test_a_range_of_a_fixed_input_is_checked_and_left_out() -> None:
    assert check_profiles([X, FIXED], [(GOOD, ShapeRange("scale", (1,), (1,), (1,)))]) == [(GOOD,)]
    assert check_profiles([FIXED], [(ShapeRange("scale", (1,), (1,), (1,)),)]) == []
    assert check_profiles([FIXED], []) == []


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ([], r"input 'x' \[-1, 3, -1\] has a free dimension and no profile; declare in model.toml: \[\[profiles\]\]"),
        ([()], "input 'x' .* is missing in profile 0"),
        ([(GOOD,), (ShapeRange("y", (1,), (1,), (1,)), GOOD)], "profile 1 declares 'y', which is no input"),
        ([(GOOD, GOOD)], "profile 0 declares an input twice"),
        ([(ShapeRange("x", (1, 3), (4, 3), (8, 3)),)], r"has 2 dimensions, the model has \[-1, 3, -1\]"),
        ([(ShapeRange("x", (4, 3, 8), (1, 3, 8), (8, 3, 8)),)], "min <= opt <= max in dimension 0, not 4, 1, 8"),
        ([(ShapeRange("x", (1, 3, 8), (4, 3, 8), (8, 3, 4)),)], "min <= opt <= max in dimension 2, not 8, 8, 4"),
        ([(ShapeRange("x", (-1, 3, 8), (4, 3, 8), (8, 3, 8)),)], "dimension 0, not -1"),
        ([(ShapeRange("x", (1, 3, 8), (4, 3, 8), (2**40, 3, 8)),)], "dimension 0"),
        ([(ShapeRange("x", (1, 2, 8), (4, 3, 8), (8, 4, 8)),)], "cannot vary dimension 1, which is 3 in the model"),
    ],
)
def test_what_does_not_fit_is_named(profiles: list[Profile], said: str) -> None:
    with pytest.raises(EngineNotBuilt, match=said):
        check_profiles([X, FIXED], profiles)


def test_an_input_whose_values_decide_shapes_is_named() -> None:
    with pytest.raises(EngineNotBuilt, match="the values of input 'n' decide shapes"):
        check_profiles([EngineInput("n", (2,), decides_shapes=True)], [])
