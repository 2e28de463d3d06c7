"""A hundred sequences of fifty steps over three agents, one of which is drained and one killed on the way.

Every output is compared with an undisturbed run, of a model each of whose answers depends on all inputs before and on
their order. ``FAILOVER`` in the environment, such as "200x100", makes it larger. Not here: what each part
does by itself (``tests.integration.test_sequences``, ``tests.unit.test_sequencer``).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from mesh.cluster import Child, Cluster
from tests.integration.doors import repository
from tests.sequence_models import CHAIN_TOML, chain, chained, head
from tests.system.processes import ALONE, door, until_held

SEQUENCES, STEPS = (int(n) for n in os.environ.get("FAILOVER", "100x50").split("x"))
DEADLINE_US = 30_000_000
AGENTS = ("one", "two", "three")


class Run:
    """What came of all sequences."""

    def __init__(self, front: Child) -> None:
        self.front = front
        self.exact = self.resumed = self.lost = self.wrong = 0
        self.errors: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()
        self.at: dict[int, str] = {}
        """Which agent holds each sequence."""
        self.steps = 0
        self.progress = asyncio.Condition()

    async def sequence(self, number: int, values: list[int]) -> None:
        moved, wanted = False, list(chained(values, ends=len(values)))
        async with door(self.front).connect() as connection:
            for index, value in enumerate(values):
                flags = {"sequence_start": index == 0, "sequence_end": index == len(values) - 1}
                asked = head(value, sequence=number, timeout=DEADLINE_US, **flags)
                answer = await connection.infer("chain", asked)
                if answer.status != 200:
                    self.lost += 1
                    self.errors[json.dumps([answer.status, answer.body.decode()[:200]])] += 1
                    return
                self.at[number] = answer.headers["mesh-node"]
                if int(answer.output("OUTPUT")[0]) != wanted[index]:
                    self.wrong += 1
                    return
                if moved_how := answer.headers.get("mesh-sequence"):
                    moved = True
                    self.moves[moved_how] += 1
                async with self.progress:
                    self.steps += 1
                    self.progress.notify_all()
        self.resumed += moved
        self.exact += not moved

    def busiest(self) -> str:
        """The agent that holds the most."""
        return Counter(self.at.values()).most_common(1)[0][0]

    async def until(self, steps: int) -> None:
        async with self.progress:
            await self.progress.wait_for(lambda: self.steps >= steps)


@pytest.mark.asyncio(loop_scope="module")
async def test_no_sequence_is_lost_and_none_is_wrong(tmp_path: Path) -> None:
    models = repository(tmp_path / "models", {"chain": chain()}, {"chain": CHAIN_TOML})
    environ = ALONE | {"MESH_MODELS__ISOLATION": "none", "MESH_MODELS__THREADS": "1"}
    async with Cluster(tmp_path / "run", agents=environ) as cluster:
        front = await cluster.router()
        agents = {name: await cluster.agent(name, models) for name in AGENTS}
        await asyncio.gather(*(child.until_ready() for child in cluster.children))
        await cluster.settled(front, AGENTS)
        await until_held(front, "chain", *AGENTS)
        run, rng = Run(front), random.Random(4)
        values = [[rng.randrange(1_000) for _ in range(STEPS)] for _ in range(SEQUENCES)]
        tasks = [asyncio.create_task(run.sequence(number + 1, values[number])) for number in range(SEQUENCES)]
        await run.until(SEQUENCES * STEPS // 3)
        drained = run.busiest()
        drain = asyncio.create_task(agents[drained].stop())
        await run.until(SEQUENCES * STEPS * 2 // 3)
        killed = run.busiest()
        await agents[killed].kill()
        await asyncio.gather(*tasks, drain)
        print(f"exact {run.exact}, resumed {run.resumed}, lost {run.lost}, wrong {run.wrong}, {dict(run.moves)}")
        assert (run.lost, run.wrong) == (0, 0), run.errors
        assert run.exact + run.resumed == SEQUENCES
        assert drained != killed
        assert set(run.at.values()) == set(AGENTS) - {drained, killed}
        assert run.resumed > 0
