"""This node's own reports: composed on demand, and published on the bus as its heartbeat.

1 Hz with 10 % jitter, at once on a change but at most 4 Hz, a goodbye on leaving (DESIGN section 3). Not here: what
others say (``watcher``), the LAN form (``http_pages`` asks for the same report).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from mesh import subjects
from mesh.bus import Bus
from mesh.errors import BusUnavailable, PayloadTooLarge
from mesh.lifecycle import Tasks, within
from mesh.messages import Gauges, Load, ModelLoad, Report, Work, encode_report

log = logging.getLogger(__name__)

PERIOD_S = 1.0
JITTER = 0.1
MIN_PERIOD_S = 0.25
TTL_MS = 1500
GOODBYE_S = 1.0


class Reporter:
    """Composes reports. ``facts`` is the report's unchanging part; the rest is asked for at each one."""

    def __init__(
        self,
        facts: Report,
        *,
        models: Callable[[], tuple[ModelLoad, ...]] = tuple,
        work: Callable[[], Work] = Work,
        gauges: Callable[[], Gauges] = Gauges,
        capacity: Callable[[], float] = lambda: 1.0,
        uplink_bytes: Callable[[], int] = int,
    ) -> None:
        self._facts = facts
        self._models = models
        self._work = work
        self._gauges = gauges
        self._capacity = capacity
        self._uplink_bytes = uplink_bytes
        self._seq = facts.seq
        self.state = facts.state

    @property
    def facts(self) -> Report:
        return self._facts

    def learn(self, **facts: str) -> None:
        """Facts that are known late: the bound door, the bus."""
        self._facts = msgspec.structs.replace(self._facts, **facts)

    def report(self) -> Report:
        """This node now; each call takes the next sequence number."""
        self._seq += 1
        work = self._work()
        return msgspec.structs.replace(
            self._facts,
            seq=self._seq,
            state=self.state,
            wait_ms=work.wait_ms,
            queued=work.queued,
            uplink_bytes=self._uplink_bytes(),
            capacity=self._capacity(),
            models=self._models(),
            gauges=self._gauges(),
        )

    def load(self, model: ModelLoad | None) -> Load:
        """The small report for one exchange, seen from one model; None is one that is not here."""
        self._seq += 1
        work = self._work()
        in_flight, service_ms, row_ms = (model.in_flight, model.service_ms, model.row_ms) if model else (0, 0.0, 0.0)
        return Load(
            self._facts.incarnation, self._seq, self.state, work.wait_ms, in_flight, service_ms, row_ms,
            self._uplink_bytes(), work.queued,
        )  # fmt: skip


class Heartbeat:
    """Publishes the reports of this node on the control connection while running."""

    def __init__(self, reporter: Reporter, bus: Bus, hop_key: str) -> None:
        self._reporter = reporter
        self._bus = bus
        self._hop_key = hop_key
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something others should know changed: report soon."""
        self._changed.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Heartbeat]:
        stop_listening = self._bus.on_state(lambda _: self.changed())
        async with Tasks("heartbeat") as tasks:
            tasks.start(self._beat(), "beat")
            try:
                yield self
            finally:
                stop_listening()

    async def goodbye(self) -> None:
        """Tell everybody that this node leaves on purpose."""
        self._reporter.state = "left"
        await self._publish()
        with contextlib.suppress(BusUnavailable, asyncio.TimeoutError):  # a bus that hangs must not hold up the drain
            await within(GOODBYE_S, self._bus.flush())

    async def _beat(self) -> None:
        while True:
            self._changed.clear()
            sent = time.monotonic()
            await self._publish()
            pause_s = PERIOD_S * random.uniform(1 - JITTER, 1 + JITTER)
            with contextlib.suppress(asyncio.TimeoutError):
                await within(pause_s, self._changed.wait())
                await asyncio.sleep(max(MIN_PERIOD_S - (time.monotonic() - sent), 0))

    async def _publish(self) -> None:
        if not self._bus.connected:
            return
        report = msgspec.structs.replace(self._reporter.report(), hop_key=self._hop_key)
        payload = encode_report(report)
        sites = {report.site, subjects.CLOUD_SITE} if report.tier == "cloud" else {report.site}
        try:
            for site in sites:
                await self._bus.publish(subjects.report(site, report.node), payload)
        except BusUnavailable:
            log.debug("a heartbeat was not sent: the bus is gone")
        except PayloadTooLarge as error:
            log.error("this node holds more models than one report can name, others do not see it: %s", error.text)
