"""What a node announces on the LAN, and what is made of an announcement received: the records' contents, checked.

Everything received is from anybody on the LAN: it is bounded and must be well-formed, but is not believed. Not here:
multicast DNS itself (``discovery``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.addresses import host_token, interface_addresses, is_loopback, join, literal, parse
from mesh.errors import ConfigError
from mesh.values import NAME_PATTERN

VERSION = "1"
MAX_ADDRESSES = 8
MAX_TXT_BYTES = 400
"""RFC 6763 6.2: up to here a TXT record fits one packet with everything else."""
MAX_RECEIVED_TXT_BYTES = 1300

_ID = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{4})?")
_OPTIONAL = ("grpc", "role", "fp", "site", "door")
"""TXT keys to leave out, first to last, where long names fill the record: the report says it all again."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What to announce: ``id`` is the persisted node id (uuid4 hex), ``http`` and ``grpc`` are ports.

    ``addresses`` are hosts: IP addresses, or one name as of ``--advertise``; empty stands for the addresses of the
    interfaces, followed as they change.
    """

    id: str
    node: str
    mesh: str
    site: str
    tier: str
    role: str
    http: int
    grpc: int = 0
    fingerprint: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """An announcement as received, well-formed but not believed. ``addresses`` are doors, HOST:PORT, best first.

    ``id`` tells announcements apart, also those of two boxes cloned from one disk image.
    """

    id: str
    node: str
    mesh: str
    site: str
    tier: str
    role: str
    addresses: tuple[str, ...]
    fingerprint: str = ""
    grpc: int = 0


def is_id(label: str) -> bool:
    """Whether an instance name is one that a node of the mesh takes: its id, with a suffix where that was taken."""
    return bool(_ID.fullmatch(label))


def txt_of(announce: Announcement) -> dict[str, str]:
    """The TXT record, at most 400 bytes; neither load (each update is multicast three times) nor secrets."""
    hosts = announce.addresses or interface_addresses() or ("127.0.0.1",)
    names = [host for host in hosts if literal(host) is None]
    txt = {"v": VERSION, "mesh": announce.mesh, "node": announce.node, "tier": announce.tier, "role": announce.role}
    txt |= {"site": announce.site, "fp": announce.fingerprint}
    if announce.grpc:
        txt["grpc"] = str(announce.grpc)
    if names:
        txt["door"] = join(names[0], announce.http)
    if any(is_loopback(host) for host in hosts):
        txt["host"] = host_token()
    for key in _OPTIONAL:
        if sum(len(f" {k}={v}".encode()) for k, v in txt.items()) > MAX_TXT_BYTES:
            txt.pop(key, None)
    return txt


def ips_of(announce: Announcement) -> list[str]:
    """The address records; a name is announced in the TXT record, but the host still needs an address."""
    ips = [host for host in announce.addresses if literal(host) is not None]
    return ips or list(interface_addresses()) or ["127.0.0.1"]


def read(label: str, properties: Mapping[bytes, bytes | None], port: int, ips: Sequence[str]) -> Found | None:
    """What the records of instance ``label`` announce; None if it is no announcement of this version. Never raises."""
    if sum(len(k) + len(v or b"") + 2 for k, v in properties.items()) > MAX_RECEIVED_TXT_BYTES:
        return None
    txt = {k.decode("ascii", "replace"): (v or b"").decode("ascii", "replace") for k, v in properties.items()}
    named = all(NAME_PATTERN.fullmatch(txt.get(key, "")) for key in ("mesh", "node"))
    plain = all(NAME_PATTERN.fullmatch(txt.get(key) or "none") for key in ("site", "role", "fp"))
    doors = _doors(txt, port, ips)
    if txt.get("v") != VERSION or txt.get("tier") not in ("edge", "cloud") or not (named and plain and doors):
        return None
    grpc = txt.get("grpc", "")
    return Found(
        id=label,
        node=txt["node"],
        mesh=txt["mesh"],
        site=txt.get("site", ""),
        tier=txt["tier"],
        role=txt.get("role", ""),
        addresses=doors,
        fingerprint=txt.get("fp", ""),
        grpc=int(grpc) if re.fullmatch(r"[0-9]{1,5}", grpc) else 0,
    )


def _doors(txt: Mapping[str, str], port: int, ips: Sequence[str]) -> tuple[str, ...]:
    """Loopback counts only if the announcer shares ours: else it would be a door of this host, whoever's it is."""
    doors = [txt["door"]] if "door" in txt else [join(ip, port) for ip in ips]
    same_host = txt.get("host") == host_token()
    return tuple(dict.fromkeys(door for door in doors if _plausible(door, same_host)))[:MAX_ADDRESSES]


def _plausible(door: str, same_host: bool) -> bool:
    try:
        host, port = parse(door)
    except ConfigError:
        return False
    ip = literal(host)
    if ip is not None and (ip.is_unspecified or ip.is_multicast or (ip.version == 6 and ip.is_link_local)):
        return False
    return port > 0 and (same_host or not is_loopback(door))
