"""The doors of other nodes that can be reached directly: probed, proven, measured.

A door found by zeroconf, named as a seed, or advertised in a report is only a hint (DESIGN D4). It becomes a way for
tensors once the node behind it answered ``GET /mesh/v1/report`` and proved by the site key or the bus that it is of
this mesh. Probes run every 250 ms while requests are exchanged, else every second; they keep the view alive where
there is no bus, and measure the round trip. Not here: zeroconf (``discovery``), the cryptography (``trust``), HTTP
(``hop_http``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from mesh.addresses import host_token, is_loopback
from mesh.errors import MeshError, NodeUnreachable
from mesh.lifecycle import Tasks, within
from mesh.link import Link
from mesh.membership import NodeView
from mesh.messages import Report
from mesh.trust import Trust
from mesh.watcher import Watcher

log = logging.getLogger(__name__)

BUSY_PERIOD_S = 0.25
IDLE_PERIOD_S = 1.0
BUSY_FOR_S = 10.0
RETRY_MAX_S = 15.0
PROBE_TIMEOUT_S = 2.0
MAX_DOORS = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a door said to a probe."""

    report: Report
    site_proof: str = ""
    bus_proof: str = ""
    rtt_ms: float = 0.0


class Prober(Protocol):
    async def probe(self, address: str, challenge: str, timeout_s: float) -> Answer:
        """``GET /mesh/v1/report``; raises ``MeshError``."""


@dataclass(slots=True)
class Door:
    """One address and what is known of it. ``node`` is empty until it first answered."""

    address: str
    node: str = ""
    incarnation: int = 0
    token: str = ""
    proven: bool = False
    used_at: float = -BUSY_FOR_S
    failures: int = 0
    warned: bool = False
    sources: set[str] = field(default_factory=set)
    link: Link = field(default_factory=Link)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Neighbours:
    """Finds out which doors work. ``trust`` None is the SDK's case: it believes the doors that it was told of."""

    def __init__(self, watcher: Watcher, prober: Prober, trust: Trust | None, me: str = "") -> None:
        self._watcher = watcher
        self._prober = prober
        self._trust = trust
        self._me = me
        self._host = host_token()
        self._doors: dict[str, Door] = {}
        self._tasks = Tasks("neighbours")
        self._by_node: dict[str, Door] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Neighbours]:
        self._watcher.on_change(lambda change: self._advertised(self._watcher.membership.get(change.node)))
        async with self._tasks:
            yield self

    def hear_of(self, address: str, source: str) -> None:
        """A door may stand at ``address``; ``source`` (a zeroconf id, "seed", a node) is what vouches for the hint."""
        door = self._doors.get(address)
        if door is None:
            if len(self._doors) >= MAX_DOORS:
                log.warning("more than %d doors are known, %s is ignored", MAX_DOORS, address)
                return
            door = self._doors[address] = Door(address)
            self._probing[address] = self._tasks.start(self._watch(door), f"probe {address}")
        door.sources.add(source)
        door.wake.set()

    def forget(self, source: str) -> None:
        """The hint is gone: ask at once, a node that leaves takes its announcement back before it closes its door.

        A door that nothing vouches for and that does not answer is dropped by its own loop.
        """
        for door in self._doors.values():
            if source in door.sources:
                door.sources.discard(source)
                door.wake.set()

    def direct(self, node: str) -> Door | None:
        """The node's proven door, if the last probe or request there succeeded and the node did not restart since."""
        door, view = self._by_node.get(node), self._watcher.membership.get(node)
        if door is None or not door.proven or door.node != node:
            return None
        return door if view is None or view.report.incarnation == door.incarnation else None

    def doors(self) -> list[Door]:
        return [door for door in self._doors.values() if door.proven]

    def used(self, door: Door) -> None:
        """A request went there: look more often for a while."""
        idle = time.monotonic() - door.used_at >= BUSY_FOR_S
        door.used_at = time.monotonic()
        if idle:
            door.wake.set()

    def broken(self, door: Door) -> None:
        """A connection failed: not a way any more until a probe succeeds, which is tried at once."""
        self._unproven(door)
        door.wake.set()

    async def settled(self, timeout_s: float) -> None:
        """Wait until each door known now was probed once (the SDK's start)."""
        pending = [door for door in self._doors.values() if not door.proven and not door.failures]
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, self._any_change(pending))

    async def _any_change(self, pending: list[Door]) -> None:
        while any(not d.proven and not d.failures for d in pending):  # noqa: ASYNC110 - start-up only, bounded above
            await asyncio.sleep(0.005)

    def _advertised(self, view: NodeView | None) -> None:
        """A report named a door: probe it, unless it is the loopback of another host."""
        if view is None or view.state in ("lost", "left") or not view.report.http:
            return
        for address in view.report.http.split(","):
            if not is_loopback(address) or view.report.host == self._host:
                self.hear_of(address, view.report.node)

    async def _watch(self, door: Door) -> None:
        while True:
            door.wake.clear()
            await self._probe(door)
            if door.failures and not self._vouched(door):
                self._drop(door)
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._pause_s(door), door.wake.wait())

    def _vouched(self, door: Door) -> bool:
        """Whether the door may come back: a node that lives still names it, or zeroconf or a seed does."""
        membership = self._watcher.membership
        views = [membership.get(source) for source in {door.node, *door.sources}]
        named = any(v and v.state not in ("lost", "left") and door.address in v.report.http.split(",") for v in views)
        return named or any(membership.get(source) is None for source in door.sources - {door.node})

    def _pause_s(self, door: Door) -> float:
        if door.failures:
            return float(min(IDLE_PERIOD_S * 2 ** min(door.failures - 1, 6), RETRY_MAX_S))
        busy = time.monotonic() - door.used_at < BUSY_FOR_S
        return BUSY_PERIOD_S if busy else IDLE_PERIOD_S

    async def _probe(self, door: Door) -> None:
        challenge = secrets.token_hex(16)
        try:
            answer = await self._prober.probe(door.address, challenge, PROBE_TIMEOUT_S)
        except MeshError as error:
            door.failures += 1
            self._unproven(door)
            reachable = self.direct(door.node) is not None or self._watcher.on_bus(door.node)
            if isinstance(error, NodeUnreachable) and door.node and not reachable:
                self._watcher.suspect(door.node)
            return
        door.failures = 0
        report = answer.report
        if report.node == self._me:
            door.sources.clear()
            door.failures = 1  # our own door: drop it
            return
        if not self._believe(door, answer, challenge) or not self._watcher.heard(report):
            self._unproven(door)
            return
        door.link.pinged(answer.rtt_ms)
        door.node, door.incarnation = report.node, report.incarnation
        door.proven = report.state != "left"
        self._keep_best(door)
        self._watcher.news(door.node)

    def _keep_best(self, door: Door) -> None:
        """Of several doors of one node keep the first that works."""
        if self.direct(door.node) is None:
            self._by_node[door.node] = door

    def _unproven(self, door: Door) -> None:
        """Not a way now; another door of the node takes its place."""
        door.proven = False
        if self._by_node.get(door.node) is door:
            others = (other for other in self._doors.values() if other.proven and other.node == door.node)
            self._by_node[door.node] = next(others, door)
        self._watcher.news(door.node)

    def _believe(self, door: Door, answer: Answer, challenge: str) -> bool:
        if self._trust is None:
            return True
        report = answer.report
        view = self._watcher.membership.get(report.node)
        known = view.report.hop_key if view is not None and view.report.incarnation == report.incarnation else ""
        by_site = self._trust.proves(challenge, report.node, report.incarnation, site=answer.site_proof)
        proven = by_site or self._trust.proves(
            challenge, report.node, report.incarnation, bus=answer.bus_proof, hop_key=known
        )
        hop_key = None if by_site else known  # whoever reads the bus knows that one
        token = self._trust.token_for(report.node, report.incarnation, hop_key) if proven else None
        if token is None:
            if not door.warned and report.mesh == self._trust.mesh:
                door.warned = True
                log.warning(
                    "node %s at %s did not prove that it is of mesh %s: give both the same site.key, or the same bus",
                    report.node, door.address, self._trust.mesh,
                )  # fmt: skip
            return False
        door.token = token
        door.warned = False
        return True

    def _drop(self, door: Door) -> None:
        self._doors.pop(door.address, None)
        self._probing.pop(door.address, None)
        if self._by_node.get(door.node) is door:
            del self._by_node[door.node]
