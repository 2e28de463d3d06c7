"""Where a request may run: what its parameters and its model say, the strictest of both, and who is inside."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.errors import InvalidRequest
from mesh.pins import STAYS, Pin, Place
from mesh.values import Tier

property_test = settings(deadline=None, max_examples=200, database=None, suppress_health_check=[HealthCheck.too_slow])

ME = Place("me", "shop", "north", "edge")
NEXT = Place("next", "shop", "north", "edge")
SHOP_CLOUD = Place("rack", "shop", "north", "cloud")
REGION = Place("depot-1", "depot", "north", "edge")
ABROAD = Place("far-1", "far", "south", "edge")
CLOUD = Place("gpu-1", "cloud", "", "cloud")
ALL = (ME, NEXT, SHOP_CLOUD, REGION, ABROAD, CLOUD)

tiers: list[Tier] = ["edge", "cloud"]
kinds = product(["s1", "s2"], ["", "r1", "r2"], tiers, ["a", "b"])
places = st.sampled_from(
    [Place(f"{site}-{region}-{tier}-{twin}", site, region, tier) for site, region, tier, twin in kinds]
)
"""A name is of one node."""
parameters = st.fixed_dictionaries(
    {},
    optional={
        "mesh_stay": st.sampled_from(STAYS),
        "mesh_node": st.sampled_from(["", "s1-r1-edge-a", "s2-r1-cloud-b"]),
        "mesh_site": st.sampled_from(["", "s1", "s2"]),
        "mesh_tier": st.sampled_from(["", "edge", "cloud"]),
        "timeout": st.integers(1, 9),
    },
)


def allowed(said: dict[str, object], declared: str = "", here: Place = ME) -> tuple[Place, ...]:
    pin = Pin.of(said, declared)
    return ALL if pin is None else tuple(place for place in ALL if pin.allows(here, place))


@pytest.mark.parametrize("said", [{}, {"timeout": 5, "priority": 1}, {"mesh_stay": "", "mesh_node": ""}])
def test_who_says_nothing_is_not_pinned(said: dict[str, object]) -> None:
    assert Pin.of(said) is None


@pytest.mark.parametrize(
    ("said", "inside"),
    [
        ({"mesh_stay": "node"}, (ME,)),
        ({"mesh_stay": "site"}, (ME, NEXT, SHOP_CLOUD)),
        ({"mesh_stay": "region"}, (ME, NEXT, SHOP_CLOUD, REGION)),
        ({"mesh_node": "depot-1"}, (REGION,)),
        ({"mesh_site": "shop"}, (ME, NEXT, SHOP_CLOUD)),
        ({"mesh_tier": "cloud"}, (SHOP_CLOUD, CLOUD)),
        ({"mesh_tier": "edge", "mesh_stay": "site"}, (ME, NEXT)),
        ({"mesh_node": "far-1", "mesh_stay": "region"}, ()),
    ],
)
def test_each_parameter_says_where(said: dict[str, object], inside: tuple[Place, ...]) -> None:
    assert allowed(said) == inside


@pytest.mark.parametrize(("mine", "declared"), list(product(STAYS, STAYS)))
def test_the_strictest_of_request_and_model_counts(mine: str, declared: str) -> None:
    strictest = max(mine, declared, key=["", "region", "site", "node"].index)
    assert allowed({"mesh_stay": mine}, declared) == allowed({"mesh_stay": strictest})


def test_what_a_later_version_declares_keeps_requests_on_their_node() -> None:
    assert allowed({}, "continent") == (ME,)


def test_no_region_is_not_a_region_that_nodes_share() -> None:
    nowhere = ME._replace(region="")
    others = (Place("x", "other", "", "edge"), CLOUD, REGION)
    pin = Pin.of({"mesh_stay": "region"})
    assert pin is not None
    assert pin.allows(nowhere, NEXT._replace(region=""))
    assert not any(pin.allows(nowhere, other) for other in others)
    assert not pin.allows(ME, CLOUD)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("mesh_stay", "sight", r"'mesh_stay' is 'sight', not one of region, site, node"),
        ("mesh_stay", "Site", r"'mesh_stay' is 'Site'"),
        ("mesh_stay", True, r"'mesh_stay' is 'True', not one of region, site, node"),
        ("mesh_stay", 7, r"'mesh_stay' is '7'"),
        ("mesh_tier", "fog", r"'mesh_tier' is 'fog', not one of edge, cloud"),
        ("mesh_tier", 0, r"'mesh_tier' is '0'"),
        ("mesh_node", 3, r"'mesh_node' is not a string"),
        ("mesh_site", False, r"'mesh_site' is not a string"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: object, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        Pin.of({name: value}, "node")


def test_a_long_value_is_not_echoed_whole() -> None:
    with pytest.raises(InvalidRequest) as refused:
        Pin.of({"mesh_stay": "x" * 100_000})
    assert len(refused.value.text) < 200


@property_test
@given(parameters, st.sampled_from(STAYS), places, places)
def test_a_declaration_only_ever_takes_places_away(
    said: dict[str, object], declared: str, here: Place, there: Place
) -> None:
    free, bound = Pin.of(said), Pin.of(said, declared)
    if bound is None or bound.allows(here, there):
        assert free is None or free.allows(here, there)
    alone = Pin.of({}, declared)
    if bound is not None and bound.allows(here, there):
        assert alone is None or alone.allows(here, there)


@property_test
@given(parameters, places, places)
def test_each_part_of_a_pin_is_kept(said: dict[str, object], here: Place, there: Place) -> None:
    pin = Pin.of(said)
    parts = [Pin.of({name: value}) for name, value in said.items()]
    each = all(part is None or part.allows(here, there) for part in parts)
    assert (pin is None or pin.allows(here, there)) == each


@property_test
@given(st.sampled_from(STAYS), st.sampled_from(["", "r1", "r2"]), places, places, places)
def test_a_second_hop_leads_no_further_than_the_first_door_allows(
    stay: str, other: str, a: Place, b: Place, c: Place
) -> None:
    """Where all nodes of a site name the same region: each door judges from where it stands."""
    a, b, c = (place._replace(region="r1" if place.site == "s1" else other) for place in (a, b, c))
    pin = Pin.of({"mesh_stay": stay})
    if pin is not None and pin.allows(a, b) and pin.allows(b, c):
        assert pin.allows(a, c)
