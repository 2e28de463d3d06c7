"""Sequences stay where they are: from their first answer to their end, for as long as they are used, up to a bound."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.affinity import IDLE_S, MAX_ID_BYTES, MOST, Affinity
from mesh.errors import InvalidRequest

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
SEQUENCE: dict[str, object] = {"sequence_id": 7}
START = SEQUENCE | {"sequence_start": True}
END = SEQUENCE | {"sequence_end": True}


def test_a_sequence_stays_where_it_first_ran() -> None:
    affinity = Affinity()
    assert affinity.node_of(START, "m", 1.0) is None
    affinity.ran(START, "m", "a", 1.0)
    assert affinity.node_of(SEQUENCE, "m", 2.0) == "a"


def test_one_that_moved_stays_where_it_moved_to() -> None:
    affinity = Affinity()
    affinity.ran(START, "m", "a", 1.0)
    affinity.ran(SEQUENCE, "m", "b", 2.0)
    assert affinity.node_of(SEQUENCE, "m", 3.0) == "b"


def test_models_and_ids_are_told_apart() -> None:
    affinity = Affinity()
    affinity.ran(START, "m", "a", 1.0)
    for other in ({"sequence_id": 8}, {"sequence_id": "7"}):
        assert affinity.node_of(other, "m", 1.0) is None
    assert affinity.node_of(SEQUENCE, "n", 1.0) is None


@pytest.mark.parametrize("said", [{}, {"sequence_id": 0}, {"sequence_id": ""}, {"sequence_start": True}])
def test_zero_and_nothing_are_no_sequence(said: dict[str, object]) -> None:
    affinity = Affinity()
    affinity.ran(said, "m", "a", 1.0)
    assert affinity.node_of(said, "m", 1.0) is None


def test_a_start_forgets_the_old_node_though_nothing_answers_it() -> None:
    affinity = Affinity()
    affinity.ran(START, "m", "a", 1.0)
    assert affinity.node_of(START, "m", 2.0) is None
    assert affinity.node_of(SEQUENCE, "m", 2.0) is None


def test_the_last_request_goes_there_too_and_its_answer_ends_it() -> None:
    affinity = Affinity()
    affinity.ran(START, "m", "a", 1.0)
    assert affinity.node_of(END, "m", 2.0) == "a"
    affinity.ran(END, "m", "a", 2.0)
    assert affinity.node_of(SEQUENCE, "m", 2.0) is None


def test_a_sequence_of_one_request_leaves_nothing() -> None:
    affinity = Affinity()
    affinity.ran(START | END, "m", "a", 1.0)
    assert affinity.node_of(SEQUENCE, "m", 1.0) is None


def test_flags_that_are_false_do_nothing() -> None:
    affinity = Affinity()
    said = SEQUENCE | {"sequence_start": False, "sequence_end": False}
    affinity.ran(said, "m", "a", 1.0)
    assert affinity.node_of(said, "m", 1.0) == "a"


def test_idle_for_too_long_is_over_and_use_keeps_it() -> None:
    affinity = Affinity()
    now = 1.0
    affinity.ran(START, "m", "a", now)
    for _ in range(5):
        now += IDLE_S * 0.9
        assert affinity.node_of(SEQUENCE, "m", now) == "a"
        affinity.ran(SEQUENCE, "m", "a", now)
    assert affinity.node_of(SEQUENCE, "m", now + IDLE_S) is None
    assert affinity.node_of(SEQUENCE, "m", now) is None


def test_the_longest_idle_goes_when_there_are_too_many() -> None:
    affinity = Affinity()
    for number in range(1, MOST + 1):
        affinity.ran({"sequence_id": number}, "m", "a", 1.0)
    affinity.ran({"sequence_id": 1}, "m", "a", 1.0)
    affinity.ran({"sequence_id": "new"}, "m", "a", 1.0)
    assert affinity.node_of({"sequence_id": 2}, "m", 1.0) is None
    for kept in (1, 3, MOST, "new"):
        assert affinity.node_of({"sequence_id": kept}, "m", 1.0) == "a"


@pytest.mark.parametrize(
    ("value", "text"), [(True, "neither"), (1.5, "neither"), ("x" * (MAX_ID_BYTES + 1), "bytes"), ("é" * 65, "bytes")]
)
def test_what_is_no_id_is_refused_by_name(value: object, text: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"'sequence_id' .*{text}"):
        Affinity().node_of({"sequence_id": value}, "m", 1.0)


def test_the_longest_id_is_taken() -> None:
    affinity = Affinity()
    said: dict[str, object] = {"sequence_id": "x" * MAX_ID_BYTES}
    affinity.ran(said, "m", "a", 1.0)
    assert affinity.node_of(said, "m", 1.0) == "a"


steps = st.tuples(
    st.sampled_from([1, 2, "1"]), st.booleans(), st.booleans(), st.sampled_from(["a", "b", ""]), st.floats(0.0, 40.0)
)


@property_test
@given(st.lists(steps, max_size=60))
def test_as_a_plain_table_says(history: list[tuple[int | str, bool, bool, str, float]]) -> None:
    """A node of "" is a request that nothing answered."""
    affinity, now = Affinity(), 0.0
    table: dict[int | str, tuple[str, float]] = {}
    for sequence, start, end, node, passed in history:
        now += passed
        said: dict[str, object] = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        known, used = table.get(sequence, ("", 0.0))
        if start or now - used >= IDLE_S:
            table.pop(sequence, None)
            known = ""
        assert affinity.node_of(said, "m", now) == (known or None)
        if node:
            affinity.ran(said, "m", node, now)
            table[sequence] = node, now
            if end:
                del table[sequence]
