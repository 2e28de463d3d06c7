"""The repositories of several nodes as one: indices merged, changes sent to who has the model, errors that name it."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from mesh.errors import LoadFailed, ModelNotFound, ModelRejected, NodeLost, ProtocolError, Unsupported
from mesh.fleet_repository import FleetRepository, merged
from mesh.repository import IndexEntry
from tests.builders import a_model_load
from tests.fakes import until
from tests.nats import soon
from tests.routing import Routing

READY, LOADING = IndexEntry("m", "1", "READY"), IndexEntry("m", "1", "LOADING")
BROKEN, UNLOADED = IndexEntry("m", "1", "UNAVAILABLE", "why"), IndexEntry("m", "", "UNAVAILABLE", "it is not loaded")


def index(*entries: IndexEntry) -> bytes:
    return msgspec.json.encode(entries)


def test_of_each_version_the_entry_nearest_to_serving_stands() -> None:
    assert merged([BROKEN, READY, LOADING]) == [READY]
    assert merged([LOADING, BROKEN]) == [LOADING]
    assert merged([UNLOADED, BROKEN]) == [BROKEN]
    assert merged([UNLOADED, UNLOADED]) == [UNLOADED]
    ten, two = IndexEntry("m", "10", "READY"), IndexEntry("m", "2", "READY")
    assert merged([IndexEntry("z"), ten, two, UNLOADED]) == [two, ten, IndexEntry("z")]


async def test_the_index_is_that_of_all_nodes_that_answer() -> None:
    async with Routing(router_only=True).running() as here:
        for node in ("one", "two", "three"):
            await here.peer(node)
        await here.peer("router", role="router")
        repository = FleetRepository(here.view, here.inquiry)
        here.lan.answers["one", "index"] = index(UNLOADED)
        here.lan.answers["two", "index"] = index(READY)
        here.lan.outcomes["three"] = NodeLost("gone")
        assert await repository.index() == [READY]
        assert sorted(here.lan.asked) == ["one", "three", "two"]
        here.lan.outcomes["three"] = Unsupported("no repository")
        assert await repository.index() == [READY]
        here.lan.answers["two", "index"] = b"no index"
        assert await repository.index() == [UNLOADED]
        for node in ("one", "two", "three"):
            here.lan.outcomes[node] = NodeLost("gone")
        with pytest.raises(NodeLost):
            await repository.index()


async def test_a_model_is_loaded_where_it_is_listed_and_seen_to_be_ready() -> None:
    async with Routing(router_only=True).running() as here:
        loading = a_model_load("m", state="LOADING")
        for node in ("one", "two"):
            await here.peer(node, loading)
            here.lan.answers[node, "load"] = b""
        here.lan.answers["one", "index"] = index(UNLOADED)
        here.lan.answers["two", "index"] = index(IndexEntry("other"))
        work = asyncio.ensure_future(FleetRepository(here.view, here.inquiry).load("m", {"config": "{}"}))
        while here.lan.asked.count("one") < 2:
            await asyncio.sleep(0)
        assert not work.done()  # the report still says LOADING
        here.watcher.heard(here.report("one", a_model_load("m")))
        await soon(work)
        assert here.lan.asked.count("two") == 1
        assert here.lan.bodies["one", "load"] == b'{"parameters":{"config":"{}"}}'


async def test_a_node_that_is_lost_while_it_loads_is_not_waited_for() -> None:
    async with Routing(router_only=True).running() as here:
        for node in ("one", "two"):
            await here.peer(node, a_model_load("m"))
            here.lan.answers[node, "index"] = index(UNLOADED)
            here.lan.answers[node, "load"] = b""
        repository = FleetRepository(here.view, here.inquiry)
        await repository.index()
        here.lan.holds["one", "load"] = asyncio.Event()
        work = asyncio.ensure_future(repository.load("m"))
        await until(lambda: here.lan.left == 1)
        here.watcher.expire(time.monotonic() + 600.0)
        with pytest.raises(NodeLost, match="node one: node one was lost while it held the request"):
            await soon(work)
        assert here.lan.left == 0


async def test_errors_name_the_node() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("one", a_model_load("m"))
        repository = FleetRepository(here.view, here.inquiry)
        here.lan.answers["one", "index"] = index(READY)
        for work in (repository.load("zebra"), repository.unload("zebra")):
            with pytest.raises(ModelNotFound, match="'zebra'"):
                await work
        here.lan.refusals["one", "load"] = here.lan.refusals["one", "unload"] = ModelRejected("it is broken")
        for work in (repository.load("m"), repository.unload("m")):
            with pytest.raises(ModelRejected, match=r"^node one: it is broken$"):
                await work
        here.lan.answers["one", "index"] = b"{}"
        with pytest.raises(ProtocolError):
            await repository.index()


async def test_parameters_are_judged_before_anybody_is_asked() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("one")
        repository = FleetRepository(here.view, here.inquiry)
        with pytest.raises(LoadFailed, match="failed to load 'm', failed to poll from model repository"):
            await repository.load("m", {"file:1/model.onnx": b"x", "config": "{}"})
        with pytest.raises(LoadFailed, match="parameter 'colour' is not taken"):
            await repository.load("m", {"colour": "red"})
        with pytest.raises(LoadFailed, match="must be a text"):
            await repository.load("m", {"config": 1})
        assert here.lan.asked == []
