"""Which links share an uplink, as an edge node and as the cloud see it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.link import LAN, WAN
from mesh.messages import Report
from mesh.neighbours import Door
from mesh.pins import Place
from mesh.wires import Wires
from tests.builders import a_report

EDGE = Place("me", "shop", "", "edge")
CLOUD = Place("me", "cloud", "", "cloud")


def at(node: str, site: str, **fields: Any) -> Report:
    return a_report(node, site=site, tier="cloud" if site == "cloud" else "edge", **fields)


def test_on_the_site_each_node_has_its_own_way() -> None:
    wires, one, other = Wires(EDGE), Door("n1:1"), Door("n2:1")
    links = [wires.link(at("n1", "shop"), one), wires.link(at("n2", "shop"), other)]
    assert links == [one.link, other.link]
    assert [(link.prior, link.up.prior) for link in links] == [(LAN, LAN.bytes_per_ms)] * 2
    assert links[0].up is not links[1].up


def test_an_edge_node_has_one_uplink_whatever_is_at_the_other_end() -> None:
    wires, door = Wires(EDGE), Door("c1:1")
    ways = [wires.link(at("c1", "cloud"), door), wires.link(at("c2", "cloud"), None), wires.link(at("n9", "far"), None)]
    assert len({id(link) for link in ways}) == 3
    assert len({id(link.up) for link in ways}) == len({id(link.down) for link in ways}) == 1
    assert ways[0] is door.link
    assert ways[0].prior == WAN
    ways[0].sent(600_000, 0.0)
    assert ways[2].network_ms(0, 0, 0.0) == pytest.approx(WAN.rtt_ms + 96.0)
    assert wires.uplink_bytes(0.0) == 600_000


def test_the_cloud_sees_an_uplink_for_each_site() -> None:
    wires = Wires(CLOUD)
    shop, shop_too = wires.link(at("n1", "shop"), None), wires.link(at("n2", "shop"), Door("n2:1"))
    far, beside = wires.link(at("n3", "far"), None), wires.link(at("c1", "cloud"), Door("c1:1"))
    assert shop.up is shop_too.up
    assert len({id(link.up) for link in (shop, far, beside)}) == 3
    assert beside.prior == LAN
    shop.sent(600_000, 0.0)
    assert wires.uplink_bytes(0.0) == 0, "it is not the cloud's"


def test_a_link_stays_the_same_and_knows_what_it_measured() -> None:
    wires, door = Wires(EDGE), Door("c1:1")
    door.link.pinged(33.0)
    link = wires.link(at("c1", "cloud"), door)
    assert (link.rtt_ms, link.measured, door.link) == (33.0, True, link)
    assert wires.link(at("c1", "cloud"), door) is link
    over_bus = wires.link(at("c1", "cloud"), None)
    assert over_bus is not link
    assert wires.link(at("c1", "cloud"), None) is over_bus
    assert not over_bus.measured
    wires.forget("c1")
    wires.forget("c1")
    assert wires.link(at("c1", "cloud"), None) is not over_bus


def test_neighbours_on_the_site_tell_of_the_uplink() -> None:
    wires = Wires(EDGE)
    wires.told(at("n1", "shop", uplink_bytes=62_500), 0.0)  # nothing leads out of the site yet
    link = wires.link(at("c1", "cloud"), None)
    assert link.up.ahead(0.0) == 0.0
    wires.told(at("n1", "shop", uplink_bytes=62_500), 0.0)
    wires.told(at("n2", "far", uplink_bytes=10**9), 0.0)
    wires.told(at("c1", "cloud", uplink_bytes=10**9), 0.0)
    assert link.up.ahead(0.0) == 62_500
    assert link.up.ahead(0.005) == pytest.approx(31_250)
    assert wires.uplink_bytes(0.0) == 0, "each tells of its own only, or they would be counted twice"


def test_nobody_tells_the_cloud_of_an_uplink() -> None:
    wires = Wires(CLOUD)
    link = wires.link(at("n1", "shop"), None)
    wires.told(at("n1", "shop", uplink_bytes=10**6), 0.0)
    assert link.up.ahead(0.0) == 0.0
