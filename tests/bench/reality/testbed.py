"""The testbed's wires: a network namespace for each node, a bridge for each site, narrow wires from there to the cloud.

Site s is 10.77.s.0/24. Its border holds the bridge (.254), and the far address (10.79.0.1), where the cloud's door and
the bus are found from inside; a proxy there carries on to the cloud's own addresses. The cloud's network (site number
one above the last) is a bridge of its own, whose border holds the bus. Between the borders ``tbf`` shapes both
directions. Nothing of the host is touched. Needs root and iproute2. Not here: what runs on them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FAR = "10.79.0.1"
PREFIX = "reality"
BURST_BYTES = 4 * 1024
"""What an idle wire lets through at once: two packets, else short transfers would be faster than the rate."""
QUEUE_BYTES = 4 * 1024 * 1024
"""A queue that never overflows, so that TCP is never told to slow down by a loss: senders wait instead."""
_NAME = re.compile(rf"^{PREFIX}-(\d+)-")


class Denied(Exception):
    """Namespaces or shaping cannot be had here."""


@dataclass(frozen=True)
class Space:
    """One namespace and its address on its site's network."""

    name: str
    address: str

    def command(self, *argv: str) -> list[str]:
        """``argv`` as it is run there."""
        return ["ip", "netns", "exec", self.name, *argv]


@dataclass(frozen=True)
class Bed:
    """``nodes`` site by site, the cloud's last; ``borders`` one for each site, the cloud's last."""

    nodes: list[Space]
    borders: list[Space]

    @property
    def core(self) -> Space:
        return self.borders[-1]

    def wan_bytes(self) -> int:
        """Bytes that the wires between sites and cloud have carried, both ways, headers included."""
        return sum(_counter(border, f"{way}_bytes") for border in self.borders[:-1] for way in ("rx", "tx"))


@contextlib.contextmanager
def laid(sites: Sequence[int], up_mbit: float, down_mbit: float) -> Iterator[Bed]:
    """``sites`` are the nodes of each site, the cloud's last. Raises ``Denied``; all is gone on leaving."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        raise Denied("needs root and iproute2 (ip and tc)")
    _clear_dead()
    made: list[str] = []
    try:
        yield _lay(sites, up_mbit, down_mbit, made)
    finally:
        for name in reversed(made):
            _run("ip", f"netns del {name}", check=False)


def _lay(sites: Sequence[int], up_mbit: float, down_mbit: float, made: list[str]) -> Bed:
    borders = [_border(site, made) for site in range(len(sites))]
    core = borders[-1]
    nodes = [
        _node(site, number, borders[site], made) for site, count in enumerate(sites) for number in range(1, count + 1)
    ]
    for site, border in enumerate(borders[:-1]):
        _wan(site, border, core, up_mbit, down_mbit)
    return Bed(nodes, borders)


def _border(site: int, made: list[str]) -> Space:
    space = Space(f"{PREFIX}-{os.getpid()}-border{site}", f"10.77.{site}.254")
    _add(space.name, made)
    _in(space, "link add br0 type bridge")
    _in(space, f"addr add {space.address}/24 dev br0")
    _in(space, f"addr add {FAR}/32 dev br0")
    _in(space, "link set br0 up")
    return space


def _node(site: int, number: int, border: Space, made: list[str]) -> Space:
    space = Space(f"{PREFIX}-{os.getpid()}-{site}n{number}", f"10.77.{site}.{number}")
    _add(space.name, made)
    _in(border, f"link add port{number} type veth peer name eth0 netns {space.name}")
    _in(border, f"link set port{number} master br0 up")
    _in(space, f"addr add {space.address}/24 dev eth0")
    _in(space, "link set eth0 up")
    _in(space, f"route add default via {border.address}")
    return space


def _wan(site: int, border: Space, core: Space, up_mbit: float, down_mbit: float) -> None:
    """One wire; each end shapes what it sends."""
    _in(border, f"link add wan type veth peer name wan{site} netns {core.name}")
    for end, device, address, mbit in (
        (border, "wan", f"10.78.{site}.1", up_mbit),
        (core, f"wan{site}", f"10.78.{site}.2", down_mbit),
    ):
        _in(end, f"addr add {address}/30 dev {device}")
        _in(end, f"link set {device} up")
        rate = f"rate {round(mbit * 1e6)}bit burst {BURST_BYTES} limit {QUEUE_BYTES}"
        _run("tc", f"-n {end.name} qdisc add dev {device} root tbf {rate}")
    cloud = core.address.rpartition(".")[0]
    _in(border, f"route add {cloud}.0/24 via 10.78.{site}.2")
    _forwards(core)


def _forwards(space: Space) -> None:
    command = space.command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    subprocess.run(command, check=True, timeout=30)


def _add(name: str, made: list[str]) -> None:
    done = _run("ip", f"netns add {name}", check=False)
    if done.returncode:
        raise Denied(f"namespaces are denied here: {done.stderr.strip()}")
    made.append(name)
    _run("ip", f"-n {name} link set lo up")  # its own


def _in(space: Space, arguments: str) -> None:
    _run("ip", f"-n {space.name} {arguments}")


def _run(program: str, arguments: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([program, *arguments.split()], capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        raise Denied(f"{program} {arguments}: {done.stderr.strip()}")
    return done


def _counter(space: Space, name: str) -> int:
    path = f"/sys/class/net/wan/statistics/{name}"
    done = subprocess.run(space.command("cat", path), capture_output=True, text=True, check=True, timeout=30)
    return int(done.stdout)


def _clear_dead() -> None:
    """Remove what a run that was killed has left."""
    for line in _run("ip", "netns list", check=False).stdout.splitlines():
        match = _NAME.match(line)
        if match and not Path(f"/proc/{match[1]}").exists():
            _run("ip", f"netns del {line.split()[0]}", check=False)
