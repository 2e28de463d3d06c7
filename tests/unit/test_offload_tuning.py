"""Tuning of the offload bench: equal budgets from the published point on, and nothing kept of another version.

Not here: the policies' formulas (``test_offload_policies``).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.offload import policies, tuning
from tests.bench.offload.proposed_estimate import Dials
from tests.bench.offload.proposed_policy import ABLATIONS


@pytest.mark.parametrize("name", list(tuning.GRIDS))
def test_tuning_begins_at_the_published_point_and_keeps_the_budget(name: str) -> None:
    points = tuning.grid(name)
    assert len(points) <= tuning.BUDGET
    assert state(policies.make(name)) == state(policies.make(name, points[0]))
    chosen = policies.tuned().get(name)
    assert not chosen or chosen in points


def state(policy: Any) -> dict[str, object]:
    return {key: value for key, value in vars(policy).items() if isinstance(value, (int, float, str, tuple, Dials))}


def test_tuning_drops_what_was_chosen_on_another_version(tmp_path: Path) -> None:
    path, on = tmp_path / "tuned.json", {"version": tuning.fingerprint(), "budget": tuning.BUDGET}
    assert tuning.kept(path, on) == {}
    path.write_text(json.dumps({**on, "policies": {"c3": {}}}))
    assert tuning.kept(path, on) == {"c3": {}}
    assert tuning.kept(path, {**on, "version": "another"}) == {}


def test_an_ablation_keeps_its_own_switch_when_tuned(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text('{"policies": {"proposed": {"parameters": {"explore": 0.0, "z": 2.0, "gamma": 0.2}}}}')
    tuned = policies.tuned(path)
    assert tuned["proposed-fastest"] == {"explore": 0.0, "z": 2.0}
    assert tuned["proposed-no-edf"] == {"explore": 0.0, "z": 2.0, "gamma": 0.2}
    assert vars(policies.make("proposed-fastest", tuned["proposed-fastest"]))["dials"] == replace(
        ABLATIONS["proposed-fastest"], explore=0.0, z=2.0
    )
