"""Stateful sequences at real doors: what callers see, what is refused, and how sequences go on elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.integration.doors import Door, agent, repository
from tests.sequence_models import CHAIN_TOML, chain, chained, head

NUMBERS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


@contextlib.asynccontextmanager
async def serving(folder: Path, toml: str = CHAIN_TOML, **groups: Any) -> AsyncIterator[Door]:
    async with agent(repository(folder, {"chain": chain()}, {"chain": toml}), **groups) as door:
        yield door


async def output(door: Door, number: int, **parameters: Any) -> int:
    answer = await door.infer("chain", head(number, **parameters))
    assert answer.status == 200, answer.body
    (tensor,) = answer.json()["outputs"]
    assert tensor["name"] == "OUTPUT"
    return int(tensor["data"][0])


async def refused(door: Door, number: int, **parameters: Any) -> tuple[int, str]:
    answer = await door.infer("chain", head(number, **parameters))
    return answer.status, answer.json().get("error", "")


async def test_state_goes_from_step_to_step_and_controls_say_where(tmp_path: Path) -> None:
    async with serving(tmp_path) as door:
        wanted = list(chained(NUMBERS, ends=len(NUMBERS)))
        for _ in range(2):  # the id is free again after the end
            got = [
                await output(door, n, sequence_start=at == 0, sequence_end=at == len(NUMBERS) - 1)
                for at, n in enumerate(NUMBERS)
            ]
            assert got == wanted


async def test_a_start_begins_anew_and_ids_and_clients_are_told_apart(tmp_path: Path) -> None:
    async with serving(tmp_path) as door:
        first, second = list(chained([5, 6]))
        for named_so in ({}, {"sequence": "1"}, {"sequence": 2}, {"mesh_client": "b"}):
            assert await output(door, 5, sequence_start=True, **named_so) == first
        assert await output(door, 5, sequence_start=True) == first
        for named_so in ({}, {"sequence": "1"}, {"sequence": 2}, {"mesh_client": "b"}):
            assert await output(door, 6, **named_so) == second


async def test_metadata_and_config_hide_what_the_node_fills(tmp_path: Path) -> None:
    async with serving(tmp_path) as door:
        metadata = (await door.get("/v2/models/chain")).json()
        assert [t["name"] for t in metadata["inputs"] + metadata["outputs"]] == ["INPUT", "OUTPUT"]
        config = (await door.get("/v2/models/chain/config")).json()
        assert [t["name"] for t in config["input"] + config["output"]] == ["INPUT", "OUTPUT"]
        state = config["sequence_batching"]["state"]
        assert [(s["input_name"], s["output_name"], s["data_type"]) for s in state] == [
            ("SEEN", "SEEN_OUT", "TYPE_INT64")
        ]
