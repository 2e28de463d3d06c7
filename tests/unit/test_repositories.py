"""Whom a door serves which repository, and who may change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mesh.errors import Unsupported
from mesh.fleet_repository import FleetRepository
from mesh.repositories import Opened, Repositories
from mesh.repository import IndexEntry
from tests.routing import Routing


class Own:
    async def index(self) -> list[IndexEntry]:
        return []

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None: ...

    async def unload(self, name: str) -> None: ...


async def test_applications_change_models_where_the_door_is_open_and_nodes_where_they_are_routers() -> None:
    async with Routing().running() as here:
        await here.peer("agent")
        await here.peer("router", role="router")
        own = Own()
        fleet = FleetRepository(here.view, here.inquiry)
        opened = Repositories(own, fleet, here.view, Opened(doors=True))
        closed = Repositories(own, fleet, here.view, Opened())
        assert opened.at_door(change=True) is closed.at_door(change=False) is own
        with pytest.raises(Unsupported, match="loopback door only"):
            closed.at_door(change=True)
        assert opened.for_node("agent", "bus", change=True) is closed.for_node("router", "site", change=True) is own
        assert closed.for_node("agent", "bus", change=False) is closed.own() is own
        for caller in ("agent", "nobody", ""):
            with pytest.raises(Unsupported, match="by routers only"):
                closed.for_node(caller, "site", change=True)
        with pytest.raises(Unsupported, match="by the site key"):
            closed.for_node("router", "bus", change=True)
        by_bus = Repositories(own, fleet, here.view, Opened(bus=True))
        assert by_bus.for_node("router", "bus", change=True) is own
        with pytest.raises(Unsupported, match="by routers only"):
            by_bus.for_node("agent", "bus", change=True)


async def test_a_node_without_models_serves_those_of_the_fleet_but_to_no_other_node() -> None:
    async with Routing(router_only=True).running() as here:
        await here.peer("router", role="router")
        fleet = FleetRepository(here.view, here.inquiry)
        repositories = Repositories(None, fleet, here.view, Opened(doors=True))
        assert repositories.at_door(change=True) is fleet
        with pytest.raises(Unsupported, match="node me has no model repository"):
            repositories.for_node("router", "site", change=False)
