"""The agent's HTTP door as OIP describes it: health, metadata, inference in JSON and binary, errors by status and text.

Not here: HTTP itself (``test_http_wire``), malformed requests (``test_malformed``), deadlines and refusals
(``test_http_deadlines``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import HEADER_LENGTH, Connection, Door
from tests.malformed import PATH, ROW_BYTES, binary_input, good_json, joined, json_input

ONES, TWOS, ZEROS = [1] * 16, [2] * 16, [0] * 16
BINARY = {"inputs": [binary_input(), binary_input("INPUT1")]}
TENSORS = np.arange(32, dtype="<i4").tobytes()
SUM = np.arange(16, dtype="<i4") * 2 + 16
DIFFERENCE = np.full(16, -16, dtype="<i4")

VALUES: dict[str, tuple[list[Any], bytes]] = {
    "BOOL": ([True, False, True], b"\1\0\1"),
    "UINT8": ([0, 1, 255], bytes([0, 1, 255])),
    "UINT16": ([0, 1, 2**16 - 1], struct.pack("<3H", 0, 1, 2**16 - 1)),
    "UINT32": ([0, 1, 2**32 - 1], struct.pack("<3I", 0, 1, 2**32 - 1)),
    "UINT64": ([0, 1, 2**64 - 1], struct.pack("<3Q", 0, 1, 2**64 - 1)),
    "INT8": ([-128, -1, 127], struct.pack("<3b", -128, -1, 127)),
    "INT16": ([-(2**15), -1, 2**15 - 1], struct.pack("<3h", -(2**15), -1, 2**15 - 1)),
    "INT32": ([-(2**31), -1, 2**31 - 1], struct.pack("<3i", -(2**31), -1, 2**31 - 1)),
    "INT64": ([-(2**63), -1, 2**63 - 1], struct.pack("<3q", -(2**63), -1, 2**63 - 1)),
    "FP16": ([0.5, -2.0, 65504.0], struct.pack("<3e", 0.5, -2.0, 65504.0)),
    "BF16": ([0.5, -2.0, 1.0], struct.pack("<3H", 0x3F00, 0xC000, 0x3F80)),
    "FP32": ([0.5, -0.0, 2.0**-149], struct.pack("<3f", 0.5, -0.0, 2.0**-149)),
    "FP64": ([0.1, -0.0, 1.7976931348623157e308], struct.pack("<3d", 0.1, -0.0, 1.7976931348623157e308)),
    "BYTES": (["", "ab", "\u6a21\u578b"], b"\0\0\0\0" + b"\2\0\0\0ab" + b"\6\0\0\0" + "\u6a21\u578b".encode()),
}
"""JSON and raw form of three elements of each datatype, the extreme ones among them."""


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    models = {
        "simple": onnx_models.simple(metadata={"author": "nobody"}),
        "nan": onnx_models.not_a_number(),
        "scalar": onnx_models.scalar(),
        "garbage": b"\0garbage",
    }
    async with doors.agent(doors.repository(tmp_path, models), http={"server_name": "shop"}) as served:
        yield served


@pytest.fixture
async def connection(door: Door) -> AsyncIterator[Connection]:
    async with door.connect() as connected:
        yield connected


async def test_health_of_the_server(door: Door) -> None:
    """One of its models FAILED, which blocks nobody."""
    for path in ("/v2/health/live", "/v2/health/ready"):
        answer = await door.get(path)
        assert (answer.status, answer.json()) == (200, {path.rpartition("/")[2]: True})


async def test_metadata_of_the_server(door: Door) -> None:
    document = (await door.get("/v2")).json()
    assert list(document) == ["name", "version", "extensions"]
    assert document["name"] == "shop"
    assert document["version"]
    assert document["extensions"] == [
        "binary_tensor_data", "classification", "model_configuration", "parameters", "schedule_policy", "sequence",
        "sequence(string_id)", "statistics", "model_repository",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/v2/models/simple", "/v2/models/simple/versions/1"])
async def test_metadata_of_a_model(door: Door, path: str) -> None:
    document = (await door.get(path)).json()
    parameters = document.pop("parameters")
    assert parameters["requested_backend"] == parameters["effective_backend"] == "onnxruntime-cpu"
    tensor = {"datatype": "INT32", "shape": [-1, 16]}
    assert document == {
        "name": "simple",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "INPUT0"} | tensor, {"name": "INPUT1"} | tensor],
        "outputs": [{"name": "OUTPUT0"} | tensor, {"name": "OUTPUT1"} | tensor],
    }


async def test_health_of_a_model_names_it(door: Door) -> None:
    for path, status, ready in (
        ("simple/ready", 200, True),
        ("simple/versions/1/ready", 200, True),
        ("garbage/ready", 503, False),
    ):
        answer = await door.get(f"/v2/models/{path}")
        assert answer.status == status
        assert answer.json() == {"name": path.split("/")[0], "ready": ready}


@pytest.mark.parametrize("path", ["nobody", "nobody/ready", "simple/versions/2", "simple/versions/2/ready"])
async def test_what_is_not_held_is_unknown(door: Door, path: str) -> None:
    answer = await door.get(f"/v2/models/{path}")
    assert answer.status == 404
    assert answer.error.startswith("Request for unknown model")
    assert answer.headers["mesh-error"] == "model_not_found"


async def test_a_failed_model_says_why(door: Door) -> None:
    answer = await door.infer("garbage", good_json())
    assert (answer.status, answer.headers["mesh-error"]) == (503, "model_not_ready")
    assert "FAILED" in answer.error
    assert "not a well-formed ONNX model" in answer.error
    metadata = await door.get("/v2/models/garbage")
    assert metadata.status == 503
    assert "not a well-formed ONNX model" in metadata.error


@pytest.mark.parametrize("model", ["simple", "simple/versions/1"])
async def test_json_in_json_out(door: Door, model: str) -> None:
    answer = await door.infer(model, good_json(id='a\u0001"b\u6a21'))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert HEADER_LENGTH not in answer.headers
    tensor = {"datatype": "INT32", "shape": [1, 16]}
    assert answer.json() == {
        "model_name": "simple",
        "model_version": "1",
        "id": 'a\u0001"b\u6a21',
        "outputs": [{"name": "OUTPUT0"} | tensor | {"data": TWOS}, {"name": "OUTPUT1"} | tensor | {"data": ZEROS}],
    }


async def test_an_answer_says_where_it_ran(door: Door) -> None:
    headers = (await door.infer("simple", good_json())).headers
    assert (headers["mesh-node"], headers["mesh-route"], headers["mesh-hops"]) == ("edge-1", "local", "0")


async def test_an_id_is_echoed_only_where_there_is_one(connection: Connection) -> None:
    """The same head again and again, but for its id: what is remembered of a head must not bring back the other's."""
    for name in ("", "one", "", "two"):
        head = BINARY | ({"id": name} if name else {}) | {"parameters": {"binary_data_output": True}}
        answer = await connection.infer("simple", head, TENSORS)
        assert json.loads(answer.body[: int(answer.headers[HEADER_LENGTH])]).get("id", "") == name
        assert answer.output("OUTPUT0").view("<i4").tolist() == SUM.tolist()


async def test_binary_in_binary_out(connection: Connection) -> None:
    answer = await connection.infer("simple", BINARY | {"parameters": {"binary_data_output": True}}, TENSORS)
    assert answer.headers["content-type"] == "application/octet-stream"
    head = json.loads(answer.body[: int(answer.headers[HEADER_LENGTH])])
    assert [o["parameters"] for o in head["outputs"]] == [{"binary_data_size": ROW_BYTES}] * 2
    assert answer.output("OUTPUT0").view("<i4").tolist() == SUM.tolist()
    assert answer.output("OUTPUT1").view("<i4").tolist() == DIFFERENCE.tolist()


async def test_binary_and_json_mixed_both_ways(connection: Connection) -> None:
    head = {
        "inputs": [binary_input(), json_input("INPUT1")],
        "outputs": [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}],
    }
    answer = await connection.infer("simple", head, TENSORS[:ROW_BYTES])
    assert [o["name"] for o in json.loads(answer.body[: int(answer.headers[HEADER_LENGTH])])["outputs"]] == [
        "OUTPUT1",
        "OUTPUT0",
    ]
    assert answer.output("OUTPUT0").tolist() == list(range(1, 17))
    assert answer.output("OUTPUT1").view("<i4").tolist() == list(range(-1, 15))


async def test_only_the_outputs_that_were_asked_for(connection: Connection) -> None:
    head: dict[str, Any] = good_json(outputs=[{"name": "OUTPUT1"}])
    assert [o["name"] for o in (await connection.infer("simple", head)).json()["outputs"]] == ["OUTPUT1"]
    head = good_json(
        parameters={"binary_data_output": True}, outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": False}}]
    )
    assert (await connection.infer("simple", head)).json()["outputs"][0]["data"] == TWOS
    answer = await connection.infer("simple", good_json(outputs=[{"name": "OUTPUT9"}, {"name": "OUTPUT0"}]))
    assert answer.status == 400
    assert "OUTPUT9" in answer.error


async def test_shapes_of_any_batch_and_none(connection: Connection) -> None:
    for rows in (1, 3, 1000, 0):
        size = rows * ROW_BYTES
        inputs = [binary_input(name, size, shape=[rows, 16]) for name in ("INPUT0", "INPUT1")]
        body, headers = joined({"inputs": inputs, "parameters": {"binary_data_output": True}}, bytes(2 * size))
        answer = await connection.request("POST", PATH, body, headers)
        assert answer.status == 200
        assert answer.output("OUTPUT0").nbytes == size
    scalar = {"name": "K", "shape": [], "datatype": "FP32", "data": [3]}
    answer = await connection.infer(
        "scalar", {"inputs": [json_input("X", shape=[2], datatype="FP32", data=[1, 2]), scalar]}
    )
    assert answer.json()["outputs"][0]["data"] == [3.0, 6.0]


async def test_every_datatype_in_both_forms(tmp_path: Path) -> None:
    models = {name.lower(): onnx_models.identity(name) for name in VALUES}
    async with doors.agent(doors.repository(tmp_path, models)) as door, door.connect() as connection:
        for datatype, (values, raw) in VALUES.items():
            as_json = json_input("INPUT", shape=[3], datatype=datatype, data=values)
            as_raw = binary_input("INPUT", len(raw), shape=[3], datatype=datatype)
            for tensor, tail in ((as_json, b""), (as_raw, raw)):
                for binary in (False, True):
                    head = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
                    answer = await connection.infer(datatype.lower(), head, tail)
                    assert answer.status == 200, (datatype, answer.body)
                    length = int(answer.headers.get(HEADER_LENGTH, len(answer.body)))
                    described = json.loads(answer.body[:length])["outputs"][0]
                    assert (described["datatype"], described["shape"]) == (datatype, [3])
                    assert answer.body[length:] == raw if binary else described["data"] == values, datatype


async def test_what_json_cannot_carry_is_refused_with_the_way_out(connection: Connection) -> None:
    ask = {"inputs": [json_input("X", shape=[3], datatype="FP32", data=[-1, 0, 1])]}
    answer = await connection.infer("nan", ask)
    assert answer.status == 400
    assert "NaN" in answer.error
    assert "binary_data" in answer.error
    answer = await connection.infer("nan", ask | {"parameters": {"binary_data_output": True}})
    below, zero, one = answer.output("Y").view("<f4").tolist()
    assert below != below
    assert (zero, one) == (float("-inf"), 0.0)
    nan = struct.pack("<3f", float("nan"), float("inf"), 1.0)
    head = {"inputs": [binary_input("X", 12, shape=[3], datatype="FP32")], "parameters": {"binary_data_output": True}}
    first, second, third = (await connection.infer("nan", head, nan)).output("Y").view("<f4").tolist()
    assert first != first
    assert (second, third) == (float("inf"), 0.0)


async def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """ONNX strings are texts to the runtime: others are refused on the way in, by name."""
    models = doors.repository(tmp_path, {"text": onnx_models.identity("BYTES")})
    async with doors.agent(models) as door:
        raw = b"\2\0\0\0\xff\xfe"
        answer = await door.infer("text", {"inputs": [binary_input("INPUT", 6, shape=[1], datatype="BYTES")]}, raw)
        assert answer.status == 400
        assert "INPUT" in answer.error


async def test_values_the_model_cannot_take_cost_nobody_else(tmp_path: Path) -> None:
    models = doors.repository(tmp_path, {"gather": onnx_models.gather()})
    async with doors.agent(models) as door, door.connect() as connection:
        for index, status in ((1, 200), (99, 400), (3, 200)):
            ask = {"inputs": [json_input("I", shape=[1], datatype="INT64", data=[index])]}
            answer = await connection.infer("gather", ask)
            assert answer.status == status
        assert answer.json()["outputs"][0]["data"] == [40.0]


async def test_versions_are_served_as_declared_and_the_highest_is_the_default(tmp_path: Path) -> None:
    models = doors.repository(tmp_path, {"m": onnx_models.add()}, {"m": 'versions = "all"'})
    onnx_models.save(onnx_models.free_dims(), models / "m" / "10" / "model.onnx")
    onnx_models.save(onnx_models.identity("FP32"), models / "m" / "9" / "model.onnx")
    async with doors.agent(models) as door:
        assert (await door.get("/v2/models/m")).json()["versions"] == ["1", "9", "10"]
        assert (await door.get("/v2/models/m/versions/9")).json()["inputs"][0]["name"] == "INPUT"
        ask = {"inputs": [json_input("X", shape=[1, 1, 2], datatype="FP32", data=[1, 2])]}
        answer = await door.infer("m", ask)
        assert (answer.json()["model_version"], answer.json()["outputs"][0]["data"]) == ("10", [2.0, 4.0])
        answer = await door.infer(
            "m/versions/9", {"inputs": [json_input("INPUT", shape=[1], datatype="FP32", data=[7])]}
        )
        assert (answer.json()["model_version"], answer.json()["outputs"][0]["data"]) == ("9", [7.0])
