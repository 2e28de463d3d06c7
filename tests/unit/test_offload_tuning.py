"""Tuning of the offload bench: equal budgets from the published point on, and nothing kept of another version.

Not here: the policies' formulas (``test_offload_policies``).
"""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bench.offload import lineup, policies, tuning

PLAIN = (int, float, str, tuple)


@pytest.mark.parametrize("name", list(tuning.GRIDS))
def test_tuning_begins_at_the_published_point_and_keeps_the_budget(name: str) -> None:
    points = tuning.grid(name)
    assert len(points) <= tuning.BUDGET
    assert state(lineup.factory(name, published=True)()) == state(lineup.with_parameters(name, points[0]))
    chosen = policies.tuned().get(name)
    assert not chosen or chosen in points


def state(policy: Any) -> dict[str, object]:
    """What it was made with: plain values and dials."""
    return {key: value for key, value in vars(policy).items() if isinstance(value, PLAIN) or is_dataclass(value)}


def test_a_tuned_point_is_told_with_the_published_one(tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    given = ["--policy", "gmsr-like", "--scenario", "S1", "--seeds", "1", "--seconds", "2", "--jobs", "1"]
    assert tuning.main([*given, "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    chosen = document["policies"]["gmsr-like"]
    assert document["seeds"] == [tuning.FIRST_SEED, tuning.FIRST_SEED]
    assert chosen["points"] == len(tuning.grid("gmsr-like"))
    assert chosen["parameters"] in tuning.grid("gmsr-like")
    assert chosen["attainment"] >= chosen["published"]["attainment"]


def test_tuning_drops_what_was_chosen_on_another_version(tmp_path: Path) -> None:
    path, on = tmp_path / "tuned.json", {"version": tuning.fingerprint(), "budget": tuning.BUDGET}
    assert tuning.kept(path, on) == {}
    path.write_text(json.dumps({**on, "policies": {"c3": {}}}))
    assert tuning.kept(path, on) == {"c3": {}}
    assert tuning.kept(path, {**on, "version": "another"}) == {}


def test_tuned_parameters_are_given_to_the_policies_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    assert policies.tuned(path) == {}
    path.write_text('{"policies": {"peak-ewma": {"parameters": {"tau_s": 3.0}}}}')
    tuned = policies.tuned(path)
    assert tuned == {"peak-ewma": {"tau_s": 3.0}}
    assert vars(policies.make("peak-ewma", tuned["peak-ewma"])) != vars(policies.make("peak-ewma"))
