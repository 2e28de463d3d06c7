"""The loop that feeds :class:`mesh.membership.Membership`: reports from the bus and the LAN in, state changes out.

Not here: how nodes are judged (``membership``, pure), who probes doors (``neighbours``), what our own report says
(``heartbeat``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from mesh import subjects
from mesh.bus import Bus, BusMessage, Subscription
from mesh.errors import ProtocolError
from mesh.lifecycle import Tasks, within
from mesh.membership import Change, Membership
from mesh.messages import Load, Report, decode_report
from mesh.subjects import CLOUD_SITE, parse_node
from mesh.values import ModelIdentity

log = logging.getLogger(__name__)

Listener = Callable[[Change], None]

HEARD_S = 1.2
"""In so many seconds every node on a bus is heard: a heartbeat's period, its jitter, and some time under way."""


class Watcher:
    """Keeps the view of the mesh as seen from this node. Times are seconds of :func:`time.monotonic`.

    ``mesh`` is the only mesh id that is heard; the SDK's is empty, which hears whatever its doors say.
    """

    def __init__(self, mesh: str, me: str = "") -> None:
        self.membership = Membership()
        self.rejected = 0
        """Reports that did not decode, were of another mesh or came as another node's."""
        self._mesh = mesh
        self._me = me
        self._bus_heard: dict[str, float] = {}
        self._connected_at = -HEARD_S
        self._listeners: list[Listener] = []
        self._readers: list[Callable[[str], None]] = []
        self._moved = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Watcher]:
        async with Tasks("watcher") as tasks:
            tasks.start(self._expire(), "expire")
            yield self

    @contextlib.asynccontextmanager
    async def subscribed(self, bus: Bus, sites: tuple[str, ...]) -> AsyncIterator[None]:
        """Hear the reports of ``sites`` ("*" for all) on the bus; cloud nodes are always heard."""
        wanted = ("*",) if "*" in sites else tuple(dict.fromkeys((*sites, subjects.CLOUD_SITE)))
        held: list[Subscription] = []
        remove = bus.on_state(self._on_state)
        self._on_state(bus.connected)
        try:
            for site in wanted:
                held.append(await bus.subscribe(subjects.all_reports(site), self._on_message))  # noqa: PERF401
            yield
        finally:
            remove()
            for subscription in held:
                await subscription.unsubscribe()

    def keep_to(self, mesh: str) -> None:
        """Hear no other mesh from now on."""
        self._mesh = mesh

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def on_news(self, reader: Callable[[str], None]) -> None:
        """``reader`` is told the node's name whenever anything about a node is new: figures, state, its door, or
        that it is forgotten."""
        self._readers.append(reader)

    def news(self, node: str) -> None:
        """Something about the node is new."""
        for reader in self._readers:
            reader(node)

    def heard(self, report: Report) -> bool:
        """Take a report whose sender is proven; False if it is of another mesh, or our own.

        Listeners are told of a change of its state or doors.
        """
        if self._mesh and report.mesh != self._mesh:
            self.rejected += 1
            return False
        if report.node == self._me:
            return False
        known = self.membership.get(report.node)
        change = self.membership.apply(report, time.monotonic())
        now = self.membership.get(report.node)
        if change is None and known is not None and now is not None and now.report.http != known.report.http:
            change = Change(report.node, known.state, now.state)  # so quick a restart that nobody missed it
        self._tell(change)
        self.news(report.node)
        return True

    def observe(self, node: str, load: Load, model: ModelIdentity | None) -> None:
        """A load report that rode on a reply, a refusal or a request of ``node``, which is proven."""
        self._tell(self.membership.observe(node, load, model, time.monotonic()))
        self.news(node)

    def suspect(self, node: str) -> None:
        """The node did not take a request: send nothing there until it is heard again."""
        self._tell(self.membership.suspect(node, time.monotonic()))
        self.news(node)

    def answered_on_bus(self, node: str) -> None:
        """The node answered over the bus. After an outage that is often sooner than its next heartbeat."""
        self._bus_heard[node] = time.monotonic()

    def on_bus(self, node: str) -> bool:
        """Whether the node's own heartbeat or an answer came over the bus lately (within its ttl three times over)."""
        view = self.membership.get(node)
        heard = self._bus_heard.get(node)
        return view is not None and heard is not None and time.monotonic() - heard < 3e-3 * view.report.ttl_ms

    def unheard_s(self) -> float:
        """Seconds until every node on the bus was heard since that is connected; 0 once they were."""
        return max(self._connected_at + HEARD_S - time.monotonic(), 0.0)

    def _on_state(self, connected: bool) -> None:
        if connected:
            self._connected_at = time.monotonic()

    async def _on_message(self, message: BusMessage) -> None:
        try:
            report = decode_report(message.payload)
            _check_subject(message.subject, report)
        except ProtocolError as error:
            self.rejected += 1
            log.debug("ignored a report on %s: %s", message.subject, error.text)
            return
        if self.heard(report):
            if report.state == "left":
                self._bus_heard.pop(report.node, None)
            else:
                self._bus_heard[report.node] = time.monotonic()

    def _tell(self, change: Change | None) -> None:
        self._moved.set()
        if change is None:
            return
        log.info("node %s is %s (was %s)", change.node, change.new, change.old or "unknown")
        for listener in self._listeners:
            listener(change)

    async def _expire(self) -> None:
        while True:
            self._moved.clear()
            at = self.membership.next_expiry()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(None if at is None else max(at - time.monotonic(), 0.0), self._moved.wait())
                # Many reports move the next expiry only later: look again at most every 50 ms.
                await asyncio.sleep(0.05)
            self.expire(time.monotonic())

    def expire(self, now: float) -> None:
        """Judge at the monotonic second ``now`` who has been silent for too long, and tell of it."""
        for change in self.membership.expire(now):
            if change.new == "lost":
                self._bus_heard.pop(change.node, None)
            self._tell(change)
            self.news(change.node)
        for node in self.membership.forgotten:
            self._bus_heard.pop(node, None)
            self.news(node)


def _check_subject(subject: str, report: Report) -> None:
    """Raises ``ProtocolError`` for a report that came under the name of another node: a bus may let each publish under
    its own alone."""
    at, cloud = parse_node(subject), report.tier == "cloud" and CLOUD_SITE
    if at.node != report.node or at.site not in (report.site, cloud):
        raise ProtocolError("it is not of the node whose subject it came on")
