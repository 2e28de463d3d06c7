"""Where a request may run: pins, sequences, this very node, and what is refused because it would be late everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, get_args

import msgspec
import pytest

from mesh.balancer import Decision
from mesh.errors import InstanceLost, InvalidRequest, NoReadyInstance, Overloaded
from mesh.estimator import Ask
from mesh.outlook import Outlook
from mesh.rules import RULES, Ours
from mesh.settings import RouterSettings
from tests.builders import a_model_load, an_identity
from tests.fakes import until
from tests.nats import soon
from tests.routing import ME, Routing

CLOUD = {"tier": "cloud", "site": "cloud", "region": "north"}


class Counting(Ours):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def choose(self, ask: Ask, outlook: Outlook, now: float, rng: Random, without: Sequence[int]) -> Decision:
        self.asked += 1
        return super().choose(ask, outlook, now, rng, without)


# Pins


async def everywhere(here: Routing) -> None:
    """Nodes of this site, of another one in the region, of one elsewhere, and of the cloud."""
    await here.on_bus("near", site="shop", region="north")
    await here.on_bus("next", site="mall", region="north")
    await here.on_bus("far", site="port", region="south")
    await here.on_bus("cloud", **CLOUD)


@pytest.mark.parametrize(
    ("parameters", "nodes"),
    [
        ({"mesh_node": "far"}, {"far"}),
        ({"mesh_site": "mall"}, {"next"}),
        ({"mesh_tier": "cloud"}, {"cloud"}),
        ({"mesh_stay": "node"}, {ME}),
        ({"mesh_stay": "site"}, {ME, "near"}),
        ({"mesh_stay": "region"}, {ME, "near", "next", "cloud"}),
        ({"mesh_stay": "region", "mesh_tier": "cloud"}, {"cloud"}),
        ({"mesh_stay": "site", "mesh_tier": "cloud"}, set()),
    ],
    ids=str,
)
async def test_a_pinned_request_runs_only_where_it_may(parameters: dict[str, Any], nodes: set[str]) -> None:
    """Every place refuses, so that all that may be asked are asked."""
    asked = set()
    async with Routing(a_model_load()).running() as here:
        await everywhere(here)
        for node in (ME, "near", "next", "far", "cloud"):
            here.models.waiting_ms = 0.0 if node == ME else 40_000.0
            try:
                asked.add((await here.infer(**parameters)).node)
            except NoReadyInstance:
                assert not nodes
            here.wire.outcomes.update(dict.fromkeys(asked, InstanceLost("it crashed")))
            here.models.outcome = InstanceLost("it crashed") if ME in asked else None
            if asked == nodes:
                break
        assert asked == nodes
        with pytest.raises((InstanceLost, NoReadyInstance)):
            await here.infer(**parameters)
        assert {*here.wire.asked, *here.lan.asked} <= nodes


async def test_a_request_pinned_to_its_site_goes_to_no_cloud_by_the_second_hop_either() -> None:
    async with Routing().running() as here:
        await here.on_bus("cloud", **CLOUD)
        with pytest.raises(NoReadyInstance, match="it may not go to those that hold it"):
            await here.infer(hops=1, visited=("first",), mesh_stay="site")
        assert here.wire.asked == []
        assert (await here.infer(hops=1, visited=("first",))).node == "cloud"
        await here.on_bus("near")
        assert (await here.infer(hops=1, visited=("first",), mesh_stay="site")).node == "near"


async def test_what_a_model_declares_holds_for_all_its_requests_and_cannot_be_widened() -> None:
    model = msgspec.structs.replace(a_model_load(), stay="site")
    async with Routing().running() as here:
        await here.on_bus("cloud", model, **CLOUD)
        widened: list[dict[str, Any]] = [{}, {"mesh_stay": "region"}, {"mesh_node": "cloud"}]
        for parameters in widened:
            with pytest.raises(NoReadyInstance, match="it may not go to those that hold it"):
                await here.infer(**parameters)
        await here.on_bus("near", model)
        assert (await here.infer()).node == "near"
        assert here.wire.asked == ["near"]


@pytest.mark.parametrize("parameters", [{"mesh_stay": "planet"}, {"mesh_tier": "fog"}, {"mesh_node": 7}], ids=str)
async def test_a_pin_that_is_none_is_refused(parameters: dict[str, Any]) -> None:
    async with Routing(a_model_load()).running() as here:
        here.models.waiting_ms = 10.0
        with pytest.raises(InvalidRequest, match=next(iter(parameters))):
            await here.infer(**parameters)


# Sequences: where they are is the sequencer's to say, here it is kept to


async def test_what_is_to_stay_goes_nowhere_else() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.on_bus(node)
        for node in ("one", "two", "one"):
            assert (await here.infer(keep=node, sequence_id=7)).node == node
        await here.leaves("one")
        with pytest.raises(NoReadyInstance, match="it may not go to those that hold it"):
            await here.infer(keep="one", sequence_id=7)


async def test_what_a_sequence_avoids_is_not_asked() -> None:
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.on_bus(node)
        for avoid, left in (("one",), "two"), (("two",), "one"):
            assert {(await here.infer(avoid=avoid)).node for _ in range(4)} == {left}
        with pytest.raises(NoReadyInstance):
            await here.infer(avoid=("one", "two"))


async def test_a_step_that_was_passed_on_is_not_passed_on_again() -> None:
    async with Routing().running() as here:
        await here.on_bus("other")
        assert (await here.infer(hops=1)).node == "other"
        with pytest.raises(NoReadyInstance):
            await here.infer(hops=1, mesh_run="door")
        assert here.wire.asked == ["other"]


# This very node


async def test_an_idle_quick_node_runs_what_comes_without_asking_the_rule() -> None:
    rule = Counting()
    async with Routing(a_model_load(service_ms=1.0), rule=rule).running() as here:
        await here.on_bus("peer", a_model_load(service_ms=1.0))
        assert (await here.infer()).node == ME
        assert (rule.asked, here.router.dispatch.reasons) == (0, {"idle and at once": 1})


@pytest.mark.parametrize("service_ms", [0.5, 2000.0], ids=["quick", "slow"])
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_a_busy_or_a_slow_node_asks_the_rule(busy: bool, service_ms: float) -> None:
    rule = Counting()
    async with Routing(a_model_load(service_ms=service_ms), rule=rule).running() as here:
        here.models.waiting_ms = 0.1 if busy else 0.0
        assert (await here.infer()).node == ME
        assert rule.asked == (busy or service_ms > 2.0)


async def test_a_node_whose_run_takes_far_too_long_is_not_idle() -> None:
    """Of such a run nothing is left, as far as its node can tell."""
    rule = Counting()
    async with Routing(a_model_load(service_ms=1.0), rule=rule).running() as here:
        await here.on_bus("peer")
        here.models.hold = asyncio.Event()
        first = asyncio.ensure_future(here.infer())
        await until(lambda: len(here.models.served) == 1)
        second = asyncio.ensure_future(here.infer())
        await until(lambda: len(here.models.served) == 2)
        assert rule.asked == 1
        at_once, behind = here.models.served
        assert at_once.recall_ms == 0.0
        assert behind.recall_ms > 0.0  # the queue knows what the peer would need
        here.models.hold.set()
        await soon(asyncio.gather(first, second))


@pytest.mark.parametrize("tier", ["edge", "cloud"])
async def test_a_node_that_can_run_what_was_passed_to_it_passes_it_on_to_nobody(tier: str) -> None:
    async with Routing(a_model_load(service_ms=100.0)).running() as here:
        await here.peer("idle", a_model_load(service_ms=1.0), tier=tier)
        here.models.waiting_ms = 30_000.0
        assert (await here.infer(hops=1, visited=("first",))).node == ME
        here.models.outcome = Overloaded("busy")
        with pytest.raises(Overloaded):
            await here.infer(hops=1, visited=("first",))
        assert here.lan.asked == []


async def test_what_a_router_passes_on_keeps_the_moment_of_its_recall() -> None:
    """Only the first door would try again."""
    async with Routing().running() as here:
        for node in ("one", "two"):
            await here.on_bus(node)
        await here.infer()
        await here.infer(hops=1)
        first, second = here.wire.contexts
        assert (first.deadline.recall_ms > 0.0, second.deadline.recall_ms) == (True, 0.0)


async def test_holders_of_a_model_that_was_not_asked_for_before_are_known() -> None:
    models = a_model_load("first"), a_model_load("second", service_ms=1.0)
    async with Routing(*models).running() as here:
        await here.on_bus("peer", *models)
        here.models.waiting_ms = 5000.0
        assert (await here.infer(an_identity("first"))).node == "peer"
        here.models.waiting_ms = 0.0
        here.models.outcome = InstanceLost("it crashed")
        assert (await here.infer(an_identity("second"))).node == "peer"


# Overload


async def test_what_would_be_far_too_late_everywhere_is_refused_where_its_priority_allows_it() -> None:
    async with Routing(a_model_load()).running() as here:
        await here.on_bus("peer", wait_ms=90_000.0)
        here.models.waiting_ms = 60_000.0
        with pytest.raises(Overloaded, match="far too late everywhere; try again in") as caught:
            await here.infer(left_ms=10_000.0, priority=3)
        assert caught.value.status == 429
        assert 45.0 < (caught.value.retry_after_s or 0.0) < 60.0
        assert (here.models.served, here.wire.asked) == ([], [])
        for priority in (0, 1, 2):
            assert (await here.infer(left_ms=10_000.0, priority=priority)).node == ME
        assert here.router.dispatch.reasons["it would be far too late everywhere"] == 1


# Rules by name


@pytest.mark.parametrize("name", RULES)
async def test_every_rule_has_a_name_and_routes(name: str) -> None:
    assert RouterSettings(policy=name).policy == name
    async with Routing(a_model_load(), rule=RULES[name]()).running() as here:
        for node in ("one", "two"):
            await here.on_bus(node)
        assert len([await here.infer() for _ in range(20)]) == 20
        here.models.loads = []
        assert {(await here.infer()).node for _ in range(20)} <= {"one", "two"}


def test_the_setting_knows_the_rules() -> None:
    assert get_args(RouterSettings.model_fields["policy"].annotation) == tuple(RULES)
    assert RouterSettings().policy == "ours"
