"""Doors from hint to way: proven, moved, taken over, broken, dropped. The probes are scripted, the proofs are real."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh import neighbours as under_test
from mesh.addresses import host_token
from mesh.errors import DeadlineExceeded, NodeUnreachable
from mesh.messages import Report
from mesh.neighbours import Answer, Door, Neighbours
from mesh.trust import Trust
from mesh.watcher import Watcher
from tests.builders import a_report
from tests.fakes import ScriptedProber, until

KEY = b"sixteen bytes, or more"
HERE, THERE = "10.0.0.1:8000", "10.0.0.2:8000"
REFUSED = NodeUnreachable("refused")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes come every few milliseconds."""
    monkeypatch.setattr(under_test, "IDLE_PERIOD_S", 0.01)
    monkeypatch.setattr(under_test, "BUSY_PERIOD_S", 0.005)
    monkeypatch.setattr(under_test, "RETRY_MAX_S", 0.02)


class Lan:
    """This node's neighbours, and the nodes that answer behind their doors."""

    def __init__(self, key: bytes | None = KEY) -> None:
        self.prober = ScriptedProber()
        self.trust = Trust("demo", "me", 1, key)
        self.watcher = Watcher("demo", "me")
        self.neighbours = Neighbours(self.watcher, self.prober, self.trust, "me")
        self._seq = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Lan]:
        async with self.watcher.running(), self.neighbours.running():
            yield self

    def report(self, node: str, incarnation: int, **fields: Any) -> Report:
        self._seq += 1
        defaults: dict[str, Any] = {"ttl_ms": 60_000, "http": ""}
        return a_report(node, seq=self._seq, incarnation=incarnation, **(defaults | fields))

    def stands(self, address: str, trust: Trust, **fields: Any) -> None:
        """Behind ``address`` stands the node of ``trust`` from now on."""

        def answer(challenge: str) -> Answer:
            report = self.report(trust.node, trust.incarnation, **fields)
            return Answer(report, trust.answer(challenge, "site"), trust.answer(challenge, "bus"), 1.0)

        self.prober.doors[address] = answer

    async def proven(self, node: str) -> Door:
        await until(lambda: self.neighbours.direct(node) is not None)
        door = self.neighbours.direct(node)
        assert door is not None
        return door

    async def probed_again(self, address: str) -> None:
        count = self.prober.probed.count(address)
        await until(lambda: self.prober.probed.count(address) >= count + 2)

    def state(self, node: str) -> str:
        view = self.watcher.membership.get(node)
        return view.state if view is not None else "unknown"


def peer(node: str = "peer", incarnation: int = 1, key: bytes | None = KEY, mesh: str = "demo") -> Trust:
    return Trust(mesh, node, incarnation, key)


async def test_a_hint_becomes_a_way_once_its_node_proved_itself() -> None:
    async with Lan().running() as lan:
        trust = peer()
        lan.stands(HERE, trust)
        assert lan.neighbours.direct("peer") is None
        lan.neighbours.hear_of(HERE, "seed")
        door = await lan.proven("peer")
        assert (door.address, door.node, door.incarnation) == (HERE, "peer", 1)
        assert trust.verify_token(door.token) == "me"
        assert door.link.measured
        assert lan.state("peer") == "ready"
        assert [d.address for d in lan.neighbours.doors()] == [HERE]


@pytest.mark.parametrize(
    "stranger",
    [
        pytest.param(lambda: peer(key=b"another key, of a stranger"), id="other key"),
        pytest.param(lambda: peer(key=None), id="no key"),
        pytest.param(lambda: peer(mesh="other"), id="other mesh"),
    ],
)
async def test_who_proves_nothing_is_no_way_and_not_believed(stranger: Callable[[], Trust]) -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, stranger())
        lan.neighbours.hear_of(HERE, "seed")
        await lan.probed_again(HERE)
        assert lan.neighbours.direct("peer") is None
        assert lan.state("peer") == "unknown"


async def test_without_a_site_key_the_bus_proves() -> None:
    async with Lan(key=None).running() as lan:
        trust = peer(key=None)
        lan.stands(HERE, trust)
        lan.neighbours.hear_of(HERE, "seed")
        await lan.probed_again(HERE)
        assert lan.neighbours.direct("peer") is None
        lan.watcher.heard(lan.report("peer", 1, hop_key=trust.hop_key))
        door = await lan.proven("peer")
        assert trust.verify_token(door.token) == "me"


async def test_the_site_key_proves_rather_than_the_bus_that_more_can_read() -> None:
    async with Lan().running() as lan:
        trust = peer()
        lan.watcher.heard(lan.report("peer", 1, hop_key=trust.hop_key))
        lan.stands(HERE, trust)
        lan.neighbours.hear_of(HERE, "seed")
        token = (await lan.proven("peer")).token
        assert (trust.verify_token(token), trust.kind(token)) == ("me", "site")


async def test_our_own_door_is_dropped() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, lan.trust)
        lan.stands(THERE, peer())
        lan.neighbours.hear_of(HERE, "seed")
        lan.neighbours.hear_of(THERE, "seed")
        await lan.proven("peer")
        await lan.probed_again(THERE)
        assert lan.prober.probed.count(HERE) == 1
        assert lan.state("me") == "unknown"


async def test_a_restart_at_the_same_address_gets_new_tokens() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer(incarnation=1))
        lan.neighbours.hear_of(HERE, "seed")
        old = (await lan.proven("peer")).token
        again = peer(incarnation=2)
        lan.stands(HERE, again)
        await until(lambda: again.verify_token((lan.neighbours.direct("peer") or Door("")).token) == "me")
        assert again.verify_token(old) is None


async def test_another_node_that_takes_over_an_address_is_not_taken_for_the_old_one() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer("old"))
        lan.neighbours.hear_of(HERE, "seed")
        await lan.proven("old")
        lan.stands(HERE, peer("new"))
        await lan.proven("new")
        assert lan.neighbours.direct("old") is None
        lan.stands(THERE, peer("old", 2))
        lan.neighbours.hear_of(THERE, "seed")
        assert (await lan.proven("old")).address == THERE
        assert (await lan.proven("new")).address == HERE


async def test_a_node_that_moves_its_door_is_found_there_and_the_old_door_forgotten() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer(incarnation=1), http=HERE)
        lan.watcher.heard(lan.report("peer", 1, http=HERE))
        assert (await lan.proven("peer")).address == HERE
        lan.prober.doors[HERE] = REFUSED
        lan.stands(THERE, peer(incarnation=2), http=THERE)
        lan.watcher.heard(lan.report("peer", 2, http=THERE))  # ready before and after: no change of its state
        await until(lambda: (lan.neighbours.direct("peer") or Door("")).address == THERE)
        await lan.probed_again(THERE)
        probed = lan.prober.probed.count(HERE)
        await lan.probed_again(THERE)
        await lan.probed_again(THERE)
        assert lan.prober.probed.count(HERE) <= probed + 1
        assert lan.state("peer") == "ready"


async def test_a_refused_connection_makes_a_node_suspect_at_once_and_an_answer_ready_again() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer())
        lan.neighbours.hear_of(HERE, "seed")
        await lan.proven("peer")
        lan.prober.doors[HERE] = REFUSED
        await until(lambda: lan.state("peer") == "suspect")
        assert lan.neighbours.direct("peer") is None
        lan.stands(HERE, peer(incarnation=2))
        await lan.proven("peer")
        assert lan.state("peer") == "ready"


async def test_a_slow_answer_is_no_refusal() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer())
        lan.neighbours.hear_of(HERE, "seed")
        await lan.proven("peer")
        lan.prober.doors[HERE] = DeadlineExceeded("slow")
        await until(lambda: lan.neighbours.direct("peer") is None)
        await lan.probed_again(HERE)
        assert lan.state("peer") == "ready"  # silence is for its ttl to judge


async def test_a_node_with_two_doors_lives_while_one_of_them_answers() -> None:
    async with Lan().running() as lan:
        for address in (HERE, THERE):
            lan.stands(address, peer())
            lan.neighbours.hear_of(address, "seed")
        await until(lambda: len(lan.neighbours.doors()) == 2)
        first = await lan.proven("peer")
        lan.prober.doors[first.address] = REFUSED
        await until(lambda: not first.proven)
        await lan.probed_again(first.address)
        second = lan.neighbours.direct("peer")
        assert second is not None
        assert second.address != first.address
        assert lan.state("peer") == "ready"


async def test_a_broken_door_is_no_way_until_a_probe_succeeds() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer())
        lan.neighbours.hear_of(HERE, "seed")
        door = await lan.proven("peer")
        lan.neighbours.broken(door)
        assert lan.neighbours.direct("peer") is None
        assert await lan.proven("peer") is door


async def test_a_goodbye_closes_the_door() -> None:
    async with Lan().running() as lan:
        lan.stands(HERE, peer())
        lan.neighbours.hear_of(HERE, "seed")
        await lan.proven("peer")
        lan.stands(HERE, peer(), state="left")
        await until(lambda: lan.neighbours.direct("peer") is None)
        assert lan.state("peer") == "left"


async def test_a_door_that_nothing_vouches_for_is_dropped_and_one_that_answers_is_not() -> None:
    async with Lan().running() as lan:
        lan.prober.doors[HERE] = REFUSED
        lan.stands(THERE, peer())
        for address, source in ((HERE, "a" * 32), (THERE, "b" * 32)):
            lan.neighbours.hear_of(address, source)
        await lan.probed_again(HERE)
        await lan.proven("peer")
        lan.neighbours.forget("a" * 32)
        lan.neighbours.forget("b" * 32)
        await lan.probed_again(THERE)
        await lan.probed_again(THERE)
        probed = lan.prober.probed.count(HERE)
        await lan.probed_again(THERE)
        await lan.probed_again(THERE)
        assert lan.prober.probed.count(HERE) == probed
        assert lan.neighbours.direct("peer") is not None


@pytest.mark.parametrize(("host", "probed"), [(host_token(), True), ("of another host", False)])
async def test_a_loopback_door_counts_on_its_own_host_only(host: str, probed: bool) -> None:
    async with Lan().running() as lan:
        lan.prober.doors["127.0.0.1:9"] = REFUSED
        lan.stands(HERE, peer())
        lan.watcher.heard(lan.report("peer", 1, http=f"127.0.0.1:9,{HERE}", host=host))
        await lan.proven("peer")
        assert ("127.0.0.1:9" in lan.prober.probed) == probed


async def test_an_unreachable_door_is_forgotten_with_its_node() -> None:
    async with Lan().running() as lan:
        lan.prober.doors[HERE] = DeadlineExceeded("behind NAT")
        lan.watcher.heard(lan.report("peer", 1, http=HERE))
        await lan.probed_again(HERE)
        lan.watcher.heard(lan.report("peer", 1, http=HERE, state="left"))
        lan.stands(THERE, peer("other"))
        lan.neighbours.hear_of(THERE, "seed")
        for _ in range(5):
            await lan.probed_again(THERE)
        probed = lan.prober.probed.count(HERE)
        for _ in range(5):
            await lan.probed_again(THERE)
        assert lan.prober.probed.count(HERE) == probed
