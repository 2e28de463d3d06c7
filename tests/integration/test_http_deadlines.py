"""Deadlines, priorities and refusals as a caller of the HTTP door meets them; the model takes as long as it is told.

Its warm-up teaches the agent that a run takes a while, so that one runs and the others wait. Not here: the queue itself
(``edge.executor``), deadlines across nodes (``test_router``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import onnx_models
from tests.contract.tensors import ENDLESS
from tests.integration import doors
from tests.integration.doors import Answer, Door
from tests.nats import soon

WARMUP = "[warmup]\nN = { shape = [], value = 30000 }\n"
SHORT = 30_000
LONG = 1_000_000
"""Rounds: about a second, where a short one takes some 30 ms."""
SOON_US = 200_000


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return doors.repository(tmp_path, {"loop": onnx_models.loop()}, {"loop": WARMUP})


@contextlib.asynccontextmanager
async def serving(models: Path, **settings: Any) -> AsyncIterator[Door]:
    """In a worker, which can be ended while a model runs for ever."""
    options = {"isolation": "device", "hang_s": 0.1} | settings
    async with doors.agent(models, models=options, http={"grace_s": 0}) as door:
        yield door


@contextlib.asynccontextmanager
async def occupied(models: Path, **settings: Any) -> AsyncIterator[Door]:
    """A door whose device runs something without end."""
    async with serving(models, **settings) as door, asking(door, ENDLESS):
        await door.until_in_flight("loop", 1)
        yield door


@contextlib.asynccontextmanager
async def asking(door: Door, rounds: int) -> AsyncIterator[None]:
    """Somebody who waits for an answer while entered, and then leaves without it."""
    async with door.connect() as connection:
        body = json.dumps(ask(rounds, timeout=600_000_000)).encode()
        await connection.send(doors.request("POST", "/v2/models/loop/infer", body))
        yield
        connection.reset()


def ask(rounds: int, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "N", "datatype": "INT64", "shape": [], "data": [rounds]}
    return {"inputs": [tensor], "parameters": parameters}


async def run(door: Door, rounds: int, **parameters: Any) -> Answer:
    return await soon(door.infer("loop", ask(rounds, **parameters)))


async def test_the_deadline_passes_while_it_runs(models: Path) -> None:
    async with serving(models) as door:
        answer = await run(door, ENDLESS, timeout=SOON_US)
        assert (answer.status, answer.headers["mesh-error"]) == (504, "deadline_exceeded")
        assert "while it ran" in answer.error


async def test_the_deadline_passes_while_it_waits(models: Path) -> None:
    async with occupied(models) as door:
        answer = await run(door, SHORT, timeout=SOON_US)
        assert (answer.status, answer.headers["mesh-error"]) == (504, "deadline_exceeded")
        assert "while it waited" in answer.error
        await door.until_in_flight("loop", 1)


async def test_what_is_late_at_arrival_is_not_run(models: Path) -> None:
    async with serving(models) as door:
        answer = await run(door, ENDLESS, timeout=1)
        assert answer.status == 504
        assert (await run(door, SHORT)).status == 200


async def test_no_timeout_is_no_deadline_of_its_own(models: Path) -> None:
    async with serving(models) as door:
        for timeout in (0, 2**64 - 1):
            assert (await run(door, SHORT, timeout=timeout)).json()["outputs"][0]["data"] == [SHORT]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(models: Path) -> None:
    async with occupied(models, queue_limit=1) as door, asking(door, SHORT):
        await door.until_in_flight("loop", 2)
        for _ in range(3):
            answer = await run(door, SHORT)
            assert (answer.status, answer.headers["mesh-error"]) == (429, "overloaded")
            assert "1 requests are waiting" in answer.error
            assert int(answer.headers["retry-after"]) >= 1
        await door.until_in_flight("loop", 2)


async def test_a_caller_that_leaves_makes_room(models: Path) -> None:
    async with occupied(models, queue_limit=1) as door:
        async with asking(door, SHORT):
            await door.until_in_flight("loop", 2)
            assert (await run(door, SHORT)).status == 429
        await door.until_in_flight("loop", 1)
        async with asking(door, SHORT):
            await door.until_in_flight("loop", 2)


async def test_priority_1_goes_before_what_came_earlier(models: Path) -> None:
    async with serving(models) as door:
        done: list[str] = []

        async def one(name: str, **parameters: Any) -> None:
            assert (await run(door, LONG if name == "first" else SHORT, timeout=60_000_000, **parameters)).status == 200
            done.append(name)

        tasks = []
        for number, (name, parameters) in enumerate(
            (("first", {}), ("default", {}), ("low", {"priority": 9}), ("high", {"priority": 1})), 1
        ):
            tasks.append(asyncio.ensure_future(one(name, **parameters)))
            await door.until_in_flight("loop", number)
        await asyncio.gather(*tasks)
        assert done == ["first", "high", "low", "default"]


async def test_ready_is_refused_and_what_runs_is_finished_while_it_drains(models: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(
            doors.agent(models, models={"isolation": "device"}, http={"grace_s": 60})
        )
        running = asyncio.ensure_future(run(door, 2 * LONG, timeout=60_000_000))
        await door.until_in_flight("loop", 1)
        leaving = asyncio.ensure_future(stack.pop_all().aclose())

        async def refused() -> bool:
            return (await door.get("/v2/health/ready")).status == 503

        await doors.until(refused)
        assert (await door.get("/v2/health/live")).status == 200
        assert (await running).json()["outputs"][0]["data"] == [2 * LONG]
        await leaving
