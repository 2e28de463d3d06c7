"""Asking other nodes of their models: whose word counts, who is asked, and what becomes of those that do not answer."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from mesh.deadline import Deadline
from mesh.errors import MeshError, ModelNotFound, ModelNotReady, NodeLost, NodeUnreachable, ProtocolError
from mesh.hop import Context
from mesh.inquiry import EVERYTHING
from mesh.oip.statistics import ModelStatistics, encode_statistics
from mesh.values import ModelRef
from tests.builders import a_model_load, an_identity
from tests.nats import soon
from tests.routing import Routing

RESNET = ModelRef("resnet")


def context(hops: int = 0) -> Context:
    return Context(Deadline.after_ms(60_000), hops)


def said(*counts: tuple[str, int]) -> bytes:
    return encode_statistics([ModelStatistics(name, "1", inference_count=count) for name, count in counts])


def counted(found: list[ModelStatistics]) -> dict[str, int]:
    return {each.name: each.inference_count for each in found}


async def test_statistics_of_a_model_are_those_of_its_holders_added_up() -> None:
    async with Routing(a_model_load("mine")).running() as here:
        for node in ("one", "two"):
            await here.peer(node)
        await here.peer("three", a_model_load("other"))
        here.lan.answers["one", "statistics"] = said(("resnet", 3))
        here.lan.answers["two", "statistics"] = said(("resnet", 4))
        assert counted(await here.inquiry.statistics(RESNET, 0)) == {"resnet": 7}
        assert sorted(here.lan.asked) == ["one", "two"]
        here.lan.asked.clear()
        assert counted(await here.inquiry.statistics(ModelRef("mine"), 0)) == {"mine": 1}
        assert counted(await here.inquiry.statistics(None, 0)) == {"mine": 1}
        with pytest.raises(ModelNotFound, match="Request for unknown model: model 'zebra'"):
            await here.inquiry.statistics(ModelRef("zebra"), 0)
        assert here.lan.asked == []


async def test_statistics_of_all_models_are_those_of_the_mesh_where_this_node_has_none() -> None:
    async with Routing().running() as here:
        await here.peer("one")
        await here.peer("router", role="router")
        here.lan.answers["one", "statistics"] = said(("resnet", 3), ("other", 1))
        assert counted(await here.inquiry.statistics(None, 0)) == {"resnet": 3, "other": 1}
        assert here.lan.asked == ["one"]
        assert await here.inquiry.statistics(None, 1) == []  # another door asks: only for what is here
        with pytest.raises(ModelNotFound):
            await here.inquiry.statistics(RESNET, 1)
        assert here.lan.asked == ["one"]


async def test_who_does_not_answer_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async with Routing(router_only=True).running() as here:
        for node in ("one", "two"):
            await here.peer(node)
        here.lan.answers["one", "statistics"] = said(("resnet", 3))
        here.lan.outcomes["two"] = NodeLost("gone")
        with caplog.at_level(logging.WARNING):
            assert counted(await here.inquiry.statistics(RESNET, 0)) == {"resnet": 3}
        assert "lack node two: gone" in caplog.text
        del here.lan.outcomes["two"]
        here.lan.answers["two", "statistics"] = b"none"
        with caplog.at_level(logging.WARNING):
            assert counted(await here.inquiry.statistics(RESNET, 0)) == {"resnet": 3}
        assert "lack node two: the answer is not statistics" in caplog.text
        here.lan.outcomes["one"] = here.lan.outcomes["two"] = NodeLost("gone")
        with pytest.raises(NodeLost):
            await here.inquiry.statistics(RESNET, 0)


async def test_each_node_is_asked_at_the_same_time_and_once() -> None:
    async with Routing(router_only=True).running() as here:
        for node in ("one", "two"):
            await here.peer(node)
            here.lan.answers[node, "index"] = node.encode()
        asking = here.inquiry.each(["one", "two", "one", "zebra"], "index", EVERYTHING, Deadline.after_ms(60_000))
        answers = await soon(asyncio.ensure_future(asking))
        zebra = answers.pop("zebra")
        assert answers == {"one": b"one", "two": b"two"}
        assert isinstance(zebra, NodeUnreachable)
        assert sorted(here.lan.asked) == ["one", "two"]


async def test_the_configuration_comes_from_here_else_from_a_holder() -> None:
    async with Routing(a_model_load("mine")).running() as here:
        await here.peer("one")
        assert (await here.inquiry.config(an_identity("mine"), context()))["name"] == "mine"
        assert here.lan.asked == []
        here.lan.answers["one", "config"] = msgspec.json.encode({"name": "resnet"})
        assert await here.inquiry.config(an_identity(), context()) == {"name": "resnet"}
        for wrong in (b"", b"[]", b"\xff"):
            here.lan.answers["one", "config"] = wrong
            with pytest.raises(ProtocolError, match="not a model configuration"):
                await here.inquiry.config(an_identity(), context())
        with pytest.raises(ModelNotReady):
            await here.inquiry.config(an_identity(), context(hops=1))
        here.lan.outcomes["one"] = NodeLost("gone")
        with pytest.raises(MeshError, match="gone"):
            await here.inquiry.config(an_identity(), context())
