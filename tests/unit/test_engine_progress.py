"""One share out of nested phases, for sequences of phases as TensorRT was seen to tell them.

Not here: who is told (``integration/test_engine_build``).
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hardware.engine_progress import Progress


def test_a_phase_inside_another_lies_within_one_of_its_steps() -> None:
    progress = Progress()
    progress.start("Building engine", None, 4)
    progress.step("Building engine", 0)
    assert progress.share == 0.25
    progress.start("Timing tactics", "Building engine", 10)
    assert progress.phase == "Timing tactics"
    progress.step("Timing tactics", 4)
    assert progress.share == 0.25 + 0.25 * 0.5
    progress.start("Timing graph nodes", "Timing tactics", 2)
    progress.step("Timing graph nodes", 0)
    assert progress.share == 0.25 + 0.25 * 0.55
    progress.finish("Timing graph nodes")
    progress.finish("Timing tactics")
    progress.step("Building engine", 1)
    assert progress.share == 0.5
    progress.finish("Building engine")
    assert progress.share == 1.0


def test_a_second_tree_of_phases_does_not_set_it_back() -> None:
    progress = Progress()
    progress.start("first", None, 2)
    progress.step("first", 0)
    progress.finish("first")
    progress.start("second", None, 2)
    progress.step("second", 0)
    assert progress.share == 1.0


_CALLS = st.lists(
    st.one_of(
        st.tuples(
            st.just("start"), st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", None]), st.integers(-1, 5)
        ),
        st.tuples(st.just("step"), st.sampled_from("abcde"), st.integers(-2, 9)),
        st.tuples(st.just("finish"), st.sampled_from("abcde")),
    )
)


@given(_CALLS)
def test_whatever_is_told_it_only_grows_and_stays_a_share(calls: list[tuple[object, ...]]) -> None:
    progress, last = Progress(), 0.0
    for name, *arguments in calls:
        getattr(progress, str(name))(*arguments)
        assert last <= progress.share <= 1.0
        last = progress.share
