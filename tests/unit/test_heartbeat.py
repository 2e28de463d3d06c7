"""A node's own reports on the bus: how often, how soon after a change, the goodbye, and what they say."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from mesh import heartbeat as under_test
from mesh import subjects
from mesh.bus import Bus, BusMessage
from mesh.heartbeat import Heartbeat, Reporter
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.messages import Gauges, ModelLoad, Report, Work, decode_report
from tests.builders import a_model_load, a_report
from tests.nats import soon, until_state


class Listener:
    """Every report on the bus, with the moment it came."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.subjects: list[str] = []
        self.at: list[float] = []

    async def __call__(self, message: BusMessage) -> None:
        self.at.append(time.monotonic())
        self.subjects.append(message.subject)
        self.reports.put_nowait(decode_report(message.payload))

    async def next(self) -> Report:
        return await soon(self.reports.get())

    async def on(self, bus: Bus) -> Listener:
        await bus.subscribe(subjects.all_reports("*"), self)
        return self


def a_reporter(**fields: Any) -> Reporter:
    return Reporter(a_report(seq=0, models=(), **fields))


async def test_reports_come_by_themselves_with_growing_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PERIOD_S", 0.02)
    async with MemoryBus(MemoryBroker()) as bus:
        listener = await Listener().on(bus)
        async with Heartbeat(a_reporter(), bus, "key").running():
            heard = [await listener.next() for _ in range(5)]
    assert [r.seq for r in heard] == [1, 2, 3, 4, 5]
    assert {(r.node, r.site, r.mesh, r.ttl_ms, r.hop_key) for r in heard} == {("n1", "shop", "demo", 1500, "key")}


async def test_the_period_is_a_second_give_or_take_a_tenth() -> None:
    async with MemoryBus(MemoryBroker()) as bus:
        listener = await Listener().on(bus)
        async with Heartbeat(a_reporter(), bus, "").running():
            for _ in range(2):
                await listener.next()
    assert listener.at[1] - listener.at[0] >= 0.85  # a busy machine may only make it later


async def test_a_change_is_told_at_once_but_not_more_than_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PERIOD_S", 3600.0)  # nothing is heard by itself
    async with MemoryBus(MemoryBroker()) as bus:
        listener = await Listener().on(bus)
        heartbeat = Heartbeat(a_reporter(), bus, "")
        async with heartbeat.running():
            await listener.next()
            for _ in range(3):
                heartbeat.changed()
                await listener.next()
    gaps = [later - sooner for sooner, later in zip(listener.at, listener.at[1:], strict=False)]
    assert all(gap >= 0.2 for gap in gaps)


async def test_a_cloud_node_is_heard_where_it_stands_and_by_every_site() -> None:
    async with MemoryBus(MemoryBroker()) as bus:
        listener = await Listener().on(bus)
        async with Heartbeat(a_reporter(tier="cloud", site="paris"), bus, "").running():
            for _ in range(2):
                await listener.next()
    expected = {subjects.report("paris", "n1"), subjects.report(subjects.CLOUD_SITE, "n1")}
    assert set(listener.subjects) == expected


async def test_the_goodbye_is_the_last_word() -> None:
    async with MemoryBus(MemoryBroker()) as bus:
        listener = await Listener().on(bus)
        reporter = a_reporter()
        heartbeat = Heartbeat(reporter, bus, "")
        async with heartbeat.running():
            first = await listener.next()
            await heartbeat.goodbye()
            last = await listener.next()
    assert (first.state, last.state, reporter.state) == ("ready", "left", "left")
    assert last.seq > first.seq


async def test_an_outage_is_outlived_and_its_end_is_a_reason_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PERIOD_S", 3600.0)
    broker = MemoryBroker()
    async with MemoryBus(broker) as bus:
        listener = await Listener().on(bus)
        heartbeat = Heartbeat(a_reporter(), bus, "")
        async with heartbeat.running():
            before = await listener.next()
            broker.stop()
            heartbeat.changed()
            await heartbeat.goodbye()  # nobody hears it, and nothing fails
            broker.start()
            await until_state(bus, connected=True)
            after = await listener.next()
    assert after.seq > before.seq


def test_a_report_says_what_is_so_now() -> None:
    held: list[ModelLoad] = []
    reporter = Reporter(
        a_report(seq=0, state="starting"),
        models=lambda: tuple(held),
        work=lambda: Work(12.5, ((2, (10.0,)),)),
        uplink_bytes=lambda: 4096,
        gauges=lambda: Gauges(cpu_percent=50.0),
    )
    assert (reporter.report().models, reporter.report().state) == ((), "starting")
    held.append(a_model_load(in_flight=3))
    reporter.state = "ready"
    reporter.learn(http="10.0.0.1:8000")
    report = reporter.report()
    assert (report.state, report.http, report.wait_ms, report.gauges.cpu_percent) == (
        "ready", "10.0.0.1:8000", 12.5, 50.0,
    )  # fmt: skip
    assert report.models[0].in_flight == 3
    assert (report.queued, report.uplink_bytes) == (((2, (10.0,)),), 4096)
    load = reporter.load(held[0])
    assert load == msgspec.structs.replace(report.load("resnet", "1"), seq=report.seq + 1)
    unknown = reporter.load(None)
    assert (unknown.seq, unknown.in_flight, unknown.service_ms, unknown.work) == (report.seq + 2, 0, 0.0, load.work)
