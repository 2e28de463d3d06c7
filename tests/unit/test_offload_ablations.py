"""Each ablation runs, and takes away what it says. Not here: what the parts are worth (the benchmark)."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from tests.bench.offload.ablations import POLICIES
from tests.bench.offload.environment import Environment
from tests.bench.offload.lineup import factory, is_baseline, is_ours
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.world import Mesh


@pytest.mark.parametrize("name", POLICIES)
def test_every_part_can_be_taken_away(name: str) -> None:
    make = pickle.loads(pickle.dumps(factory(name)))
    assert is_ours(name)
    assert not is_baseline(name)
    mesh = Mesh(Environment(replace(SCENARIOS["S9"], seconds=3.0), 1), make).run()
    assert None not in mesh.outcomes
    assert mesh.outcomes.count("good") > len(mesh.outcomes) / 2


def run(name: str) -> Mesh:
    return Mesh(Environment(replace(SCENARIOS["S9"], seconds=3.0), 1), factory(name)).run()


def test_a_part_that_is_taken_away_changes_what_happens() -> None:
    whole = run("ours").outcomes
    same = [name for name in POLICIES if name != "ours" and run(name).outcomes == whole]
    assert same == ["ours-no-errors"], "nothing fails in that scenario"
