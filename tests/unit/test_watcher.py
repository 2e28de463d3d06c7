"""What is heard of other nodes: whose reports count, by which way they came, and who is told of changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mesh import subjects
from mesh.bus import Bus, BusMessage
from mesh.membership import Change
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.messages import MAX_REPORT_BYTES, Report, encode_report
from mesh.watcher import Watcher
from tests.builders import a_load, a_report, an_identity
from tests.fakes import until
from tests.nats import soon


class Ear:
    """A watcher on a memory bus, and the changes it told of."""

    def __init__(self, watcher: Watcher, bus: Bus) -> None:
        self.watcher = watcher
        self._bus = bus
        self.changes: asyncio.Queue[Change] = asyncio.Queue()
        watcher.on_change(self.changes.put_nowait)

    async def say(self, report: Report, site: str = "") -> None:
        await self._bus.publish(subjects.report(site or report.site, report.node), encode_report(report))

    async def change(self) -> tuple[str, str | None, str]:
        change = await soon(self.changes.get())
        return change.node, change.old, change.new


@contextlib.asynccontextmanager
async def listening(*sites: str, mesh: str = "demo") -> AsyncIterator[Ear]:
    watcher = Watcher(mesh, "me")
    async with MemoryBus(MemoryBroker()) as bus, watcher.running(), watcher.subscribed(bus, sites or ("shop",)):
        yield Ear(watcher, bus)


async def test_a_report_on_the_bus_makes_a_node_known_there() -> None:
    async with listening() as ear:
        await ear.say(a_report("n1"))
        assert await ear.change() == ("n1", None, "ready")
        assert ear.watcher.on_bus("n1")
        assert not ear.watcher.on_bus("n2")


async def test_a_report_counts_under_its_own_nodes_subject_only() -> None:
    """So a bus that lets each node publish below its own name lets none speak for another."""
    async with listening() as ear:
        for subject in (
            subjects.report("shop", "n2"), subjects.report("other", "n1"), subjects.report(subjects.CLOUD_SITE, "n1")
        ):  # fmt: skip
            await ear.watcher._on_message(BusMessage(subject, encode_report(a_report("n1"))))
        assert ear.watcher.rejected == 3
        assert ear.watcher.membership.get("n1") is None
        await ear.say(a_report("n1", tier="cloud"), site=subjects.CLOUD_SITE)
        assert await ear.change() == ("n1", None, "ready")
        assert ear.watcher.rejected == 3


async def test_a_report_on_the_lan_says_nothing_about_the_bus() -> None:
    async with listening() as ear:
        assert ear.watcher.heard(a_report("n1"))
        assert await ear.change() == ("n1", None, "ready")
        assert not ear.watcher.on_bus("n1")


async def test_silence_makes_suspect_then_lost() -> None:
    async with listening() as ear:
        await ear.say(a_report("n1", ttl_ms=300))
        assert [await ear.change() for _ in range(3)] == [
            ("n1", None, "ready"),
            ("n1", "ready", "suspect"),
            ("n1", "suspect", "lost"),
        ]
        assert not ear.watcher.on_bus("n1")
        await ear.say(a_report("n1", seq=2, ttl_ms=60_000))
        assert await ear.change() == ("n1", "lost", "ready")


async def test_a_goodbye_counts_at_once_on_the_bus_too() -> None:
    async with listening() as ear:
        await ear.say(a_report("n1"))
        await ear.change()
        await ear.say(a_report("n1", seq=2, state="left"))
        assert await ear.change() == ("n1", "ready", "left")
        await until(lambda: not ear.watcher.on_bus("n1"))


async def test_other_meshes_and_ourselves_are_not_heard() -> None:
    async with listening() as ear:
        assert not ear.watcher.heard(a_report("n1", mesh="other"))
        assert not ear.watcher.heard(a_report("me"))
        await ear.say(a_report("n2", mesh="other"))
        await until(lambda: ear.watcher.rejected == 2)
        assert list(ear.watcher.membership.nodes()) == []


async def test_a_client_hears_every_mesh() -> None:
    async with listening(mesh="") as ear:
        assert ear.watcher.heard(a_report("n1", mesh="one"))
        assert ear.watcher.heard(a_report("n2", mesh="two"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b'{"node":"n1"}',
        encode_report(a_report("n1")).replace(b'"seq":1', b'"seq":"one"'),
        encode_report(a_report("n1")).replace(b'"tier":"edge"', b'"tier":"moon"'),
        encode_report(a_report("n1", v=2)),
        b" " * (MAX_REPORT_BYTES + 1),
        b"[" * 100_000,
    ],
    ids=["empty", "binary", "list", "short", "mistyped", "unknown tier", "version", "vast", "deep"],
)
async def test_what_is_no_report_is_counted_and_harms_nobody(payload: bytes) -> None:
    async with MemoryBus(MemoryBroker()) as bus:
        watcher = Watcher("demo", "me")
        async with watcher.running(), watcher.subscribed(bus, ("shop",)):
            await bus.publish(subjects.report("shop", "n1"), payload)
            await until(lambda: watcher.rejected == 1)
            await bus.publish(subjects.report("shop", "n2"), encode_report(a_report("n2")))
            await until(lambda: watcher.on_bus("n2"))
            assert watcher.membership.get("n1") is None


async def test_an_agent_hears_its_site_and_the_cloud_and_a_router_hears_all() -> None:
    async with listening("shop") as ear:
        await ear.say(a_report("elsewhere", site="depot"))
        await ear.say(a_report("cloud", tier="cloud", site="paris"), subjects.CLOUD_SITE)
        await ear.say(a_report("near", site="shop"))
        assert {(await ear.change())[0] for _ in range(2)} == {"cloud", "near"}
        assert ear.watcher.membership.get("elsewhere") is None
    async with listening("*") as ear:
        await ear.say(a_report("elsewhere", site="depot"))
        assert (await ear.change())[0] == "elsewhere"


async def test_leaving_the_bus_stops_hearing() -> None:
    async with MemoryBus(MemoryBroker()) as bus:
        watcher = Watcher("demo", "me")
        async with watcher.running():
            async with watcher.subscribed(bus, ("shop",)):
                pass
            heard = asyncio.Event()

            async def hear(_: object) -> None:
                heard.set()

            await bus.subscribe(subjects.all_reports("shop"), hear)
            await bus.publish(subjects.report("shop", "n1"), encode_report(a_report("n1")))
            await soon(heard.wait())
        assert watcher.membership.get("n1") is None


async def test_a_door_that_moves_is_told_though_the_state_is_the_same() -> None:
    async with listening() as ear:
        ear.watcher.heard(a_report("n1", http="10.0.0.1:1"))
        assert await ear.change() == ("n1", None, "ready")
        ear.watcher.heard(a_report("n1", seq=2, http="10.0.0.1:1"))
        ear.watcher.heard(a_report("n1", incarnation=2, http="10.0.0.1:2"))
        assert await ear.change() == ("n1", "ready", "ready")
        assert ear.changes.empty()


async def test_a_node_that_refuses_is_suspect_until_it_is_heard_and_replies_are_hearing() -> None:
    async with listening() as ear:
        ear.watcher.heard(a_report("n1"))
        ear.watcher.suspect("n1")
        ear.watcher.suspect("unknown")
        ear.watcher.observe("n1", a_load(seq=5, wait_ms=7.0), an_identity())
        changes = [await ear.change() for _ in range(3)]
        assert [new for _, _, new in changes] == ["ready", "suspect", "ready"]
        view = ear.watcher.membership.get("n1")
        assert view is not None
        assert view.report.wait_ms == 7.0


async def test_an_answer_over_the_bus_says_that_the_node_is_there_before_its_next_heartbeat() -> None:
    async with listening() as ear:
        ear.watcher.heard(a_report("n1"))  # over the LAN
        assert not ear.watcher.on_bus("n1")
        ear.watcher.answered_on_bus("n1")
        assert ear.watcher.on_bus("n1")
