"""A LAN of its own for a test: Linux network namespaces as hosts, joined by a bridge in one more namespace.

The host's own interfaces are never touched, and no address of the LAN (10.77.0.0/24) is visible outside it. Needs root
and ``ip``; mark tests with :data:`requires_netns`. Not here: what runs on the hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import pytest

T = TypeVar("T", bound=Callable[..., object])

_numbers = count()


def requires_netns(test: T) -> T:
    """Mark a test as one on namespaces, and skip it where there can be none."""
    able = os.geteuid() == 0 and shutil.which("ip") is not None
    skipping = pytest.mark.skipif(not able, reason="needs root and iproute2")
    marked: T = pytest.mark.netns(skipping(test))
    return marked


@dataclass(frozen=True)
class Host:
    """One namespace; its interface ``eth0`` is on the LAN."""

    namespace: str
    address: str
    switch: str
    port: str

    def plug(self, address: str = "") -> None:
        """Give the host a new ``eth0`` on the LAN."""
        _ip(f"-n {self.switch} link add {self.port} type veth peer name eth0 netns {self.namespace}")
        _ip(f"-n {self.switch} link set {self.port} master br0 up")
        self.add_address(address)
        self.ip("link set eth0 up")

    def unplug(self) -> None:
        """Remove ``eth0`` as a whole, like a dongle that is pulled."""
        self.ip("link del eth0")

    def command(self, *argv: str) -> list[str]:
        """``argv`` as it is run on this host."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def ip(self, arguments: str) -> None:
        """Run ``ip`` on this host, as in ``host.ip("link set eth0 down")``."""
        _ip(f"-n {self.namespace} {arguments}")

    def remove_address(self, address: str = "") -> None:
        self.ip(f"addr del {address or self.address}/24 dev eth0")

    def add_address(self, address: str = "") -> None:
        self.ip(f"addr add {address or self.address}/24 dev eth0")


@contextlib.contextmanager
def lan(hosts: int) -> Iterator[list[Host]]:
    """``hosts`` hosts at 10.77.0.1, .2, ..., gone on leaving; skips the test where that is denied."""
    prefix = f"imesh-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    made: list[str] = []
    try:
        _add(switch, made)
        _ip(f"-n {switch} link add br0 type bridge")
        _ip(f"-n {switch} link set br0 up")
        members = [Host(f"{prefix}-{n}", f"10.77.0.{n}", switch, f"port{n}") for n in range(1, hosts + 1)]
        for host in members:
            _add(host.namespace, made)
            host.ip("link set lo up")
            host.plug()
        yield members
    finally:
        for namespace in reversed(made):
            _ip(f"netns del {namespace}", check=False)


def _add(namespace: str, made: list[str]) -> None:
    done = _ip(f"netns add {namespace}", check=False)
    if done.returncode and "not permitted" in done.stderr:
        pytest.skip(f"namespaces are denied here: {done.stderr.strip()}")
    done.check_returncode()
    made.append(namespace)


def _ip(arguments: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {arguments}: {done.stderr.strip()}")
    return done
