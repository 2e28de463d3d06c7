"""Steps that reach any of several doors on a bus, in memory: answers are those of an undisturbed run, or errors."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh import hop, sequence_doors, subjects
from mesh.bus import BusMessage
from mesh.bus_core import BUS_MARGIN
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, MeshError, Overloaded, PayloadTooLarge, SequenceUnknown
from mesh.hop import Context, Reply
from mesh.hop_bus import error_headers, lower
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.oip.request import InferRequest, Limits, decode_request
from mesh.pins import Place
from mesh.sequence_doors import SequenceDoors
from mesh.sequence_steps import Step
from mesh.sequencer import Sequencer
from mesh.view import View
from mesh.watcher import Watcher
from tests.builders import a_report
from tests.fakes import until
from tests.nats import soon
from tests.sequence_mesh import CHAIN, Mesh, a_step, ask, over_the_wire, shown
from tests.sequence_models import chained

BEGUN = "mesh.v1.sequence.begun"


class Door:
    """One door; what it takes for others is what ``bus_door`` does."""

    def __init__(
        self, name: str, bus: MemoryBus, sequencer: Sequencer, *, site: str = "site", region: str = ""
    ) -> None:
        self.name = name
        self.site = site
        self.sequencer = sequencer
        self.view = View(name, Watcher("mesh", name), None)
        self.doors = SequenceDoors(bus, Place(name, site, region, "edge"), sequencer, self.view)
        self.handed = 0
        self._bus = bus

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        taken = await self._bus.subscribe(subjects.step(self.site, self.name), self._take)
        async with self.doors.listening():
            yield
        await taken.unsubscribe()

    async def ask(self, request: InferRequest, *, handed: bool = False) -> Reply:
        request = over_the_wire(request)
        step = Step.of(request.parameters)
        assert step is not None
        return await self.doors.infer(request, CHAIN, Context(Deadline.after_ms(60_000), handed=handed), step)

    async def _take(self, message: BusMessage) -> None:
        self.handed += 1
        headers = lower(message.headers)
        length = headers.get(hop.HEADER_LENGTH)
        request = decode_request("chain", "", message.payload, int(length) if length else None, Limits())
        try:
            reply = await self.ask(request, handed=True)
        except MeshError as error:
            await self._bus.publish(message.reply, b"", error_headers(error))
        else:
            answered = hop.reply_headers(reply, want_load=False) | hop.cascade_headers(reply)
            await self._bus.publish(message.reply, reply.body.joined(), answered)


@contextlib.asynccontextmanager
async def some_doors(mesh: Mesh, count: int = 2, max_payload: int = 8 << 20) -> AsyncIterator[list[Door]]:
    broker = MemoryBroker(max_payload)
    async with contextlib.AsyncExitStack() as stack:
        doors = []
        for number in range(count):
            bus = await stack.enter_async_context(MemoryBus(broker))
            doors.append(Door(f"door-{number}", bus, mesh.door(checkpoint_steps=3)))
            await stack.enter_async_context(doors[-1].serving())
        yield doors


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 4))
def test_steps_that_reach_random_doors(seed: int, count: int) -> None:
    async def application(doors: list[Door], rng: random.Random, name: int) -> None:
        for _ in range(2):  # the id is used anew
            numbers = [rng.randrange(1000) for _ in range(8)]
            wanted = list(chained(numbers, ends=len(numbers)))
            for at, number in enumerate(numbers):
                said = {"sequence_start": at == 0, "sequence_end": at == 7}
                request = a_step(number, sequence=name, binary=rng.random() < 0.5, mesh_step=at + 1, **said)
                for _ in range(rng.choice((1, 1, 2))):  # asked again, its answer was lost; an end is told twice too
                    assert shown(await rng.choice(doors).ask(request)) == wanted[at]

    async def play() -> None:
        rng = random.Random(seed)
        async with some_doors(Mesh("a", "b"), count) as doors:
            await asyncio.gather(*(application(doors, rng, name) for name in (1, 2, 3)))
            assert sum(len(door.sequencer) for door in doors) == 0

    asyncio.run(play())


async def test_of_two_that_begin_at_once_one_did() -> None:
    async with some_doors(Mesh("a")) as doors:
        await asyncio.gather(*(door.ask(a_step(5, sequence_start=True)) for door in doors))
        await until(lambda: sum(len(door.sequencer) for door in doors) == 1)
        for at, number in enumerate((6, 7, 8)):
            assert shown(await doors[at % 2].ask(a_step(number))) == list(chained([5, 6, 7, 8]))[at + 1]


async def test_an_older_sequence_is_forgotten_whatever_the_clocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    async with some_doors(Mesh("a")) as (one, two):
        await one.ask(a_step(1, sequence_start=True))
        monkeypatch.setattr(sequence_doors, "TOGETHER_S", 1e-9)
        monkeypatch.setattr(sequence_doors, "time", SimpleNamespace(time_ns=lambda: 0, monotonic=time.monotonic))
        two.doors._stamp = 0  # it has just started, on a box without a clock
        await two.ask(a_step(5, sequence_start=True))
        monkeypatch.undo()
        await until(lambda: len(one.sequencer) == 0)
        assert shown(await one.ask(a_step(6))) == list(chained([5, 6]))[1]
        assert two.handed == 1


async def test_a_holder_that_forgot_is_not_asked_for_ever() -> None:
    async with some_doors(Mesh("a"), 3) as (one, two, three):
        await one.ask(a_step(1, sequence_start=True))
        await two.ask(a_step(2))
        one.sequencer.forget(("", "chain", 1, ""))
        with pytest.raises(SequenceUnknown, match="START flag"):
            await two.ask(a_step(3))
        assert one.handed == 2
        with pytest.raises(SequenceUnknown, match="START flag"):
            await two.ask(a_step(3))
        assert (one.handed, three.handed) == (2, 0)


async def test_a_step_over_the_limit_of_the_bus_says_so_and_changes_nothing() -> None:
    async with some_doors(Mesh("a"), max_payload=BUS_MARGIN + 2000) as (one, two):
        await one.ask(a_step(5, sequence_start=True))
        with pytest.raises(PayloadTooLarge, match="is held by the door"):
            await two.ask(a_step(6, remark="x" * (BUS_MARGIN + 2000)))
        assert shown(await two.ask(a_step(6))) == list(chained([5, 6]))[1]


async def test_a_step_whose_answer_the_bus_does_not_carry_back_is_none() -> None:
    async with some_doors(Mesh("a"), max_payload=BUS_MARGIN + 60) as (one, two):
        await one.ask(a_step(5, sequence_start=True))
        with pytest.raises(PayloadTooLarge, match=r"the answer has .* bytes, which the bus does not carry back"):
            await two.ask(a_step(1000))
        assert shown(await one.ask(a_step(6))) == list(chained([5, 6]))[1]


async def test_questions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_doors, "MOST_ASKS", 2)
    async with some_doors(Mesh("a")) as (one, two):
        await one.ask(a_step(5, sequence_start=True))
        waiting = [asyncio.ensure_future(two.ask(a_step(1, sequence=n))) for n in (7, 8)]
        await until(lambda: two.doors._asking == 2)
        with pytest.raises(Overloaded, match="2 steps wait"):
            await two.ask(a_step(6))
        assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [SequenceUnknown] * 2
        assert shown(await two.ask(a_step(6))) == list(chained([5, 6]))[1]


@pytest.mark.parametrize("said", [b"nonsense", b'["","x","","chain",1,"",1]', b'["s","x","","chain",1,"",-1]'])
async def test_nonsense_ends_nothing(said: bytes) -> None:
    broker = MemoryBroker()
    async with MemoryBus(broker) as bus, MemoryBus(broker) as other:
        door = Door("door", bus, Mesh("a").door())
        async with door.serving():
            await door.ask(a_step(5, sequence_start=True))
            await other.publish(BEGUN, said)
            await other.publish(subjects.sequence_held(), said, reply="_INBOX.x")
            await other.publish(BEGUN, msgspec.json.encode(["s", "x", "", "chain", 2, "", 1]))
            assert shown(await door.ask(a_step(6))) == list(chained([5, 6]))[1]
            await other.publish(BEGUN, msgspec.json.encode(["s", "x", "", "chain", 1, "", 2**62]))
            await until(lambda: len(door.sequencer) == 0)


async def test_the_deadline_goes_along() -> None:
    async with some_doors(mesh := Mesh("a")) as (one, two):
        await one.ask(a_step(5, sequence_start=True))
        asked = over_the_wire(a_step(6))
        step = Step.of(asked.parameters)
        assert step is not None
        mesh.nodes["a"].holding = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await two.doors.infer(asked, CHAIN, Context(Deadline.after_ms(200)), step)
        assert two.doors._asking == 0
        mesh.nodes["a"].holding.set()


async def test_what_is_forgotten_while_a_step_runs_weighs_nothing() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await ask(door, a_step(5, sequence_start=True))
    mesh.nodes["a"].holding = asyncio.Event()
    stepping = asyncio.ensure_future(ask(door, a_step(6)))
    await until(lambda: mesh.nodes["a"].runs == [5, 6])
    door.forget(("", "chain", 1, ""))
    mesh.nodes["a"].holding.set()
    await stepping
    assert (len(door), door.nbytes) == (0, 0)


@pytest.mark.parametrize(
    ("stay", "site", "region", "goes"),
    [("node", "site", "", False), ("site", "site", "", True), ("site", "far", "eu", False),
     ("region", "far", "eu", True), ("region", "far", "us", False), ("region", "far", "", False),
     ("", "far", "", True)],
)  # fmt: skip
async def test_a_step_is_handed_on_only_where_it_may_go(stay: str, site: str, region: str, goes: bool) -> None:
    broker, mesh = MemoryBroker(), Mesh("a")
    async with MemoryBus(broker) as bus, MemoryBus(broker) as other:
        here = Door("here", bus, mesh.door(), region="eu")
        there = Door("there", other, mesh.door(), site=site, region=region)
        async with here.serving(), there.serving():
            await there.ask(a_step(5, sequence_start=True))
            step = a_step(6, mesh_stay=stay)
            if goes:
                assert shown(await here.ask(step)) == list(chained([5, 6]))[1]
            else:
                with pytest.raises(SequenceUnknown, match=f"may not leave its {stay}: begin it anew"):
                    await here.ask(step)
            assert there.handed == goes


async def test_a_place_that_is_none_is_no_reason_to_begin_anew() -> None:
    async with some_doors(Mesh("a")) as (one, two):
        await one.ask(a_step(5, sequence_start=True))
        with pytest.raises(InvalidRequest, match="mesh_stay"):
            await two.ask(a_step(6, mesh_stay="here"))


async def test_a_step_does_not_wait_for_a_door_that_is_lost() -> None:
    async with some_doors(mesh := Mesh("a")) as (one, two):
        await one.ask(a_step(5, sequence_start=True))
        mesh.nodes["a"].holding = asyncio.Event()
        waiting = asyncio.ensure_future(two.ask(a_step(6)))
        await until(lambda: mesh.nodes["a"].runs == [5, 6])
        two.view.watcher.heard(a_report("door-0", mesh="mesh"))
        two.view.watcher.expire(time.monotonic() + 1000.0)
        with pytest.raises(SequenceUnknown, match="which is gone: begin the sequence anew"):
            await soon(waiting)
        mesh.nodes["a"].holding.set()
