"""What Triton's HTTP clients ask for beside plain inference, at an agent's and a router's door: compressed bodies,
classes, raw values.

Not here: each by itself (``tests.unit.test_http_content``, ``test_oip_raw``, ``test_oip_classification``).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import helper

from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import HEADER_LENGTH, Door

DOUBLE = onnx_models.build(
    [helper.make_node("Add", ["X", "X"], ["Y"])],
    [onnx_models.value("X", "FP32", (-1, 16))],
    [onnx_models.value("Y", "FP32", (-1, 16))],
)
MODELS = {
    "simple": onnx_models.simple(),
    "add": DOUBLE,
    "text": onnx_models.identity("BYTES"),
    "named": DOUBLE,
    "many": DOUBLE,
    "small": onnx_models.classifier(),
    "large": onnx_models.classifier(shift=1),
}
NAMED = '[labels]\nY = "labels.txt"'
SURE = '[cascade]\nnext = "large"\noutput = "probabilities"\nthreshold = 0.9\naudit = 0.0\n'
TOML = {"named": NAMED, "many": NAMED, "small": SURE + '[labels]\nprobabilities = ["a", "b", "c"]'}
LABELS = {"named": "\n".join("abcdefghijklmno"), "many": "\n".join(['"' * 16_000] * 16)}
"""The last class of "named" has none; those of "many" fill nearly all there may be, and JSON doubles them."""
X = np.arange(16, dtype=np.float32)[None]


@pytest.fixture(params=["agent", "router"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    folder = doors.repository(tmp_path, MODELS, TOML)
    for model, text in LABELS.items():
        (folder / model / "labels.txt").write_text(text)
    if request.param == "agent":
        async with doors.agent(folder) as served:
            yield served
        return
    async with NatsServer() as server, doors.agent(folder, nats=server.url), doors.router(server.url) as served:
        for model in MODELS:
            await doors.until_served(served, model)
        yield served


def inputs(*, binary: bool, rows: int = 1) -> list[triton.InferInput]:
    made = triton.InferInput("X", [rows, 16], "FP32")
    made.set_data_from_numpy(np.repeat(X, rows, axis=0), binary_data=binary)
    return [made]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [1, 2_000])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_bodies_compressed_both_ways(door: Door, coding: str, rows: int, binary: bool) -> None:
    client = triton_aio.InferenceServerClient(door.address)
    try:
        result = await client.infer(
            "add",
            inputs(binary=binary, rows=rows),
            outputs=[triton.InferRequestedOutput("Y", binary_data=binary)],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        assert np.array_equal(result.as_numpy("Y"), np.repeat(2 * X, rows, axis=0))
    finally:
        await client.close()


@pytest.mark.parametrize("binary", [True, False])
async def test_classes(door: Door, binary: bool) -> None:
    client = triton_aio.InferenceServerClient(door.address)
    try:
        wanted = [triton.InferRequestedOutput("Y", binary_data=binary, class_count=3)]
        result = await client.infer("add", inputs(binary=True, rows=2), outputs=wanted)
        classes = [[text.decode() if isinstance(text, bytes) else text for text in row] for row in result.as_numpy("Y")]
        assert classes == [["30.000000:15", "28.000000:14", "26.000000:13"]] * 2
    finally:
        await client.close()


@pytest.mark.parametrize("binary", [True, False])
async def test_classes_have_the_labels_of_the_model(door: Door, binary: bool) -> None:
    assert (
        await classes(door, "named", inputs(binary=True, rows=2), "Y", binary=binary)
        == [["30.000000:15", "28.000000:14:o", "26.000000:13:n"]] * 2
    )
    best, *_ = (await classes(door, "many", inputs(binary=True), "Y", binary=binary))[0]
    assert best == "30.000000:15:" + '"' * 16_000
    metadata = (await door.get("/v2/models/named")).json()
    assert metadata["parameters"]["labels.Y"] == LABELS["named"]
    config = (await door.get("/v2/models/named/config")).json()
    assert [output["label_filename"] for output in config["output"]] == ["labels.txt"]


@pytest.mark.parametrize(("scale", "best"), [(9.0, "b"), (0.1, "c")])
async def test_labels_are_of_the_model_that_was_asked_for(door: Door, scale: float, best: str) -> None:
    made = triton.InferInput("X", [1, 3], "FP32")
    made.set_data_from_numpy(np.array([[0, scale, 0]], np.float32))
    (row,) = await classes(door, "small", [made], "probabilities", binary=True)
    assert row[0].split(":")[1:] == [str("abc".index(best)), best]
    assert len(row) == 3


async def classes(door: Door, model: str, made: list[triton.InferInput], output: str, *, binary: bool) -> Any:
    client = triton_aio.InferenceServerClient(door.address)
    try:
        wanted = [triton.InferRequestedOutput(output, binary_data=binary, class_count=3)]
        found = (await client.infer(model, made, outputs=wanted)).as_numpy(output)
        return [[text.decode() if isinstance(text, bytes) else text for text in row] for row in found]
    finally:
        await client.close()


async def test_labels_of_no_output_fail_by_name(tmp_path: Path) -> None:
    folder = doors.repository(tmp_path, {"add": DOUBLE}, {"add": '[labels]\nZ = ["a"]'})
    async with doors.agent(folder) as door:
        (entry,) = await index(door)
        assert entry["state"] == "UNAVAILABLE"
        assert "labels: the model answers no output 'Z', it has ['Y']" in entry["reason"]


async def index(door: Door) -> Any:
    async with door.connect() as connection:
        return (await connection.request("POST", "/v2/repository/index", b"{}")).json()


async def raw(door: Door, model: str, body: bytes, **headers: str) -> Any:
    async with door.connect() as connection:
        path = f"/v2/models/{model}/infer"
        return await connection.request("POST", path, body, {HEADER_LENGTH: "0"} | headers)


async def test_raw_values(door: Door) -> None:
    answer = await raw(door, "add", X.tobytes())
    assert answer.output("Y").view(np.float32).tolist() == (2 * X)[0].tolist()
    answer = await raw(door, "add", zlib.compress(X.tobytes()), **{"Content-Encoding": "deflate"})
    assert answer.output("Y").view(np.float32).tolist() == (2 * X)[0].tolist()
    assert (await raw(door, "text", b"any bytes")).output("OUTPUT").tobytes() == b"\x09\0\0\0any bytes"
    for model, body, status in (("simple", bytes(64), 400), ("add", bytes(60), 400), ("nothing", b"", 404)):
        assert (await raw(door, model, body)).status == status


async def test_limits_are_those_of_the_plain_body(tmp_path: Path) -> None:
    folder = doors.repository(tmp_path, MODELS)
    async with doors.agent(folder, http={"max_body_bytes": 4096}) as door, door.connect() as connection:
        head = {
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": X[0].tolist()}],
            "id": "x" * 8192,
        }
        packed = zlib.compress(json.dumps(head).encode())
        assert len(packed) < 4096
        answer = await connection.request("POST", "/v2/models/add/infer", packed, {"Content-Encoding": "deflate"})
        assert answer.status == 413
        assert "over 4096 bytes" in answer.error
