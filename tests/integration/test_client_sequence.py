"""Sequences of the SDK at a real door: their steps in turn, their ids, how they end. Failover: ``test_sequences``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

import numpy as np
import pytest

from mesh.client import Client
from mesh.client_sequence import ClientSequence
from mesh.errors import InvalidRequest, ModelNotReady, SequenceUnknown
from mesh.sync_client import SyncClient
from tests import onnx_models
from tests.integration.doors import Door, agent, repository

SUM = '[[sequence.state]]\ninput = "STATE"\noutput = "STATE_OUT"\n'


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    models = {"running_sum": onnx_models.running_sum(), "add": onnx_models.add()}
    async with agent(repository(tmp_path, models, {"running_sum": SUM})) as door:
        yield door


@pytest.fixture
async def client(door: Door) -> AsyncIterator[Client]:
    async with Client(door.address, deadline_ms=60_000) as client:
        yield client


async def step(sequence: ClientSequence, number: int, *, end: bool = False) -> int:
    result = await sequence.infer({"INPUT": np.array([[number]], np.int64)}, end=end)
    return int(result["OUTPUT"][0, 0])


async def test_steps_that_are_called_at_once_go_in_the_order_of_the_calls(client: Client) -> None:
    async with client.sequence("running_sum") as sequence:
        sums = await asyncio.gather(*(step(sequence, number) for number in range(1, 31)))
    assert sums == [sum(range(number + 1)) for number in range(1, 31)]


async def test_steps_of_several_threads_go_one_by_one(door: Door) -> None:
    one = {"INPUT": np.array([[1]], np.int64)}

    def plain() -> list[int]:
        with (
            SyncClient(door.address, deadline_ms=60_000) as client,
            client.sequence("running_sum") as sequence,
            ThreadPoolExecutor(4) as threads,
        ):
            return [int(result["OUTPUT"][0, 0]) for result in threads.map(sequence.infer, [one] * 20)]

    assert sorted(await asyncio.to_thread(plain)) == [*range(1, 21)]


async def test_an_id_that_the_application_chose_is_not_taken_by_another_sequence(client: Client) -> None:
    chosen = [client.sequence("running_sum", sequence_id=number) for number in (1, 2, 3)]
    ours = [client.sequence("running_sum") for _ in range(3)]
    for number in (1, 2, 3):
        assert [await step(sequence, 1) for sequence in (*chosen, *ours)] == [number] * 6
    assert len({sequence.id for sequence in (*chosen, *ours)}) == 6


async def test_a_sequence_that_ended_begins_anew_with_the_next_step(client: Client) -> None:
    async with client.sequence("running_sum") as sequence:
        assert await step(sequence, 7, end=True) == 7
        assert [await step(sequence, 1), await step(sequence, 1, end=True), await step(sequence, 5)] == [1, 2, 5]


async def test_a_step_that_failed_is_no_step(client: Client) -> None:
    async with client.sequence("running_sum") as sequence:
        for wrong in ({"INPUT": np.zeros((1, 1), np.float32)}, {}):
            with pytest.raises(InvalidRequest):
                await sequence.infer(wrong)
            with pytest.raises(InvalidRequest):
                await sequence.infer(wrong, end=True)
            assert await step(sequence, 1) in (1, 2)
        assert await step(sequence, 1) == 3


async def test_nothing_is_kept_of_a_sequence_that_was_left(client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        await _fail_after_a_step(client.sequence("running_sum"))
    async with client.sequence("running_sum") as sequence:
        pass
    with pytest.raises(RuntimeError, match="was left"):
        await step(sequence, 1)
    assert (len(client._sequencer), client._sequencer.nbytes) == (0, 0)


async def _fail_after_a_step(sequence: ClientSequence) -> None:
    async with sequence:
        await step(sequence, 1)
        raise ZeroDivisionError


async def test_one_that_idled_too_long_says_so_and_does_not_begin_anew(client: Client) -> None:
    sequence = client.sequence("running_sum")
    assert await step(sequence, 1) == 1
    client._sequencer.forget_idle(inf)
    for _ in range(2):
        with pytest.raises(SequenceUnknown, match="idled too long: begin another"):
            await step(sequence, 1)


async def test_parameters_go_along_but_for_those_that_number_the_steps(client: Client) -> None:
    one = {"INPUT": np.array([[1]], np.int64)}
    async with client.sequence("running_sum") as sequence:
        sums = [await sequence.infer(one, parameters={"sequence_start": True, "priority": 1}) for _ in range(3)]
        assert [int(result["OUTPUT"][0, 0]) for result in sums] == [1, 2, 3]
        with pytest.raises(InvalidRequest, match="priority"):
            await sequence.infer(one, parameters={"priority": -1})


async def test_a_model_that_keeps_nothing_says_so(client: Client) -> None:
    async with client.sequence("add") as sequence:
        with pytest.raises(ModelNotReady, match="is not declared to keep state"):
            await sequence.infer({"X": np.zeros((1, 16), np.float32)})
