"""silero-vad as a stream of 32 ms chunks: over HTTP, a gRPC stream, NATS and MQTT it finds the speech in a recording.

The recording is made here (``mesh.demo.audio``): silence, somebody speaking, silence. Not here: what the model is worth
(``mesh.demo``), sequences that lose their node (``test_sequence_failover``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio

from mesh.cluster import Child, Cluster
from mesh.demo import audio
from mesh.nats_server import free_port
from tests.mqtt import Device
from tests.nats import soon
from tests.system.processes import ALONE, ROOT, door, until_held

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]

TOML = """
[[sequence.state]]
input = "state"
output = "stateN"
shape = [2, 1, 128]

[warmup]
input = { shape = [1, 576] }
sr = { shape = [], value = 16000 }
"""
SETTLE = 8
"""Chunks after a change in which the model may still make up its mind."""
Ask = Callable[[int, np.ndarray[Any, Any], dict[str, Any]], Awaitable[float]]


def recording() -> tuple[np.ndarray[Any, Any], list[bool]]:
    """f32[n] and, for each chunk, whether somebody speaks."""
    rng = np.random.default_rng(11)
    parts = [audio.background(rng), audio.background(rng), audio.speech(rng), audio.speech(rng)]
    parts += [audio.background(rng), audio.background(rng)]
    spoken = [False] * 2 * audio.CHUNKS + [True] * 2 * audio.CHUNKS + [False] * 2 * audio.CHUNKS
    return np.concatenate(parts), spoken


async def judge(ask: Ask) -> list[float]:
    """The probability of speech of each chunk, asked in order."""
    signal, spoken = recording()
    padded = np.pad(signal, (audio.CONTEXT, 0))
    heard = []
    for index in range(len(spoken)):
        start = index * audio.CHUNK
        chunk = padded[None, start : start + audio.CONTEXT + audio.CHUNK].astype(np.float32)
        flags = {"sequence_start": index == 0, "sequence_end": index == len(spoken) - 1}
        heard.append(await ask(index, chunk, flags))
    return heard


def check(heard: list[float]) -> None:
    _, spoken = recording()
    settled = [i for i in range(SETTLE, len(spoken)) if len(set(spoken[i - SETTLE : i + 1])) == 1]
    wrong = [i for i in settled if (heard[i] > 0.5) != spoken[i]]
    assert len(wrong) <= len(settled) // 10, (wrong, heard)


def head(chunk: np.ndarray[Any, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    inputs = [
        {"name": "input", "datatype": "FP32", "shape": list(chunk.shape), "data": chunk.ravel().tolist()},
        {"name": "sr", "datatype": "INT64", "shape": [], "data": [audio.RATE]},
    ]
    return {"inputs": inputs, "parameters": parameters, "outputs": [{"name": "output"}]}


def spoken_of(document: dict[str, Any]) -> float:
    return float(np.ravel(document["outputs"][0]["data"])[0])


class Mesh:
    def __init__(self, agent: Child, cluster: Cluster, grpc_address: str, mqtt_port: int) -> None:
        self.agent = agent
        self.cluster = cluster
        self.grpc_address = grpc_address
        self.mqtt_port = mqtt_port


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    models = tmp_path / "models" / "silero_vad"
    (models / "1").mkdir(parents=True)
    (models / "1" / "model.onnx").write_bytes((ROOT / "models" / "silero_vad" / "1" / "model.onnx").read_bytes())
    (models / "model.toml").write_text(TOML)
    mqtt_port, grpc_port = [await asyncio.to_thread(free_port, "127.0.0.1") for _ in range(2)]
    grpc_address = f"127.0.0.1:{grpc_port}"
    environ = ALONE | {"MESH_MODELS__ISOLATION": "none", "MESH_MODELS__THREADS": "1", "MESH_GRPC__LISTEN": grpc_address}
    async with Cluster(tmp_path / "run", agents=environ, mqtt=f"127.0.0.1:{mqtt_port}") as cluster:
        router, agent = await cluster.router(), await cluster.agent("ears", models.parent, site="shop")
        await asyncio.gather(*(child.until_ready() for child in cluster.children))
        await cluster.settled(router, ["ears"])
        await until_held(router, "silero_vad", "ears")
        yield Mesh(agent, cluster, grpc_address, mqtt_port)


async def test_every_door_hears_the_same(mesh: Mesh) -> None:
    heard = [await by(mesh) for by in (over_http, over_grpc, over_nats, over_mqtt)]
    for each in heard:
        check(each)
        assert np.allclose(each, heard[0], atol=1e-4)


async def over_http(mesh: Mesh) -> list[float]:
    async with door(mesh.agent).connect() as connection:

        async def ask(_: int, chunk: np.ndarray[Any, Any], flags: dict[str, Any]) -> float:
            answer = await connection.infer("silero_vad", head(chunk, {"sequence_id": "call-1"} | flags))
            assert answer.status == 200, answer.body
            return spoken_of(answer.json())

        return await judge(ask)


async def over_grpc(mesh: Mesh) -> list[float]:
    """One stream; each chunk is sent when the one before is answered, as from a microphone."""
    chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        while (request := await chunks.get()) is not None:
            yield request

    async with grpc_aio.InferenceServerClient(mesh.grpc_address) as client:
        answers = client.stream_infer(requests())

        async def ask(_: int, chunk: np.ndarray[Any, Any], flags: dict[str, Any]) -> float:
            inputs = [grpc.InferInput("input", list(chunk.shape), "FP32"), grpc.InferInput("sr", [], "INT64")]
            inputs[0].set_data_from_numpy(chunk)
            inputs[1].set_data_from_numpy(np.array(audio.RATE, np.int64))
            chunks.put_nowait({"model_name": "silero_vad", "inputs": inputs, "sequence_id": "call-2"} | flags)
            result, error = await soon(answers.__anext__())
            assert error is None, error
            return float(result.as_numpy("output")[0, 0])

        heard = await judge(ask)
        chunks.put_nowait(None)
        return heard


async def over_nats(mesh: Mesh) -> list[float]:
    bus = await nats.connect(mesh.cluster.bus.url, token=mesh.cluster.bus.token)

    async def ask(_: int, chunk: np.ndarray[Any, Any], flags: dict[str, Any]) -> float:
        body = json.dumps(head(chunk, {"sequence_id": "call-3"} | flags)).encode()
        reply = await bus.request("mesh.v1.infer.silero_vad", body, timeout=60)
        assert not reply.headers or "Nats-Service-Error" not in reply.headers, reply.headers
        return spoken_of(json.loads(reply.data))

    try:
        return await judge(ask)
    finally:
        await bus.close()


async def over_mqtt(mesh: Mesh) -> list[float]:
    results = "mesh/shop/result/silero_vad/+"
    async with Device(mesh.mqtt_port, "microphone", results, mesh.cluster.bus.token) as device:

        async def ask(_: int, chunk: np.ndarray[Any, Any], flags: dict[str, Any]) -> float:
            request = head(chunk, {"sequence_id": "call-4"} | flags)
            answer = await device.ask("mesh/shop/infer/silero_vad/mic-1", request, 1)
            assert "outputs" in answer[1], answer
            return spoken_of(answer[1])

        return await judge(ask)
