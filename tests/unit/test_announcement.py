"""The records of an announcement: what goes out fits, what comes in is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.addresses import host_token
from mesh.announcement import MAX_TXT_BYTES, Announcement, Found, ips_of, is_id, read, txt_of

ID = "0123456789abcdef" * 2
GOOD = {"v": "1", "mesh": "demo", "node": "n1", "tier": "edge"}


def an_announcement(**fields: Any) -> Announcement:
    defaults: dict[str, Any] = {"mesh": "demo", "site": "shop", "tier": "edge", "role": "agent", "http": 8001}
    return Announcement(id=ID, node="n1", **(defaults | {"addresses": ("10.0.0.7",)} | fields))


def received(txt: dict[str, str], *ips: str, port: int = 8001) -> Found | None:
    return read(ID, {k.encode(): v.encode() for k, v in txt.items()}, port, ips or ("10.0.0.7",))


def test_what_is_announced_is_what_is_read() -> None:
    sent = an_announcement(fingerprint="ab12", grpc=9001, addresses=("10.0.0.7", "2001:db8::7"))
    assert received(txt_of(sent), *ips_of(sent)) == Found(
        ID, "n1", "demo", "shop", "edge", "agent", ("10.0.0.7:8001", "[2001:db8::7]:8001"), "ab12", 9001
    )


def test_a_name_is_announced_in_place_of_the_addresses() -> None:
    sent = an_announcement(addresses=("box.example",))
    found = received(txt_of(sent), *ips_of(sent))
    assert found is not None
    assert found.addresses == ("box.example:8001",)


def test_the_record_fits_whatever_the_names() -> None:
    sent = replace(an_announcement(fingerprint="f" * 16, grpc=9001), node="n" * 128, mesh="m" * 128, site="s" * 128)
    assert sum(2 + len(k) + len(v) for k, v in txt_of(sent).items()) <= MAX_TXT_BYTES
    found = received(txt_of(sent))
    assert found is not None
    assert (found.node, found.mesh, found.tier) == (sent.node, sent.mesh, "edge")


def test_loopback_counts_only_from_the_same_host() -> None:
    sent = an_announcement(addresses=("127.0.0.1",))
    here = received(txt_of(sent), "127.0.0.1")
    assert here is not None
    assert here.addresses == ("127.0.0.1:8001",)
    assert received(txt_of(sent) | {"host": "0" * 16}, "127.0.0.1") is None
    assert received(GOOD, "127.0.0.1") is None
    assert received(GOOD | {"door": "localhost:22"}) is None
    assert host_token() not in txt_of(an_announcement()).values(), "told only where it is needed"


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.251", "::", "fe80::1", "::ffff:127.0.0.1"])
def test_addresses_that_lead_nowhere_are_left_out(address: str) -> None:
    assert received(GOOD, address) is None
    found = received(GOOD, address, "10.0.0.7")
    assert found is not None
    assert found.addresses == ("10.0.0.7:8001",)


@pytest.mark.parametrize(
    "change",
    [{"v": "2"}, {"v": ""}, {"tier": "moon"}, {"node": ""}, {"node": "a b"}, {"node": "n1\n"}, {"node": "\x1b[2J"},
     {"mesh": "é"}, {"site": "x" * 129}, {"role": "!"}, {"door": "nowhere"}, {"door": "x:0"}, {"more": "x" * 1300}],
)  # fmt: skip
def test_rubbish_is_no_announcement(change: dict[str, str]) -> None:
    assert received(GOOD) is not None
    assert received(GOOD | change) is None


def test_a_port_of_zero_is_no_door() -> None:
    assert received(GOOD, port=0) is None


def test_the_number_of_doors_is_bounded() -> None:
    found = received(GOOD, *(f"10.0.0.{n}" for n in range(1, 100)))
    assert found is not None
    assert len(found.addresses) == 8


def test_words_of_the_next_version_are_ignored() -> None:
    assert received(GOOD | {"new": "thing", "role": "cache"}) is not None


@given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=255)), st.integers(0, 65535))
def test_reading_never_raises(properties: dict[bytes, bytes | None], port: int) -> None:
    read(ID, properties, port, ["10.0.0.7"])
    read(ID, {k.encode(): v.encode() for k, v in GOOD.items()} | properties, port, ["10.0.0.7"])


@pytest.mark.parametrize(("label", "ours"), [(ID, True), (ID + "-ab12", True), ("box", False), (ID.upper(), False)])
def test_instance_names_are_ids(label: str, ours: bool) -> None:
    assert is_id(label) is ours
