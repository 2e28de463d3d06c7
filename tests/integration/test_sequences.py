"""Stateful sequences at real doors: what callers see, what is refused, and how sequences go on elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.client import Client
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration.doors import Door, agent, repository, router, until
from tests.nats import soon
from tests.sequence_models import CHAIN_TOML, chain, chained, head, named

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


async def until_seen(door: Door, node: str) -> None:
    """Wait until ``door`` knows that a node can be asked."""

    async def reached() -> bool:
        rows = (await door.get("/mesh/v1/nodes")).json()["nodes"]
        return any(row["node"] == node and row["state"] == "ready" and row["models"] for row in rows)

    await until(reached)


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


async def test_steps_are_classified_in_the_form_asked_for_now_and_taken_once(tmp_path: Path) -> None:
    first, second = list(chained([5, 6]))
    classes = {"outputs": [{"name": "OUTPUT", "parameters": {"classification": 1}}]}
    async with serving(tmp_path) as door:
        for number, step, wanted in ((5, 1, first), (5, 1, first), (6, 2, second), (6, 2, second)):
            answer = await door.infer("chain", head(number, sequence_start=step == 1, mesh_step=step) | classes)
            (tensor,) = answer.json()["outputs"]
            assert (tensor["datatype"], tensor["data"]) == ("BYTES", [f"{wanted}:0"])
            assert await output(door, number, sequence_start=step == 1, mesh_step=step) == wanted


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


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({}, 409, "must specify the START flag"),
        ({"sequence": 0, "sequence_start": True}, 400, "non-zero or non-empty correlation ID"),
        ({"sequence": "x" * 129, "sequence_start": True}, 400, "more than 128 bytes"),
        ({"sequence": -(2**62), "sequence_start": True, "mesh_client": 3}, 400, "mesh_client"),
        ({"mesh_restore": 3}, 400, "restores"),
    ],
)
async def test_what_is_refused_says_why(tmp_path: Path, parameters: dict[str, Any], status: int, says: str) -> None:
    async with serving(tmp_path) as door:
        answered, text = await refused(door, 1, **parameters)
        assert (answered, says in text) == (status, True), text


async def test_state_and_controls_are_not_the_callers(tmp_path: Path) -> None:
    async with serving(tmp_path) as door:
        asked = head(1, sequence_start=True)
        for name, datatype in (("SEEN", "INT64"), ("START", "INT32")):
            brought = {"name": name, "datatype": datatype, "shape": [1, 1], "data": [1]}
            answer = await door.infer("chain", asked | {"inputs": [*asked["inputs"], brought]})
            assert (answer.status, "is filled by its node" in answer.json()["error"]) == (400, True)
        answer = await door.infer("chain", asked | {"outputs": [{"name": "SEEN_OUT"}]})
        assert (answer.status, "is state" in answer.json()["error"]) == (400, True)


async def test_an_application_takes_the_state_along_in_json_and_binary(tmp_path: Path) -> None:
    async with serving(tmp_path) as door:
        wanted = list(chained([5, 6, 7]))
        await output(door, 5, sequence_start=True)
        answer = await door.infer("chain", head(6, mesh_checkpoint=True))
        said = json.loads(answer.body[:-8])
        assert said["parameters"] == {"mesh_step": 2}
        assert [t["name"] for t in said["outputs"]] == ["OUTPUT", "mesh_state:SEEN"]
        assert said["outputs"][0]["data"] == [wanted[1]]
        state = int.from_bytes(answer.body[-8:], "little")
        assert state == wanted[1]
        asked = head(7, sequence=2, mesh_restore=2)
        asked["inputs"].append({"name": "mesh_state:SEEN", "datatype": "INT64", "shape": [1, 1], "data": [state]})
        restored = await door.infer("chain", asked)
        assert restored.json()["outputs"][0]["data"] == [wanted[2]]


@pytest.mark.parametrize(
    ("datatype", "sequence", "wanted"),
    [("UINT64", 2**64 - 1, 2**64 - 1), ("INT32", 7, 7), ("BYTES", "a7", "a7"), ("BYTES", 7, "7"),
     ("INT32", 2**31, None), ("UINT64", "text", None)],
)  # fmt: skip
async def test_the_id_goes_into_the_model(tmp_path: Path, datatype: str, sequence: Any, wanted: Any) -> None:
    toml = '[sequence.controls]\nid = "CORRID"\n'
    async with agent(repository(tmp_path, {"named": named(datatype)}, {"named": toml})) as door:
        x = {"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}
        asked = {"inputs": [x], "parameters": {"sequence_id": sequence, "sequence_start": True}}
        answer = await door.infer("named", asked)
        if wanted is None:
            assert (answer.status, "sequence_id" in answer.json()["error"]) == (400, True)
        else:
            assert answer.json()["outputs"][1]["data"] == [wanted]


async def test_an_id_means_nothing_to_a_model_without_state(tmp_path: Path) -> None:
    async with agent(repository(tmp_path, {"add": onnx_models.add()})) as door:
        x = {"name": "X", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
        answer = await door.infer("add", {"inputs": [x], "parameters": {"sequence_id": 5}})
        assert answer.status == 200


async def test_what_does_not_fit_the_model_keeps_it_from_being_ready(tmp_path: Path) -> None:
    toml = CHAIN_TOML.replace('output = "SEEN_OUT"', 'output = "OTHER"')
    async with serving(tmp_path, toml) as door:
        answer = await door.infer("chain", head(1, sequence_start=True))
        assert (answer.status, "no output 'OTHER'" in answer.json()["error"]) == (503, True)


async def test_what_idles_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path, CHAIN_TOML.replace("[sequence]\n", "[sequence]\nidle_s = 0.05\n", 1)) as door:
        await output(door, 1, sequence_start=True)

        async def is_over() -> bool:  # asking would keep it; its memory tells
            text = (await door.get("/metrics")).body.decode()
            return "\nmesh_sequences 0" in text and "\nmesh_sequence_states 0" in text

        await until(is_over)
        assert (await refused(door, 2))[0] == 409


async def test_steps_of_many_sequences_run_together_and_stay_apart(tmp_path: Path) -> None:
    async with serving(tmp_path) as door:

        async def sequence(number: int) -> list[int]:
            async with door.connect() as connection:
                got = []
                for at in range(20):
                    asked = head(number + at, sequence=number, sequence_start=at == 0)
                    got += (await connection.infer("chain", asked)).json()["outputs"][0]["data"]
                return got

        answers = await soon(asyncio.gather(*(sequence(number) for number in range(1, 33))))
        assert answers == [list(chained(range(number, number + 20))) for number in range(1, 33)]


@pytest.mark.parametrize("advertise", ["", "none"], ids=["over doors", "over the bus"])
async def test_a_router_moves_a_sequence_when_its_node_leaves(tmp_path: Path, advertise: str) -> None:
    http = {"listen": "127.0.0.1:0", "advertise": advertise}
    async with NatsServer() as nats, contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(router(nats.url, sequences={"checkpoint_steps": 4}))
        nodes = {}
        for name in ("one", "two"):
            nodes[name] = await stack.enter_async_context(contextlib.AsyncExitStack())
            served = serving(tmp_path / name, nats=nats.url, node={"name": name}, http=http)
            await nodes[name].enter_async_context(served)
            await until_seen(door, name)
        wanted, moved, at = list(chained(NUMBERS, ends=len(NUMBERS))), [], set()
        for index, number in enumerate(NUMBERS):
            flags = {"sequence_start": index == 0, "sequence_end": index == len(NUMBERS) - 1}
            answer = await door.infer("chain", head(number, "text", **flags))
            assert answer.json()["outputs"][0]["data"] == [wanted[index]]
            moved.append(answer.headers.get("mesh-sequence", ""))
            at.add(answer.headers["mesh-node"])
            if index == 9:
                await nodes[answer.headers["mesh-node"]].aclose()
        assert [how for how in moved if how] == ["resumed; checkpoint=8; replayed=2"]
        assert moved[10] == "resumed; checkpoint=8; replayed=2"
        assert at == {"one", "two"}


async def test_the_sdk_goes_on_at_another_door_with_the_state(tmp_path: Path) -> None:
    async with NatsServer() as nats, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(tmp_path / "holder", nats=nats.url, node={"name": "holder"}))
        first = await stack.enter_async_context(contextlib.AsyncExitStack())
        doors = [await first.enter_async_context(router(nats.url, node={"name": "left"}))]
        doors.append(await stack.enter_async_context(router(nats.url, node={"name": "right"})))
        for door in doors:
            await until_seen(door, "holder")
        client = await stack.enter_async_context(Client(*(door.address for door in doors), deadline_ms=60_000))
        wanted = list(chained(NUMBERS))
        async with client.sequence("chain") as sequence:
            for index, number in enumerate(NUMBERS):
                result = await sequence.infer({"INPUT": np.array([[number]])})
                assert int(result["OUTPUT"][0, 0]) == wanted[index]
                assert ("mesh_sequence" in result.parameters) == (index == 13)
                if index == 12:
                    await first.aclose()
