"""What a name means, who is ready, where metadata come from; and bytes that differ under one name."""

from __future__ import annotations

import pytest

from mesh.deadline import Deadline
from mesh.errors import (
    DigestMismatch,
    Draining,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    NodeLost,
    NoReadyInstance,
)
from mesh.hop import Context
from mesh.messages import ModelLoad
from mesh.values import ModelMetadata, ModelRef
from tests.builders import DIGEST, OTHER_DIGEST, a_model_load, an_identity
from tests.routing import ME, Routing

OURS = a_model_load(digest=DIGEST)
THEIRS = a_model_load(digest=OTHER_DIGEST)
REJECTED = ModelLoad("resnet", "1", "", "FAILED", reason="truncated")


def context(hops: int = 0) -> Context:
    return Context(Deadline.after_ms(60_000), hops)


async def metadata(here: Routing, hops: int = 0) -> ModelMetadata:
    return await here.inquiry.metadata(here.resolve(), context(hops))


async def test_our_own_model_is_what_the_name_means_here() -> None:
    async with Routing(OURS).running() as here:
        await here.peer("one", THEIRS)
        await here.peer("two", THEIRS)
        assert here.resolve() == OURS.identity
        here.models.waiting_ms = 60_000.0
        assert (await here.infer(here.resolve())).node == ME  # never answered by other bytes


async def test_of_two_digests_the_one_that_most_nodes_hold() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("one", OURS)
        for node in ("two", "three"):
            await here.peer(node, THEIRS)
        assert here.resolve().digest == OTHER_DIGEST
        assert {(await here.infer(here.resolve())).node for _ in range(10)} <= {"two", "three"}
        assert here.resolve(digest=DIGEST).digest == DIGEST  # the first door has decided


async def test_the_highest_version_is_the_default_and_a_missing_one_is_named() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("one", a_model_load(version="2"), a_model_load(version="10"))
        assert here.resolve().version == "10"
        assert here.resolve(version="2").version == "2"
        with pytest.raises(ModelNotFound, match=r"^Request for unknown model: version '3' of model 'resnet' is not"):
            here.resolve(version="3")
        with pytest.raises(ModelNotFound, match=r"^Request for unknown model: model 'nope' is not found"):
            here.resolve("nope")
        for wrong in ("nine", "0", "01", "-1"):
            with pytest.raises(InvalidRequest, match=rf"^failed to get model version .* version string '{wrong}'"):
                here.resolve(version=wrong)


async def test_what_a_name_means_follows_those_that_hold_it() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("one", OURS)
        assert here.resolve() == OURS.identity
        newer = a_model_load(version="2")
        for state, meant in (("ready", newer), ("draining", OURS), ("ready", newer), ("left", OURS)):
            here.watcher.heard(here.report("two", newer, state=state))
            assert here.resolve() == meant.identity, state
        for load, meant in ((a_model_load(version="2", state="LOADING"), OURS), (newer, newer), (THEIRS, OURS)):
            here.watcher.heard(here.report("three", load))
            assert here.resolve() == meant.identity, load
        here.watcher.heard(here.report("four", THEIRS))
        assert here.resolve() == THEIRS.identity
        assert here.resolve(version="1") == THEIRS.identity


@pytest.mark.parametrize("broken", [REJECTED, a_model_load(digest=OTHER_DIGEST, state="FAILED")])
async def test_a_model_that_is_broken_here_is_served_by_who_has_it(broken: ModelLoad) -> None:
    async with Routing(broken).running() as here:
        await here.peer("peer", OURS)
        assert here.resolve() == OURS.identity
        assert (await here.infer(here.resolve())).node == "peer"
        assert here.view.ready(ModelRef("resnet"))
        assert (await metadata(here)).name == "resnet"


async def test_a_model_that_is_broken_everywhere_says_why() -> None:
    async with Routing(REJECTED).running() as here:
        with pytest.raises(ModelNotReady, match="FAILED on this node: truncated"):
            await here.infer(here.resolve())
        assert not here.view.ready(ModelRef("resnet"))


@pytest.mark.parametrize("state", ["READY", "FAILED"])
async def test_other_bytes_are_refused_when_another_door_asks(state: str) -> None:
    async with Routing(a_model_load(digest=OTHER_DIGEST, state=state)).running() as here:  # type: ignore[arg-type]
        await here.peer("peer", OURS)
        with pytest.raises(DigestMismatch, match=f"node {ME} holds other bytes as resnet/1"):
            await here.infer(an_identity(digest=DIGEST), hops=1)
        assert here.lan.asked == []


async def test_a_draining_node_refuses_other_doors_and_passes_its_own_callers_on() -> None:
    async with Routing(OURS).running() as here:
        here.models.draining = True
        assert (await here.infer()).node == ME  # the last who can
        await here.peer("peer", OURS)
        assert (await here.infer()).node == "peer"
        with pytest.raises(Draining):
            await here.infer(hops=1)


async def test_a_draining_peer_gets_nothing_new_and_an_unknown_model_is_still_known_there() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("peer", OURS, state="draining")
        with pytest.raises(NoReadyInstance, match="on node peer it is draining"):
            await here.infer()


async def test_metadata_come_from_here_else_from_a_holder() -> None:
    async with Routing(OURS).running() as here:
        await here.peer("peer", OURS)
        await metadata(here)
        assert here.lan.asked == []
        here.models.loads = []
        await metadata(here)
        assert here.lan.asked == ["peer"]


async def test_metadata_are_asked_of_the_next_holder_when_one_fails() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.peer(node, OURS)
        here.lan.outcomes["one"] = NodeLost("gone")
        await metadata(here)
        assert here.lan.asked[-1] == "two"
        here.lan.outcomes["two"] = NodeLost("gone too")
        with pytest.raises(NodeLost):
            await metadata(here)


async def test_metadata_are_passed_on_once_only() -> None:
    async with Routing().running() as here:
        await here.peer("peer", OURS)
        with pytest.raises(ModelNotReady):
            await metadata(here, hops=1)
        assert here.lan.asked == []


async def test_facts_are_the_holders() -> None:
    declared = ModelLoad("resnet", "1", DIGEST, "READY", deadline_ms=250.0, stateful=True)
    async with Routing(declared).running() as here:
        facts = here.view.facts(here.resolve())
        assert facts is not None
        assert (facts.deadline_ms, facts.stateful) == (250.0, True)
    async with Routing().running() as here:
        assert here.view.facts(an_identity()) is None
        await here.peer("peer", declared)
        facts = here.view.facts(here.resolve())
        assert facts is not None
        assert (facts.deadline_ms, facts.decoupled) == (250.0, False)
