"""Discovery between real processes, on loopback and between namespaces. Run as a module it is one such process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mesh.discovery import TYPE, Announcement, Discovery, Found, browse
from tests.netns import Host, lan, requires_netns

ROOT = Path(__file__).parents[2]
LOOPBACK = ("127.0.0.1",)
PATIENCE_S = 40.0


def an_announcement(node: str, id_: str = "", **fields: Any) -> Announcement:
    defaults: dict[str, Any] = {"mesh": "demo", "site": "shop", "tier": "edge", "role": "agent", "http": 8001}
    return Announcement(id=id_ or uuid.uuid4().hex, node=node, **(defaults | fields))


class Peer:
    """A process that runs one ``Discovery`` and prints what it finds, a JSON line for each event."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that is ``wanted``, one of the past included."""
        for event in self.events:
            if wanted(event):
                return event
        assert self._process.stdout is not None
        while True:
            line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)
            assert line, f"the process ended; it had found {self.events}"
            self.events.append(json.loads(line))
            if wanted(self.events[-1]):
                return self.events[-1]

    async def finds(self, node: str, **fields: Any) -> dict[str, Any]:
        fields["node"] = node
        return await self.until(lambda e: e["event"] == "found" and all(e[k] == v for k, v in fields.items()))

    async def finds_again(self, node: str) -> None:
        """Once more than in all events read before."""
        times = sum(e.get("node") == node for e in self.events)
        await self.until(lambda e: sum(one.get("node") == node for one in self.events) > times)

    async def loses(self, id_: str) -> None:
        await self.until(lambda e: e["event"] == "gone" and e["id"] == id_)

    def lost(self, id_: str) -> bool:
        return any(e["event"] == "gone" and e["id"] == id_ for e in self.events)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        await asyncio.wait_for(self._process.communicate(), PATIENCE_S)
        assert self._process.returncode is not None
        return self._process.returncode


@contextlib.contextmanager
def _taken(host: Host) -> Iterator[None]:
    """The mDNS port of ``host``, held by a process that does not share it."""
    hold = "import socket, sys; s = socket.socket(type=2); s.bind(('', 5353)); print(flush=True); sys.stdin.read()"
    command = host.command(sys.executable, "-c", hold)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
        process.kill()


@contextlib.asynccontextmanager
async def a_peer(
    announce: Announcement | None, *, host: Host | None = None, interfaces: tuple[str, ...] | None = None
) -> AsyncIterator[Peer]:
    argv = [sys.executable, "-m", __name__, json.dumps([announce and asdict(announce), interfaces])]
    process = await asyncio.create_subprocess_exec(
        *(host.command(*argv) if host else argv), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    peer = Peer(process)
    try:
        await peer.until(lambda e: e["event"] == "ready")
        yield peer
    finally:
        await peer.stop()


async def test_two_processes_of_one_host_find_each_other_and_a_goodbye_counts_at_once() -> None:
    here, there = (an_announcement(f"n{n}", addresses=LOOPBACK, http=8000 + n) for n in (1, 2))
    async with a_peer(here, interfaces=LOOPBACK) as one, a_peer(there, interfaces=LOOPBACK) as two:
        assert (await one.finds("n2", id=there.id))["addresses"] == ["127.0.0.1:8002"]
        assert (await two.finds("n1", id=here.id))["addresses"] == ["127.0.0.1:8001"]
        assert await two.stop() == 0
        await one.loses(there.id)
        assert not any(e.get("id") == here.id for e in one.events), "a node found itself"


async def test_browse_returns_what_the_caller_waited_for() -> None:
    wanted, other = an_announcement("n1", addresses=LOOPBACK), an_announcement("n2", addresses=LOOPBACK, mesh="other")
    async with a_peer(wanted, interfaces=LOOPBACK) as one, a_peer(other, interfaces=LOOPBACK) as two:
        await one.finds("n2", id=other.id)
        await two.finds("n1", id=wanted.id)
        found = await browse(
            PATIENCE_S, "demo", lambda found: any(f.id == wanted.id for f in found), interfaces=LOOPBACK
        )
        assert [f for f in found if f.id == wanted.id] == [
            Found(wanted.id, "n1", "demo", "shop", "edge", "agent", ("127.0.0.1:8001",))
        ]
        assert not any(f.mesh == "other" for f in found)
        assert await browse(0.0, "nobody", bool, interfaces=LOOPBACK) == []


async def test_leaving_while_still_probing_is_clean() -> None:
    before = asyncio.all_tasks()
    gone: list[str] = []
    announce = an_announcement("n1", addresses=LOOPBACK)
    for pause in (0.0, 0.05, 0.4):
        async with Discovery(announce=announce, on_found=lambda _: None, on_gone=gone.append, interfaces=LOOPBACK):
            await asyncio.sleep(pause)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@requires_netns
async def test_a_taken_port_is_one_warning_and_the_node_goes_on() -> None:
    with lan(1) as (host,), _taken(host):
        async with a_peer(an_announcement("n1"), host=host) as one:
            warning = await one.until(lambda e: e["event"] == "warning")
            assert "multicast DNS does not work" in warning["text"]
            assert await one.stop() == 0


@requires_netns
async def test_hosts_find_each_other_and_only_a_goodbye_removes() -> None:
    with lan(3) as (left, right, third):
        first, second = an_announcement("left", fingerprint="ab12"), an_announcement("right", site="yard", tier="cloud")
        async with a_peer(first, host=left) as one, a_peer(second, host=right) as two:
            seen = await one.finds("right")
            expected = Found(second.id, "right", "demo", "yard", "cloud", "agent", (f"{right.address}:8001",))
            assert seen == {"event": "found", **asdict(expected), "addresses": list(expected.addresses)}
            assert (await two.finds("left"))["fingerprint"] == "ab12"
            assert await two.stop() == 0
            await one.loses(second.id)

            killed, last = an_announcement("killed"), an_announcement("last")
            async with a_peer(killed, host=right) as two:
                await one.finds("killed")
                await two.stop(signal.SIGKILL)
            async with a_peer(last, host=third):
                await one.finds("last")
            await one.loses(last.id)
            assert not one.lost(killed.id), "a kill is noticed by the heartbeat, not here"


@requires_netns
async def test_two_hosts_cloned_from_one_disk_keep_their_own_addresses() -> None:
    clone = an_announcement("clone")
    with lan(3) as (left, right, third):
        async with a_peer(None, host=third) as observer, a_peer(clone, host=left) as one:
            await observer.finds("clone", id=clone.id, addresses=[f"{left.address}:8001"])
            async with a_peer(clone, host=right) as two:
                renamed = await observer.finds("clone", addresses=[f"{right.address}:8001"])
                assert renamed["id"].startswith(f"{clone.id}-")
                await one.finds("clone", id=renamed["id"])
                await two.finds("clone", id=clone.id, addresses=[f"{left.address}:8001"])
        assert {tuple(e["addresses"]) for e in observer.events if e["event"] == "found"} == {
            (f"{left.address}:8001",),
            (f"{right.address}:8001",),
        }


@requires_netns
async def test_rubbish_and_floods_hide_no_honest_node() -> None:
    honest = an_announcement("honest")
    with lan(3) as (left, right, third):
        async with a_peer(an_announcement("victim"), host=left) as victim:
            rogue = await asyncio.create_subprocess_exec(
                *right.command(sys.executable, "-m", __name__, "rogue"), cwd=ROOT
            )
            assert await asyncio.wait_for(rogue.wait(), PATIENCE_S) == 0
            await victim.finds("decoy")
            async with a_peer(honest, host=third):
                await victim.finds("honest")
        assert {e["node"] for e in victim.events if e["event"] == "found"} == {"decoy", "honest"}


@requires_netns
async def test_an_address_that_comes_late_or_changes_is_followed() -> None:
    with lan(2) as (left, right):
        right.remove_address()
        mover = an_announcement("mover")
        async with a_peer(an_announcement("still"), host=left) as one, a_peer(mover, host=right) as two:
            right.add_address()
            await one.finds("mover", addresses=[f"{right.address}:8001"])
            await two.finds("still")

            right.remove_address()
            right.add_address("10.77.0.50")
            # No goodbye for the old address could be sent from it: it may stay behind the new one as a stale hint.
            await one.until(lambda e: e.get("node") == "mover" and e["addresses"][0] == "10.77.0.50:8001")

            await two.finds_again("still")

            right.unplug()
            right.plug("10.77.0.50")  # no address changed, but the sockets were in groups of an interface that is gone
            await two.finds_again("still")
            async with a_peer(an_announcement("late"), host=left):
                await two.finds("late")


class _Warnings(logging.Handler):
    """Warnings of ours become events."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell("warning", text=record.getMessage())


def _tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def _peer(announce: Announcement | None, interfaces: tuple[str, ...] | None) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    logging.getLogger("mesh").addHandler(_Warnings(logging.WARNING))
    async with Discovery(
        announce=announce,
        on_found=lambda found: _tell("found", **asdict(found)),
        on_gone=lambda id_: _tell("gone", id=id_),
        interfaces=interfaces,
    ):
        _tell("ready")
        await stop.wait()


async def _rogue() -> None:
    """Announce what must be ignored, flood, then announce something well-formed, so that the end can be seen."""
    from zeroconf._dns import DNSPointer
    from zeroconf._protocol.outgoing import DNSOutgoing
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
    from zeroconf.const import _CLASS_IN, _FLAGS_QR_RESPONSE, _TYPE_PTR

    good = {"v": "1", "mesh": "demo", "node": "decoy", "tier": "edge"}
    own = ["10.77.0.2"]

    def service(label: str, txt: Any, addresses: list[str] = own) -> AsyncServiceInfo:
        name = f"{label}.{TYPE}"
        return AsyncServiceInfo(
            TYPE, name, port=1, properties=txt, server=f"{label}.local.", parsed_addresses=addresses
        )

    bad: list[AsyncServiceInfo] = [
        service("not-an-id", good),
        service(uuid.uuid4().hex, b"\xff" * 64),
        service(uuid.uuid4().hex, b"\x05v=1\xff\xfe\x00\x03"),
        service(uuid.uuid4().hex, good | {"v": "2"}),
        service(uuid.uuid4().hex, good | {"node": "x" * 200}),
        service(uuid.uuid4().hex, good | {"node": "\x1b[2J"}),
        service(uuid.uuid4().hex, good | {f"k{n}": "y" * 200 for n in range(8)}),
        service(uuid.uuid4().hex, good, ["127.0.0.1"]),
        service(uuid.uuid4().hex, good | {"door": "localhost:22"}),
    ]
    zeroconf = AsyncZeroconf(interfaces=own)
    await asyncio.gather(*[zeroconf.async_register_service(info, strict=False) for info in bad])
    for _ in range(20):
        flood = DNSOutgoing(_FLAGS_QR_RESPONSE)
        for _ in range(20):
            flood.add_answer_at_time(DNSPointer(TYPE, _TYPE_PTR, _CLASS_IN, 4500, f"{uuid.uuid4().hex}.{TYPE}"), 0)
        zeroconf.zeroconf.async_send(flood)
    await (await zeroconf.async_register_service(service(uuid.uuid4().hex, good)))
    os._exit(0)  # without goodbyes


if __name__ == "__main__":
    import uvloop

    if sys.argv[1] == "rogue":
        uvloop.run(_rogue())
    else:
        said, on = json.loads(sys.argv[1])
        if said is not None:
            said["addresses"] = tuple(said["addresses"])
        uvloop.run(_peer(said and Announcement(**said), on and tuple(on)))
