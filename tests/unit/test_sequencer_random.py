"""Whatever is lost, late, doubled or restarted on the way: an answer is the one of an undisturbed run, or an error.

Applications that number their steps and such that do not, sequences beside each other, two doors over the same nodes.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.errors import MeshError, SequenceUnknown
from mesh.sequencer import Sequencer
from tests.sequence_mesh import FAULTS, Mesh, a_step, ask, shown
from tests.sequence_models import chained

SCRIPTS = st.lists(st.tuples(st.sampled_from(("", *FAULTS)), st.integers(0, 5)), min_size=40, max_size=160)
STEPS = 25
MOST_ERRORS = 400
"""One a fault, and a few that follow from it."""

property_test = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])


class Application:
    """One sequence. What was answered with an error it asks again, or leaves out and goes on with the next."""

    def __init__(self, door: Sequencer, seed: int, sequence: int, *, numbers: bool) -> None:
        self._door = door
        self._rng = random.Random(seed)
        self._sequence = sequence
        self._numbers = numbers
        self._given: list[int] = []
        """What was answered."""
        self.answers = self.errors = 0

    async def run(self) -> None:
        value = self._rng.randrange(1000)
        while len(self._given) < STEPS:
            assert self.errors < MOST_ERRORS
            if await self._step(value) or self._rng.random() < 0.5:
                value = self._rng.randrange(1000)

    async def _step(self, value: int) -> bool:
        parameters: dict[str, Any] = {}
        number = len(self._given) + 1
        if number == 1:
            parameters["sequence_start"] = True
        if number == STEPS:
            parameters["sequence_end"] = True
        if self._numbers:
            parameters["mesh_step"] = number
        request = a_step(value, binary=self._rng.random() < 0.5, sequence=self._sequence, **parameters)
        try:
            answer = shown(await ask(self._door, request))
        except SequenceUnknown:
            assert number == 1  # the door that counts on it never loses one that it began
            self.errors += 1
            return False
        except MeshError:
            self.errors += 1
            return False
        self._given.append(value)
        self._check(answer)
        if self._numbers and self._rng.random() < 0.3:
            self._check(shown(await ask(self._door, request)))  # its answer was lost
        return True

    def _check(self, answer: int) -> None:
        ends = STEPS if len(self._given) == STEPS else None
        assert answer == list(chained(self._given, ends=ends))[-1]
        self.answers += 1


def _play(script: list[tuple[str, int]], every: int, seed: int, *, doors: int = 1) -> None:
    async def play() -> None:
        mesh = Mesh("a", "b", "c", script=script)
        served = [mesh.door(checkpoint_steps=every) for _ in range(doors)]
        applications = [
            Application(door, seed + at, at // doors + 1, numbers=bool((seed + at) % 2))
            for at, door in enumerate(served * 2)
        ]
        await asyncio.gather(*(application.run() for application in applications))
        assert all(application.answers >= STEPS for application in applications)
        assert all(len(door) == 0 for door in served)
        await mesh.settle()
        assert sum(len(node.sequences) for node in mesh.nodes.values()) <= len(script) + 2 * doors

    asyncio.run(play())


@property_test
@given(SCRIPTS, st.integers(1, 6), st.integers(0, 99))
def test_every_answer_is_the_one_of_an_undisturbed_run(script: list[tuple[str, int]], every: int, seed: int) -> None:
    _play(script, every, seed)


@property_test
@given(SCRIPTS, st.integers(1, 6), st.integers(0, 99))
def test_two_doors_with_the_same_ids_do_not_meet(script: list[tuple[str, int]], every: int, seed: int) -> None:
    _play(script, every, seed, doors=2)


@property_test
@given(SCRIPTS, st.integers(1, 6), st.integers(0, 99))
def test_a_client_over_two_doors_that_come_and_go(script: list[tuple[str, int]], every: int, seed: int) -> None:
    """As the SDK: its own sequencer numbers the turns, its nodes are doors, which forget or are lost at any time."""

    async def play() -> None:
        behind = Mesh("a", "b", script=script[::2])
        client = Mesh("left", "right", script=script[1::2], doors=lambda: behind.door(checkpoint_steps=every))
        application = Application(client.door(checkpoint_steps=every), seed, 5, numbers=False)
        await application.run()
        assert application.answers == STEPS

    asyncio.run(play())
