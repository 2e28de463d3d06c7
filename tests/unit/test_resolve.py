"""Which model is meant by a name: this box's own, the highest version, the bytes that most nodes hold."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.balancer import resolve
from mesh.messages import ModelLoad
from mesh.values import ModelRef
from tests.builders import DIGEST, OTHER_DIGEST, a_model_load, an_identity

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])


def held(*loads: ModelLoad) -> list[tuple[str, ModelLoad]]:
    return [(f"n{i}", load) for i, load in enumerate(loads)]


def test_a_model_nobody_holds_is_not_resolved() -> None:
    assert resolve(ModelRef("resnet"), held(a_model_load("bert")), None) is None
    assert resolve(ModelRef("resnet", "3"), held(a_model_load(version="1")), an_identity(version="2")) is None


def test_this_box_answers_with_its_own_model_whatever_neighbours_hold() -> None:
    others = held(a_model_load(version="9"), *[a_model_load(digest=OTHER_DIGEST)] * 3)
    assert resolve(ModelRef("resnet"), others, an_identity()) == an_identity()
    assert resolve(ModelRef("resnet", "1"), others, an_identity()) == an_identity()
    assert resolve(ModelRef("resnet", "9"), others, an_identity()) == an_identity(version="9")


def test_the_default_version_is_the_highest_number() -> None:
    versions = ["2", "10", "009", "beta", "9" * 5000]
    loads = [a_model_load(version=version) for version in versions]
    assert resolve(ModelRef("resnet"), held(*loads), None) == an_identity(version="9" * 5000)
    assert resolve(ModelRef("resnet"), held(*loads[:4]), None) == an_identity(version="10")
    assert resolve(ModelRef("resnet"), held(loads[3]), None) == an_identity(version="beta")


def test_of_two_digests_the_one_most_nodes_hold() -> None:
    one, other = a_model_load(digest=DIGEST), a_model_load(digest=OTHER_DIGEST)
    assert resolve(ModelRef("resnet"), held(one, other, other), None) == an_identity(digest=OTHER_DIGEST)
    assert resolve(ModelRef("resnet"), held(other, one), None) == an_identity(digest=DIGEST)
    assert resolve(ModelRef("resnet"), [("n1", other), ("n1", other), ("n2", one)], None) == an_identity()


def test_a_version_still_loading_is_not_the_default_while_another_is_ready() -> None:
    loading = a_model_load(version="2", state="LOADING")
    assert resolve(ModelRef("resnet"), held(loading, a_model_load()), None) == an_identity()
    assert resolve(ModelRef("resnet"), held(loading), None) == an_identity(version="2")


@property_test
@given(
    st.lists(
        st.builds(
            a_model_load,
            version=st.sampled_from(["1", "2", "10", "x"]),
            digest=st.sampled_from([DIGEST, OTHER_DIGEST]),
            state=st.sampled_from(["READY", "LOADING"]),
        ),
        max_size=8,
    ),
    st.integers(0, 2**32),
)
def test_resolving_depends_on_no_order(loads: list[ModelLoad], seed: int) -> None:
    views = held(*loads)
    shuffled = list(views)
    Random(seed).shuffle(shuffled)
    found = resolve(ModelRef("resnet"), views, None)
    assert found == resolve(ModelRef("resnet"), shuffled, None)
    assert (found is None) == (not loads)
    if found is not None:
        assert found in [load.identity for load in loads]
