"""HOST:PORT texts, what is loopback, which doors are told to others, news of the kernel."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from ipaddress import ip_address
from types import SimpleNamespace

import ifaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import addresses
from mesh.addresses import advertised, is_loopback, is_wildcard, join, parse, removed_addresses
from mesh.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("[::1]:8000", "::1", 8000),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("box-3.shop.example:443", "box-3.shop.example", 443),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_parse_and_join_are_inverse(text: str, host: str, port: int) -> None:
    assert parse(text) == (host, port)
    assert join(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "8000", ":8000", "host", "host:", "host:x", "host:-1", "host:65536", "host:\uff18", "::1:8000", "[::1]",
     "[host]:1", "[127.0.0.1]:1", "http://host:1", "user@host:1", "ho st:1", "host/path:1", "host:1 ", "-x:1"],
)  # fmt: skip
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LOCALHOST.:1", "a.localhost:1", "[::ffff:127.0.0.1]:1",
     "127.0.0.1", "::1"],
)  # fmt: skip
def test_loopback_is_seen_in_every_spelling(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["10.0.0.1:1", "0.0.0.0:1", "[2001:db8::1]:1", "localhost.example:1", "", "x"])
def test_other_addresses_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)


@given(st.text())
def test_judging_an_address_from_the_network_never_raises(text: str) -> None:
    is_loopback(text)
    is_wildcard(text)


def adapters(*ips: tuple[str, str]) -> list[ifaddr.Adapter]:
    """Interfaces by name and address, in the order given."""
    return [
        SimpleNamespace(name=name, ips=[SimpleNamespace(ip=(ip, 0, 0) if ":" in ip else ip)])  # type: ignore[misc]
        for name, ip in ips
    ]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> None:
    found = adapters(
        ("lo", "127.0.0.1"), ("lo", "::1"), ("docker0", "172.17.0.1"), ("wlan0", "192.168.1.9"),
        ("eth0", "10.0.0.7"), ("eth0", "fe80::7"), ("eth0", "2001:db8::7"), ("eth1", "169.254.3.3"),
    )  # fmt: skip
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: found)


@pytest.mark.usefixtures("box")
def test_a_wildcard_is_advertised_as_the_addresses_neighbours_can_reach() -> None:
    assert advertised("0.0.0.0:80", "") == ("10.0.0.7:80", "192.168.1.9:80")
    assert advertised("[::]:80", "") == ("10.0.0.7:80", "192.168.1.9:80", "[2001:db8::7]:80")
    assert addresses.default_interfaces() == ("10.0.0.7", "192.168.1.9", "127.0.0.1")


@pytest.mark.usefixtures("box")
def test_what_was_said_is_advertised() -> None:
    assert advertised("127.0.0.1:80", "") == ("127.0.0.1:80",)
    assert advertised("10.0.0.7:80", "") == ("10.0.0.7:80",)
    assert advertised("0.0.0.0:80", "box.example:443") == ("box.example:443",)
    assert advertised("0.0.0.0:80", "none") == ()


@pytest.mark.parametrize("option", ["box.example", "0.0.0.0:80", "[::]:80", "box.example:0", "all"])
def test_a_door_nobody_can_connect_to_is_refused(option: str) -> None:
    with pytest.raises(ConfigError):
        advertised("0.0.0.0:80", option)


def test_two_boxes_on_one_cable_use_link_local_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(("lo", "127.0.0.1"), ("eth1", "169.254.3.3")))
    assert advertised("0.0.0.0:80", "") == ("169.254.3.3:80",)


def test_without_a_network_a_wildcard_is_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(("lo", "127.0.0.1")))
    assert advertised("0.0.0.0:80", "") == ("127.0.0.1:80",)


def test_processes_of_one_host_share_its_token() -> None:
    code = "from mesh.addresses import host_token; print(host_token())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == addresses.host_token()
    assert len(addresses.host_token()) == 16


def netlink(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2)
    for name, value in attributes:
        body += struct.pack("=HH", 4 + len(value), name) + value + b"\0" * (-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_the_kernels_news_of_removed_addresses_is_read() -> None:
    new, gone, ip, label = 20, 21, ip_address("10.0.0.7").packed, b"eth0\0"
    assert removed_addresses(netlink(gone, (1, ip), (2, ip), (3, label))) == {"10.0.0.7"}
    assert removed_addresses(netlink(new, (2, ip))) == set()
    assert removed_addresses(netlink(new, (2, b"\1\2\3\4")) + netlink(gone, (3, label), (2, ip))) == {"10.0.0.7"}


@given(st.binary(max_size=200), st.integers(0, 60))
def test_broken_news_ends(rubbish: bytes, cut: int) -> None:
    removed_addresses(rubbish)
    removed_addresses(netlink(21, (2, b"\1\2\3\4"))[:cut])
