"""What to load and unload, decided from values alone: new before old, whatever the order in which things happen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.model_config import ModelConfig
from edge.reconcile import Standing, reconcile
from edge.repository import StoredModel
from mesh.values import InstanceState, ModelIdentity

STATES: list[InstanceState] = ["LOADING", "BUILDING", "WARMING", "READY", "DRAINING", "FAILED", "QUARANTINED"]


def stored(version: str = "1", digest: str = "a", *, deadline_ms: float = 0.0, rejected: str = "") -> StoredModel:
    identity = ModelIdentity("m", version, digest)
    return StoredModel(identity, Path("m"), ModelConfig(deadline_ms=deadline_ms), rejected)


def test_what_is_there_already_is_left_alone() -> None:
    for state in STATES:
        if state != "DRAINING":
            assert reconcile([stored()], [Standing(stored(), state)]) == ((), ())


def test_what_is_on_its_way_out_is_loaded_anew_and_not_unloaded_twice() -> None:
    assert reconcile([stored()], [Standing(stored(), "DRAINING")]) == ((0,), ())
    assert reconcile([], [Standing(stored(), "DRAINING")]) == ((), ())


def test_what_is_evicted_counts_as_there_and_goes_with_its_files() -> None:
    evicted = Standing(stored(), "DRAINING", evicted=True)
    assert reconcile([stored()], [evicted]) == ((), ())
    assert reconcile([], [evicted]) == ((), (0,))


@pytest.mark.parametrize(
    "new", [stored("2", "b"), stored("1", "b"), stored("1", "a", deadline_ms=5.0), stored("1", "", rejected="bad")]
)
def test_the_old_one_goes_when_the_new_one_is_ready_and_not_before(new: StoredModel) -> None:
    old = Standing(stored(), "READY")
    assert reconcile([new], [old]) == ((0,), ())
    for state in STATES:
        if state != "DRAINING":
            goes = (0,) if state == "READY" else ()
            assert reconcile([new], [old, Standing(new, state)]) == ((), goes)


def test_other_bytes_are_replaced_by_their_own_version_alone() -> None:
    wanted = [stored("1", "new"), stored("2")]
    standing = [Standing(stored("1", "old"), "READY"), Standing(stored("2"), "READY")]
    assert reconcile(wanted, [*standing, Standing(wanted[0], "WARMING")]) == ((), ())
    assert reconcile(wanted, [*standing, Standing(wanted[0], "READY")]) == ((), (0,))


def test_what_does_not_serve_is_dropped_at_once_when_it_is_not_wanted() -> None:
    for state in ("LOADING", "BUILDING", "WARMING", "FAILED", "QUARANTINED"):
        assert reconcile([stored("2")], [Standing(stored("1"), state)]) == ((0,), (0,))


def test_a_model_that_is_gone_goes_whatever_its_state() -> None:
    standing = [Standing(stored(str(number)), state) for number, state in enumerate(STATES, 1) if state != "DRAINING"]
    assert reconcile([], standing) == ((), tuple(range(len(standing))))


models = st.builds(stored, version=st.sampled_from("123"), digest=st.sampled_from("ab"))
standings = st.builds(Standing, models, st.sampled_from(STATES), st.booleans())


@given(st.lists(models, max_size=3, unique_by=lambda m: m.identity.version), st.lists(standings, max_size=5))
def test_something_goes_on_serving_until_something_new_does(wanted: list[StoredModel], have: list[Standing]) -> None:
    plan = reconcile(wanted, have)
    stays = [s for at, s in enumerate(have) if at not in plan.unload]
    if wanted and any(s.state == "READY" for s in have):
        assert any(s.state == "READY" for s in stays)
    assert not any(have[at].leaving for at in plan.unload)
    settled = [Standing(w, "READY") for w in wanted]
    assert reconcile(wanted, settled) == ((), ())
