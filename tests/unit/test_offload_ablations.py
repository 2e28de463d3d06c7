"""Each ablation runs, and takes away what it says. Not here: what the parts are worth (the benchmark)."""

from __future__ import annotations

import functools
import pickle
from dataclasses import replace

import pytest

from tests.bench.offload.ablations import POLICIES
from tests.bench.offload.environment import Environment
from tests.bench.offload.lineup import factory, is_baseline, is_ours
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.world import Mesh, Outcome


@functools.cache
def outcomes(name: str) -> list[Outcome | None]:
    return Mesh(Environment(replace(SCENARIOS["S9"], seconds=2.0), 1), factory(name)).run().outcomes


@pytest.mark.parametrize("name", POLICIES)
def test_every_part_can_be_taken_away(name: str) -> None:
    pickle.loads(pickle.dumps(factory(name)))
    assert is_ours(name)
    assert not is_baseline(name)
    assert None not in outcomes(name)
    assert outcomes(name).count("good") > len(outcomes(name)) / 2


def test_a_part_that_is_taken_away_changes_what_happens() -> None:
    same = [name for name in POLICIES if name != "ours" and outcomes(name) == outcomes("ours")]
    assert same == ["ours-no-errors"], "nothing fails in that scenario"
