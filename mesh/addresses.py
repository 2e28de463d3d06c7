"""Addresses: HOST:PORT texts, the interfaces of this host, which doors to tell others, noticing that they changed.

Not here: announcing (``discovery``), listening (``http_server``), resolving names.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import os
import re
import secrets
import socket
import struct
from pathlib import Path

import ifaddr

from mesh.errors import ConfigError
from mesh.lifecycle import within

log = logging.getLogger(__name__)

POLL_S = 15.0
SETTLE_S = 1.0
MAX_ADDRESSES = 8

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_.])?")
_VIRTUAL = re.compile(r"docker|br-|veth|virbr|cni|flannel|cali|podman|lxc|lxd|vmnet|vboxnet")
"""Bridges of containers and virtual machines: every host has the same addresses on them, neighbours cannot use them."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse(address: str) -> tuple[str, int]:
    """``HOST:PORT`` (IPv6 as ``[::1]:8000``) as host without brackets and port 0-65535; raises ``ConfigError``."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    valid = ":" in host and literal(host) is not None if bracketed else _NAME.fullmatch(host)
    if not colon or not valid:
        raise ConfigError(f"{address!r} is not HOST:PORT, as in 127.0.0.1:8000 or [::1]:8000")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"{address!r}: the port must be a number from 0 to 65535")
    return host, int(port)


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def literal(host: str) -> IPAddress | None:
    """The IP address that ``host`` is, None for a name; an IPv4 address mapped into IPv6 counts as IPv4."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def is_loopback(address: str) -> bool:
    """Whether ``HOST:PORT`` can only mean this host's loopback. Takes any text; what is no address is not loopback."""
    host = _host(address)
    ip = literal(host)
    if ip is not None:
        return ip.is_loopback
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def is_wildcard(address: str) -> bool:
    """Whether ``HOST:PORT`` means all interfaces."""
    ip = literal(_host(address))
    return ip is not None and ip.is_unspecified


def _host(address: str) -> str:
    try:
        return parse(address)[0]
    except ConfigError:
        return address.strip("[]")


def _read_host_token() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = os.stat("/proc/self/ns/net")
    except OSError:
        return secrets.token_hex(8)
    return hashlib.sha256(f"{boot}/{space.st_dev}/{space.st_ino}".encode()).hexdigest()[:16]


_HOST_TOKEN = _read_host_token()  # once, at import: files are not read in the event loop


def host_token() -> str:
    """Sixteen hex digits, equal for processes that share their loopback: same boot and same network namespace.

    Where the kernel tells neither it is random, so that no loopback door of another process is believed.
    """
    return _HOST_TOKEN


def interface_addresses() -> tuple[str, ...]:
    """Addresses by which neighbours may reach this host, IPv4 first, at most 8; none of loopback or of containers.

    IPv4 link-local addresses count only where there is nothing else (two boxes on one cable), IPv6 ones
    never: they mean nothing without the receiver's own interface.
    """
    ips = [ip for adapter in ifaddr.get_adapters() if not _VIRTUAL.match(adapter.name) for ip in _ips(adapter)]
    usable = [ip for ip in ips if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified)]
    cable = [ip for ip in ips if ip.version == 4 and ip.is_link_local]
    return tuple(str(ip) for ip in sorted(usable or cable, key=lambda ip: (ip.version, int(ip)))[:MAX_ADDRESSES])


def default_interfaces() -> tuple[str, ...]:
    """IPv4 addresses of the interfaces to speak mDNS on: those neighbours are on, and loopback for this host's own."""
    loopback = [str(ip) for adapter in ifaddr.get_adapters() for ip in _ips(adapter) if str(ip) == "127.0.0.1"]
    return (*(ip for ip in interface_addresses() if ":" not in ip), *loopback)


def _ips(adapter: ifaddr.Adapter) -> list[IPAddress]:
    return [ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0]) for ip in adapter.ips]


def advertised(bound: str, option: str) -> tuple[str, ...]:
    """The doors (``HOST:PORT``) to tell others about, for a door bound at ``bound`` and the setting ``--advertise``.

    ``option`` is empty for the bound address, ``none`` for no door, else the one door. A wildcard becomes the addresses
    of the interfaces as they are now, or loopback while there is no network. Raises ``ConfigError``.
    """
    if option == "none":
        return ()
    if option:
        if parse(option)[1] == 0 or is_wildcard(option):
            raise ConfigError(f"--advertise: nobody can connect to {option}; name a host and a port, or none")
        return (option,)
    if not is_wildcard(bound):
        return (bound,)
    host, port = parse(bound)
    reachable = [ip for ip in interface_addresses() if ":" not in ip or ":" in host]
    return tuple(join(ip, port) for ip in reachable or ["127.0.0.1"])


_NLMSG = struct.Struct("=IHHII")
_RTATTR = struct.Struct("=HH")
_RTMGRP_IPV4_IFADDR = 0x10
_RTM_DELADDR = 21
_IFA_LOCAL = 2
_IFADDRMSG_BYTES = 8


class AddressWatch:
    """Notices that the host's addresses changed: told by the kernel (rtnetlink), else by a look every 15 s.

    An address that went and came back counts too: a dongle that was pulled took the multicast groups with it.
    """

    def __init__(self) -> None:
        self._known = default_interfaces()
        self._socket: socket.socket | None = None

    def __enter__(self) -> AddressWatch:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _RTMGRP_IPV4_IFADDR))
        except OSError as error:
            log.info("the kernel does not tell of address changes (%s), looking every %g s", error, POLL_S)
            self.__exit__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def changed(self) -> None:
        """Return once an address came or went since the last return, a second later: DHCP needs several steps."""
        while True:
            gone = await self._told()
            await asyncio.sleep(SETTLE_S)
            now = await asyncio.to_thread(default_interfaces)
            if now != self._known or not gone.isdisjoint(self._known):
                self._known = now
                return

    async def _told(self) -> set[str]:
        """Wait for news from the kernel, at most ``POLL_S``; returns the addresses that were removed."""
        if self._socket is None:
            await asyncio.sleep(POLL_S)
            return set()
        try:
            receiving = asyncio.get_running_loop().sock_recv(self._socket, 1 << 16)
            return removed_addresses(await within(POLL_S, receiving))
        except asyncio.TimeoutError:
            return set()
        except OSError:  # ENOBUFS: more news than fitted, any address may have gone
            return set(self._known)


def removed_addresses(datagram: bytes) -> set[str]:
    """IPv4 addresses in the RTM_DELADDR messages of one rtnetlink datagram (rtnetlink(7))."""
    gone = set()
    at = 0
    while at + _NLMSG.size <= len(datagram):
        length, kind, *_ = _NLMSG.unpack_from(datagram, at)
        end = min(at + max(length, _NLMSG.size), len(datagram))
        attr = at + _NLMSG.size + _IFADDRMSG_BYTES
        while kind == _RTM_DELADDR and attr + _RTATTR.size <= end:
            size, name = _RTATTR.unpack_from(datagram, attr)
            if name == _IFA_LOCAL and size == _RTATTR.size + 4 and attr + size <= end:
                gone.add(str(ipaddress.IPv4Address(datagram[attr + _RTATTR.size : attr + size])))
            attr += (max(size, _RTATTR.size) + 3) & ~3
        at += (max(length, _NLMSG.size) + 3) & ~3
    return gone
