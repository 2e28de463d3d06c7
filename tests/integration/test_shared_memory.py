"""Tensors in system shared memory at real doors, by Triton's client and by hand: in, out, through the router, refused.

The files are made here and not by ``multiprocessing``, which starts a process to watch them. Not here: regions
themselves (``unit/test_shared_memory``).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from mesh.nats_server import NatsServer
from mesh.oip.tensor import pack_elements
from tests import onnx_models
from tests.integration.doors import Answer, Door, agent, repository, request, router, until_served
from tests.integration.test_statistics import by_triton
from tests.streams import COUNT, CountingModels, asked, counting_node

ON: dict[str, Any] = {"shared_memory": True}
ONES = np.ones((1, 16), np.int32)
STEPS = np.arange(16, dtype=np.int32).reshape(1, 16)
INPUTS = STEPS.tobytes() + ONES.tobytes()


class Shared:
    """Objects in shared memory, by key; gone at the end of the test."""

    def __init__(self) -> None:
        self._prefix = f"mesh-test-{uuid.uuid4().hex}-"
        self._paths: list[Path] = []

    def make(self, name: str, data: bytes) -> str:
        """Returns the key."""
        path = self.path(f"/{self._prefix}{name}")
        path.write_bytes(data)
        self._paths.append(path)
        return f"/{path.name}"

    def path(self, key: str) -> Path:
        return Path("/dev/shm") / key[1:]

    def read(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def clear(self) -> None:
        for path in self._paths:
            path.unlink()


@pytest.fixture
def shared() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    shared.clear()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    models = {"simple": onnx_models.simple(), "same": onnx_models.identity("BYTES")}
    async with agent(repository(tmp_path, models), http={"listen": "127.0.0.1:0", "grace_s": 1, **ON}) as door:
        yield door


async def post(door: Door, path: str, document: dict[str, Any] | None = None, **headers: str) -> Answer:
    async with door.connect() as connection:
        body = b"" if document is None else json.dumps(document).encode()
        return await connection.request("POST", f"/v2/systemsharedmemory{path}", body, headers)


async def register(door: Door, name: str, key: str, size: int, offset: int = 0) -> None:
    answer = await post(door, f"/region/{name}/register", {"key": key, "offset": offset, "byte_size": size})
    assert (answer.status, answer.body) == (200, b"")


def tensor(name: str, region: str, size: int, offset: int = 0, **more: Any) -> dict[str, Any]:
    where: dict[str, Any] = {"shared_memory_region": region, "shared_memory_byte_size": size}
    if offset:
        where["shared_memory_offset"] = offset
    return {"name": name, "parameters": where} | more


def both(region: str = "in") -> list[dict[str, Any]]:
    kind: dict[str, Any] = {"datatype": "INT32", "shape": [1, 16]}
    return [tensor("INPUT0", region, 64, **kind), tensor("INPUT1", region, 64, 64, **kind)]


def by_client(client: Any) -> Any:
    """As Triton's own example asks: both inputs from one region, both outputs into another."""
    inputs = [triton.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    outputs = [triton.InferRequestedOutput(name, binary_data=True) for name in ("OUTPUT0", "OUTPUT1")]
    for at, (given, wanted) in enumerate(zip(inputs, outputs, strict=True)):
        given.set_shared_memory("in", 64, offset=64 * at)
        wanted.set_shared_memory("out", 64, offset=64 * at)
    return client.infer("simple", inputs, outputs=outputs).get_response()


async def test_tritons_client_passes_tensors_in_and_out(door: Door, shared: Shared) -> None:
    into, out = shared.make("in", INPUTS), shared.make("out", bytes(128))
    await by_triton(door, lambda c: c.register_system_shared_memory("in", into, 128))
    await by_triton(door, lambda c: c.register_system_shared_memory("out", out, 128))
    answer = await by_triton(door, by_client)
    assert shared.read(out) == (STEPS + ONES).tobytes() + (STEPS - ONES).tobytes()
    assert answer["outputs"] == [
        {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 16],
         "parameters": {"shared_memory_region": "out", "shared_memory_byte_size": 64}},
        {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 16],
         "parameters": {"shared_memory_region": "out", "shared_memory_byte_size": 64, "shared_memory_offset": 64}},
    ]  # fmt: skip
    status = await by_triton(door, lambda c: c.get_system_shared_memory_status())
    assert status == [
        {"name": "in", "key": into, "offset": 0, "byte_size": 128},
        {"name": "out", "key": out, "offset": 0, "byte_size": 128},
    ]
    assert await by_triton(door, lambda c: c.get_system_shared_memory_status("in")) == status[:1]
    await by_triton(door, lambda c: c.unregister_system_shared_memory("in"))
    await by_triton(door, lambda c: c.unregister_system_shared_memory())
    assert await by_triton(door, lambda c: c.get_system_shared_memory_status()) == []
    assert "system_shared_memory" in (await door.get("/v2")).json()["extensions"]


async def test_the_router_fetches_what_its_nodes_compute(tmp_path: Path, shared: Shared) -> None:
    into, out = shared.make("in", INPUTS), shared.make("out", bytes(128))
    async with (
        NatsServer() as server,
        router(server.url, http={"listen": "127.0.0.1:0", **ON}) as door,
        agent(repository(tmp_path, {"simple": onnx_models.simple()}), nats=server.url),
    ):
        await until_served(door, "simple")
        await register(door, "in", into, 128)
        await register(door, "out", out, 128)
        await by_triton(door, by_client)
    assert shared.read(out) == (STEPS + ONES).tobytes() + (STEPS - ONES).tobytes()


async def test_shared_memory_and_the_body_go_together(door: Door, shared: Shared) -> None:
    await register(door, "in", shared.make("in", b"junk" + STEPS.tobytes()), 64, offset=4)
    key = shared.make("out", bytes(80))
    await register(door, "out", key, 64, offset=8)
    inputs = [
        tensor("INPUT0", "in", 64, datatype="INT32", shape=[1, 16]),
        {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16], "parameters": {"binary_data_size": 64}},
    ]
    outputs = [tensor("OUTPUT1", "out", 64), {"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    for _ in range(2):  # the second time its head is known
        answer = await door.infer("simple", {"inputs": inputs, "outputs": outputs}, ONES.tobytes())
        assert answer.output("OUTPUT0").tobytes() == (STEPS + ONES).tobytes()
        assert shared.read(key) == bytes(8) + (STEPS - ONES).tobytes() + bytes(8)
    plain = await door.infer("simple", {"inputs": inputs, "outputs": [outputs[0], {"name": "OUTPUT0"}]}, ONES.tobytes())
    assert plain.output("OUTPUT0").tolist() == (STEPS + ONES).reshape(-1).tolist()


async def test_texts_take_the_room_they_need(door: Door, shared: Shared) -> None:
    texts = pack_elements([b"one", "zwölf", b""], "texts")
    await register(door, "in", shared.make("in", texts), len(texts))
    key = shared.make("out", bytes(64))
    await register(door, "out", key, 64)
    given = [tensor("INPUT", "in", len(texts), datatype="BYTES", shape=[3])]
    answer = await door.infer("same", {"inputs": given, "outputs": [tensor("OUTPUT", "out", 64)]})
    assert answer.json()["outputs"][0]["parameters"]["shared_memory_byte_size"] == len(texts)
    assert shared.read(key) == texts + bytes(64 - len(texts))
    small = await door.infer("same", {"inputs": given, "outputs": [tensor("OUTPUT", "out", len(texts) - 1)]})
    assert (small.status, "should be at least" in small.error) == (400, True)


def second(region: Any, size: int, offset: int = 0) -> list[dict[str, Any]]:
    return [*both()[:1], tensor("INPUT1", region, size, offset, datatype="INT32", shape=[1, 16])]


def first(**more: Any) -> list[dict[str, Any]]:
    return [tensor("INPUT0", "in", 64, **{"datatype": "INT32", "shape": [1, 16]} | more)]


BAD: tuple[tuple[int, str, list[dict[str, Any]], list[dict[str, Any]]], ...] = (
    (404, "Unable to find system shared memory region: 'zebra'", both("zebra"), []),
    (400, "Invalid offset + byte size", second("in", 64, 65), []),
    (400, "byte size mismatch", second("in", 60), []),
    (400, "counts of bytes", second("in", -1), []),
    (400, "counts of bytes", second(7, 64), []),
    (400, "beside its shared memory", first(data=[1] * 16), []),
    (400, "invalid datatype", first(datatype="INT33"), []),
    (400, "without 'shared_memory_region'", both(), [{"name": "OUTPUT0", "parameters": {"shared_memory_offset": 1}}]),
    (404, "Unable to find", both(), [tensor("OUTPUT0", "zebra", 64)]),
    (400, "Invalid offset + byte size", both(), [tensor("OUTPUT0", "in", 129)]),
    (400, "should be at least 64 bytes", both(), [tensor("OUTPUT0", "in", 32)]),
)


@pytest.mark.parametrize(("status", "text", "inputs", "outputs"), BAD)
async def test_what_does_not_fit_is_refused(
    door: Door, shared: Shared, status: int, text: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> None:
    key = shared.make("in", INPUTS)
    await register(door, "in", key, 128)
    answer = await door.infer("simple", {"inputs": inputs, "outputs": outputs})
    assert (answer.status, text in answer.error) == (status, True), answer.body
    assert shared.read(key) == INPUTS


async def test_a_client_that_cuts_its_memory_short_hurts_nobody_else(door: Door, shared: Shared) -> None:
    key = shared.make("in", INPUTS)
    await register(door, "in", key, 128)
    os.truncate(shared.path(key), 16)
    answer = await door.infer("simple", {"inputs": both()})
    assert (answer.status, "shorter than it was registered" in answer.error) == (400, True)
    assert (await door.get("/v2/health/ready")).status == 200


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"key": 1, "byte_size": 1},
        {"key": "/x", "byte_size": "1"},
        {"key": "/x", "byte_size": 1, "offset": None},
        {"key": "/../etc/passwd", "byte_size": 1},
        {"key": "/mesh-test-nobody", "byte_size": 1},
    ],
)
async def test_a_region_that_is_none_is_refused(door: Door, document: dict[str, Any]) -> None:
    answer = await post(door, "/region/r/register", document)
    assert answer.status == 400
    assert answer.error


async def test_web_pages_and_cuda(door: Door, shared: Shared) -> None:
    key = shared.make("in", INPUTS)
    refused = await post(door, "/region/r/register", {"key": key, "byte_size": 1}, Origin="http://127.0.0.1")
    assert (refused.status, refused.error) == (501, "shared memory is not for web pages")
    assert (await door.get("/v2/systemsharedmemory/region/r/status")).status == 404
    await by_triton(door, lambda c: c.unregister_cuda_shared_memory())
    assert await by_triton(door, lambda c: c.get_cuda_shared_memory_status()) == []
    with pytest.raises(triton.InferenceServerException, match="CUDA shared memory is not supported"):
        await by_triton(door, lambda c: c.register_cuda_shared_memory("r", b"handle", 0, 64))


async def test_it_is_off_unless_it_is_allowed(tmp_path: Path, shared: Shared) -> None:
    async with agent(repository(tmp_path, {"simple": onnx_models.simple()})) as door:
        answers = [
            await post(door, "/region/r/register", {"key": shared.make("in", INPUTS), "byte_size": 1}),
            await post(door, "/unregister"),
            await door.get("/v2/systemsharedmemory/status"),
            await door.infer("simple", {"inputs": both()}),
        ]
        assert {(a.status, a.error) for a in answers} == {
            (501, "system shared memory is off at this door: set http.shared_memory = true")
        }
        assert "system_shared_memory" not in (await door.get("/v2")).json()["extensions"]


async def test_answers_of_a_stream_are_not_written_over_each_other(shared: Shared) -> None:
    """What is made ahead of its reader would lie where that is still reading; inputs come from there as ever."""
    models = CountingModels()
    async with counting_node(models, "edge-1", http={"listen": "127.0.0.1:0", **ON}) as door:
        key, region = shared.make("region", bytes([255] * 8)), {"shared_memory_region": "r"}
        body = asked(50)
        body["outputs"] = [{"name": "N", "parameters": region | {"shared_memory_byte_size": 8}}]
        register = {"key": key, "offset": 0, "byte_size": 8}
        assert (await post(door, "/region/r/register", register)).status == 200
        async with door.connect() as line:
            await line.send(request("POST", f"/v2/models/{COUNT}/infer_stream", json.dumps(body).encode()))
            answer = await line.answer()
            assert (answer.status, answer.headers["mesh-error"]) == (501, "unsupported")
            assert "of a stream" in answer.error
            assert (models.begun, shared.read(key)) == (0, bytes([255] * 8))

            del body["outputs"]
            body["inputs"][0] = {"name": "X", "datatype": "UINT8", "shape": [1]}
            body["inputs"][0]["parameters"] = region | {"shared_memory_byte_size": 1}
            await line.send(request("POST", f"/v2/models/{COUNT}/infer_stream", json.dumps(body).encode()))
            assert (await line.begun()).status == 200
            events = b""
            while chunk := await line.chunk():
                events += chunk
            assert events.count(b"data: ") == 50
