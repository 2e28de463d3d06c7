"""Triton's own HTTP clients, the asynchronous and the plain one, at an agent's and a router's door, on tiny models.

Every call is made that OIP has too. Not here: the demonstration's models bit for bit
(``tests.system.test_tritonclient``), the client's bytes against the codec alone (``tests.unit.test_oip_tritonclient``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import Door
from tests.nats import soon

FIRST = np.arange(32, dtype=np.int32).reshape(2, 16)
SECOND = np.full((2, 16), 5, dtype=np.int32)
TEXTS = np.array([b"", b"a", "\u6a21\u578b".encode()], dtype=object)


@pytest.fixture(params=["agent", "router"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    models = {"simple": onnx_models.simple(), "text": onnx_models.identity("BYTES"), "garbage": b"\0garbage"}
    folder = doors.repository(tmp_path, models)
    if request.param == "agent":
        async with doors.agent(folder) as served:
            yield served
        return
    async with (
        NatsServer() as server,
        doors.agent(folder, nats=server.url),
        doors.router(server.url) as served,
    ):
        for model in ("simple", "text"):
            await doors.until_served(served, model)
        yield served


@pytest.fixture
async def client(door: Door) -> AsyncIterator[triton_aio.InferenceServerClient]:
    client = triton_aio.InferenceServerClient(door.address)
    yield client
    await client.close()


def tensor(name: str, array: np.ndarray[Any, Any], *, binary: bool) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "INT32")
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def pair(*, binary: bool) -> list[triton.InferInput]:
    return [tensor("INPUT0", FIRST, binary=binary), tensor("INPUT1", SECOND, binary=binary)]


async def test_health_and_metadata(client: triton_aio.InferenceServerClient) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    assert await client.is_model_ready("simple", "1")
    for name, version in (("simple", "2"), ("garbage", ""), ("nobody", "")):
        assert not await client.is_model_ready(name, version)
    server = await client.get_server_metadata()
    assert server["name"] == "inference-mesh"
    assert server["extensions"][0] == "binary_tensor_data"
    for version in ("", "1"):
        model = await client.get_model_metadata("simple", version)
        assert [i["name"] for i in model["inputs"]] == ["INPUT0", "INPUT1"]
        assert model["versions"] == ["1"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_inference(client: triton_aio.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("OUTPUT1", "OUTPUT0")]
    result = await client.infer("simple", pair(binary=binary_in), model_version="1", outputs=wanted, request_id="7")
    assert result.as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()
    assert result.as_numpy("OUTPUT1").tolist() == (FIRST - SECOND).tolist()
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("7", "simple", "1")
    assert [o["name"] for o in response["outputs"]] == ["OUTPUT1", "OUTPUT0"]
    subset = await client.infer("simple", pair(binary=binary_in), outputs=wanted[:1], timeout=60_000_000, priority=1)
    assert subset.as_numpy("OUTPUT0") is None
    assert subset.as_numpy("OUTPUT1").tolist() == (FIRST - SECOND).tolist()
    every = await client.infer("simple", pair(binary=binary_in))
    assert every.as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()


@pytest.mark.parametrize("binary", [True, False])
async def test_texts(client: triton_aio.InferenceServerClient, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput("OUTPUT", binary_data=binary)]
    result = await client.infer("text", [tensor("INPUT", TEXTS, binary=binary)], outputs=wanted)
    got = [text if isinstance(text, bytes) else text.encode() for text in result.as_numpy("OUTPUT")]
    assert got == TEXTS.tolist()


async def test_errors_reach_the_caller_in_our_words(client: triton_aio.InferenceServerClient) -> None:
    inputs = pair(binary=True)
    for model, sent, words in (
        ("nobody", inputs, "Request for unknown model"),
        ("simple", inputs[:1], "INPUT1"),
        ("garbage", inputs, "not a well-formed ONNX model"),
    ):
        with pytest.raises(triton.InferenceServerException, match=words):
            await client.infer(model, sent)
    with pytest.raises(triton.InferenceServerException, match="deadline"):
        await client.infer("simple", inputs, timeout=1)
    assert (await client.infer("simple", inputs)).as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()


async def test_an_answer_need_not_be_compressed(client: triton_aio.InferenceServerClient) -> None:
    result = await client.infer("simple", pair(binary=True), response_compression_algorithm="gzip")
    assert result.as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()


async def test_the_plain_client_asks_many_at_once(door: Door) -> None:
    def ask() -> list[Any]:
        with plain(door, concurrency=4) as client:
            pending = [client.async_infer("simple", pair(binary=n % 2 == 0), request_id=str(n)) for n in range(16)]
            results = [future.get_result() for future in pending]
            assert [result.get_response()["id"] for result in results] == [str(n) for n in range(16)]
            return [result.as_numpy("OUTPUT0").tolist() for result in results]

    assert await soon(asyncio.to_thread(ask)) == [(FIRST + SECOND).tolist()] * 16


async def test_the_plain_client_asks_and_is_told(door: Door) -> None:
    def ask() -> None:
        with plain(door, concurrency=1) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("simple")
            assert not client.is_model_ready("nobody")
            assert client.get_server_metadata()["name"] == "inference-mesh"
            assert client.get_model_metadata("simple")["platform"] == "onnxruntime_onnx"
            with pytest.raises(triton.InferenceServerException, match="Request for unknown model"):
                client.infer("nobody", pair(binary=True))
            result = client.infer("simple", pair(binary=True))
            assert result.as_numpy("OUTPUT1").tolist() == (FIRST - SECOND).tolist()

    await soon(asyncio.to_thread(ask))


@contextlib.contextmanager
def plain(door: Door, *, concurrency: int) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(door.address, concurrency=concurrency, network_timeout=60.0)
    try:
        yield client
    finally:
        client.close()
