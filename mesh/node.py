"""What every serving process of the mesh has: the view, the router, the doors, discovery and the bus, put together.

The agent adds the models it runs (``edge.agent``), the cloud router the subject of applications (``cloud.app``). A node
serves with no bus at all and joins one when it learns of it. Not here: any of the parts themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib.metadata import version

from mesh.addresses import AddressWatch, advertised, host_token, is_loopback, is_wildcard, parse
from mesh.balancer import Policy
from mesh.bus_door import BusDoor
from mesh.dataplane import Dataplane, Identity
from mesh.discovery import Announcement, Discovery, Found
from mesh.heartbeat import TTL_MS, Heartbeat, Reporter
from mesh.holdings import Holdings
from mesh.hop_bus import BusHop
from mesh.hop_http import HttpClient
from mesh.inquiry import Inquiry
from mesh.lifecycle import Tasks
from mesh.listening import Listening, listening, on_this_host_only
from mesh.messages import Report
from mesh.metrics import Measured
from mesh.mqtt_door import MqttDoor
from mesh.nats_bus import NatsBus, NatsOptions
from mesh.nats_connection import check_url, place
from mesh.nats_discovery import NatsDiscovery
from mesh.neighbours import IDLE_PERIOD_S, Neighbours
from mesh.node_id import NodeIdentity
from mesh.node_metrics import node_metrics
from mesh.oip.wire import Limits
from mesh.pins import Place
from mesh.repositories import Opened
from mesh.router import Router
from mesh.rules import RULES, Ours, Rule
from mesh.sequence_doors import SequenceDoors
from mesh.settings import MeshSettings
from mesh.subjects import CLOUD_SITE
from mesh.trust import Trust
from mesh.view import View
from mesh.watcher import Watcher
from mesh.ways import HERE, NodeWays

log = logging.getLogger(__name__)

SEEK_BUS_S = 1.0
BUS_HANDLERS = 4096
VERSION = version("inference-mesh")  # read from disk, so not on the loop


class Node:
    """Enter :meth:`running` to serve; then :meth:`drain` and leave."""

    def __init__(self, settings: MeshSettings, identity: NodeIdentity, role: str, holdings: Holdings) -> None:
        self.settings = settings
        self.name = settings.node.name or _default_name(identity)
        self.site = settings.site.name or (CLOUD_SITE if settings.node.tier == "cloud" else "default")
        self._identity = identity
        self._role = role
        mesh = settings.site.mesh
        self.trust = Trust(mesh, self.name, identity.incarnation, settings.site.secret())
        self.watcher = Watcher(mesh, self.name)
        self._http = HttpClient(self.name, load=lambda identity: self.dataplane.load(identity))
        self.neighbours = Neighbours(self.watcher, self._http, self.trust, self.name)
        view = View(self.name, self.watcher, holdings.local)
        here = Place(self.name, self.site, settings.site.region, settings.node.tier)
        self._ways = NodeWays(view, self.neighbours, self._http, here, settings.router.max_hops)
        self._router = Router(
            view=view,
            ways=self._ways,
            neighbours=self.neighbours,
            rule=self._rule(),
            retry_ratio=settings.router.retry_ratio,
        )
        self.reporter = self._reports_of(holdings)
        self.dataplane = self._dataplane_of(view, holdings)
        self.bound = Listening("")
        """Where the doors are, while they are open."""
        self._tasks = Tasks("node")
        self._heartbeat: Heartbeat | None = None
        self._bus_door: BusDoor | None = None
        self._mqtt_door: MqttDoor | None = None
        self._serve_applications = role == "router"

    def _dataplane_of(self, view: View, holdings: Holdings) -> Dataplane:
        settings = self.settings
        return Dataplane(
            identity=Identity(self.name, settings.http.server_name, VERSION),
            router=self._router,
            view=view,
            trust=self.trust,
            reporter=self.reporter,
            still_coming=holdings.coming,
            deadline_ms=settings.router.deadline_ms,
            limits=Limits(max_body_bytes=settings.http.max_body_bytes),
            sequences=settings.sequences,
            inquiry=Inquiry(view, self._ways),
            shared_memory=settings.http.shared_memory,
            repository=holdings.repository,
            opened=Opened(settings.http.repository or on_this_host_only(settings), settings.nats.repository),
            metrics=lambda: self._metrics(holdings),
        )

    def _rule(self) -> Rule:
        router = self.settings.router
        if router.policy == "ours":
            return Ours(Policy(near_budget=router.near_budget))
        return RULES[router.policy]()

    def _metrics(self, holdings: Holdings) -> Iterator[Measured]:
        yield from node_metrics(self.dataplane, self._router, self._ways)
        yield from holdings.metrics()

    def _reports_of(self, holdings: Holdings) -> Reporter:
        facts = Report(
            node=self.name,
            site=self.site,
            mesh=self.settings.site.mesh,
            tier=self.settings.node.tier,
            role=self._role,
            incarnation=self._identity.incarnation,
            seq=0,
            ttl_ms=TTL_MS,
            state="starting",
            region=self.settings.site.region,
            host=host_token(),
        )
        return Reporter(
            facts,
            models=holdings.models,
            work=holdings.work,
            gauges=holdings.gauges,
            capacity=holdings.capacity,
            uplink_bytes=lambda: self._ways.wires.uplink_bytes(time.monotonic()),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve; yields the bound HOST:PORT of the HTTP door."""
        settings = self.settings
        for url in settings.nats.urls():
            check_url(url)  # now, not in the task that dials: that one's failure ends no process
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.dataplane.shared_memory.close)
            await stack.enter_async_context(self.watcher.running())
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self.neighbours.running())
            await stack.enter_async_context(self.dataplane.cascades.running())
            await stack.enter_async_context(self.dataplane.sequencer.running())
            bound = self.bound = await stack.enter_async_context(listening(self.dataplane, settings))
            doors = advertised(bound.http, settings.http.advertise)
            self.reporter.learn(http=",".join(doors))
            for seed in settings.discovery.seeds:
                self.neighbours.hear_of(seed, "seed")
            if settings.discovery.enabled and doors:
                await stack.enter_async_context(self._discovery(doors))
            await stack.enter_async_context(self._tasks)
            self._tasks.start(self._bus(settings.nats.urls()), "bus")
            if self._everywhere:
                self._tasks.start(self._follow_addresses(bound.http), "addresses")
            yield bound.http

    def changed(self) -> None:
        """The holdings changed: tell the mesh, and be ready once nothing is on its way any more."""
        if self.reporter.state == "starting" and self.dataplane.ready():
            self.reporter.state = "ready"
        if self._heartbeat is not None:
            self._heartbeat.changed()

    async def drain(self) -> None:
        """Lame duck: say goodbye, take nothing new, finish what is in flight, at most for the grace."""
        grace_s, started = self.settings.http.grace_s, time.monotonic()
        self.dataplane.serving = False
        self.reporter.state = "left"
        if self._heartbeat is not None:
            await self._heartbeat.goodbye()
        doors = [door for door in (self._bus_door, self._mqtt_door) if door is not None]
        for door in doors:
            await door.leave()
        left = await self.dataplane.idle(grace_s)
        for door in doors:
            await door.finished(grace_s - (time.monotonic() - started))
        if left:
            log.warning("%d requests were still in flight when the grace of %g s ended", left, grace_s)
        if any(self._looks(door.node) for door in self.neighbours.doors()):
            # Neighbours without a bus hear of it when they look next, so the door stays open until then.
            await asyncio.sleep(min(2 * IDLE_PERIOD_S, grace_s) - (time.monotonic() - started))

    def _looks(self, node: str) -> bool:
        """Whether a neighbour is there and learns of us by looking only."""
        view = self.watcher.membership.get(node)
        return view is not None and view.state not in ("lost", "left") and not self.watcher.on_bus(node)

    @property
    def _everywhere(self) -> bool:
        """Bound to every interface, so that the doors are what the interfaces have at the moment."""
        http = self.settings.http
        return not http.advertise and is_wildcard(http.listen)

    async def _follow_addresses(self, bound: str) -> None:
        """A box that boots before its network has none of its addresses yet; a laptop changes them."""
        with AddressWatch() as watch:
            while True:
                await watch.changed()
                self.reporter.learn(http=",".join(advertised(bound, "")))

    def _discovery(self, doors: tuple[str, ...]) -> Discovery:
        port = int(doors[0].rpartition(":")[2])
        announce = Announcement(
            id=self._identity.id,
            node=self.name,
            mesh=self.settings.site.mesh,
            site=self.site,
            tier=self.settings.node.tier,
            role=self._role,
            http=port,
            grpc=self.bound.grpc_port,
            fingerprint=self.trust.fingerprint,
            addresses=() if self._everywhere else tuple(parse(d)[0] for d in doors),
        )
        loopback = not self._everywhere and all(is_loopback(d) for d in doors)
        return Discovery(
            announce=announce,
            on_found=self._on_found,
            on_gone=self.neighbours.forget,
            interfaces=("127.0.0.1",) if loopback else None,
        )

    def _on_found(self, found: Found) -> None:
        if found.mesh == self.settings.site.mesh:
            self.neighbours.forget(found.id)  # where it was announced before
            for address in found.addresses:
                self.neighbours.hear_of(address, found.id)

    async def _bus(self, urls: tuple[str, ...]) -> None:
        """Stand on the bus for as long as the node runs, once one is known."""
        urls = urls or await self._seek_bus()
        nats = self.settings.nats
        options = NatsOptions(
            urls=urls,
            name=self.name,
            user=nats.user,
            password=nats.password.get_secret_value() if nats.password else "",
            token=nats.token.get_secret_value() if nats.token else "",
            creds_file=nats.creds_file,
        )
        self.reporter.learn(nats=",".join(place(url) for url in urls))
        async with contextlib.AsyncExitStack() as stack:
            control = await stack.enter_async_context(NatsBus(options))
            # Far more than an agent's queue takes, so that it is the queue that refuses: what waits in front of it is
            # invisible to everybody.
            tensors = await stack.enter_async_context(NatsBus(replace(options, handler_limit=BUS_HANDLERS)))
            sites = ("*",) if self._role == "router" else (self.site,)
            await stack.enter_async_context(self.watcher.subscribed(control, sites))
            self._heartbeat = Heartbeat(self.reporter, control, self.trust.hop_key)
            await stack.enter_async_context(self._heartbeat.running())
            steps = SequenceDoors(tensors, self._ways.place(HERE), self.dataplane.sequencer, self.dataplane.view)
            await stack.enter_async_context(steps.listening())
            self.dataplane.steps = steps
            door = self._bus_door = BusDoor(self.dataplane, tensors)
            await stack.enter_async_context(door.serving_node(self.site, self.name))
            if self._serve_applications:
                await stack.enter_async_context(door.serving_applications())
            if self.settings.mqtt.enabled and self._role != "router":
                devices = self._mqtt_door = MqttDoor(self.dataplane, tensors, self.settings.mqtt)
                await stack.enter_async_context(devices.serving(self.site))
            shown = NatsDiscovery(self.dataplane, control, f"{self._identity.id}{self._identity.incarnation}")
            await stack.enter_async_context(shown.serving())
            self._ways.join_bus(tensors, BusHop(tensors, self.name, self.dataplane.load, self.trust))
            await asyncio.Event().wait()

    async def _seek_bus(self) -> tuple[str, ...]:
        """Wait until a proven neighbour names the bus it is on, or take the one cached from last time."""
        started = time.monotonic()
        while True:
            for view in self.watcher.membership.nodes():
                report = view.report
                if report.nats and (report.host == host_token() or not is_loopback(report.nats.rpartition("//")[2])):
                    log.info("joining the bus %s, named by neighbour %s", report.nats, report.node)
                    self._identity.remember_bus(report.nats)
                    return tuple(report.nats.split(","))
            cached = self._identity.known_bus()
            if cached and time.monotonic() - started > 3 * SEEK_BUS_S:
                log.info("looking for the bus where it was last time: %s", cached)
                return tuple(cached.split(","))
            await asyncio.sleep(SEEK_BUS_S)


def _default_name(identity: NodeIdentity) -> str:
    host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname().split(".")[0]).strip("-_")
    return f"{host or 'node'}-{identity.id[:6]}"
