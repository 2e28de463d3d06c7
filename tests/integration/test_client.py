"""The SDK against real doors: arrays in and out, doors that die, deadlines, errors by type, plain code, life's end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.client import Client, door_address
from mesh.errors import (
    ConfigError,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    NoReadyInstance,
    PayloadTooLarge,
)
from mesh.nats_bus import NatsOptions
from mesh.oip.datatypes import DATATYPES
from mesh.oip.tensor import Tensor
from mesh.sync_client import SyncClient
from tests import onnx_models
from tests.contract.tensors import ENDLESS
from tests.fakes import until
from tests.integration.doors import Door, agent, repository
from tests.nats import soon

Array = np.ndarray[Any, Any]
X = np.arange(16, dtype=np.float32).reshape(1, 16)
MODELS = {
    "add": onnx_models.add(),
    "simple": onnx_models.simple(),
    "gather": onnx_models.gather(),
    "loop": onnx_models.loop(),
    "bytes": onnx_models.identity("BYTES"),
}


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    models = repository(tmp_path / "models", MODELS)
    async with agent(models, models={"isolation": "device"}) as door:  # a hang can be ended there
        yield door


@pytest.fixture
async def client(door: Door) -> AsyncIterator[Client]:
    async with Client(f"http://{door.address}") as client:
        yield client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BF16"])
async def test_every_datatype_comes_back_as_it_went(tmp_path: Path, datatype: str) -> None:
    models = repository(tmp_path, {"same": onnx_models.identity(datatype)})
    if datatype == "BYTES":
        sent: Array = np.array([b"", b"\x00", "text \u00e9".encode()], dtype=object)
    else:
        sent = np.array([0, 1, 1], dtype=DATATYPES[datatype].dtype)
    async with agent(models) as door, Client(door.address) as client:
        result = await client.infer("same", {"INPUT": sent})
    got = result["OUTPUT"]
    assert got.dtype == sent.dtype
    assert got.tolist() == sent.tolist()


async def test_bf16_goes_as_its_bits(tmp_path: Path) -> None:
    models = repository(tmp_path, {"same": onnx_models.identity("BF16")})
    async with agent(models) as door, Client(door.address) as client:
        sent = Tensor.from_numpy("INPUT", np.array([1.0, -2.0], dtype=np.float32), "BF16")
        result = await client.infer("same", [sent])
    assert result["OUTPUT"].tolist() == [0x3F80, 0xC000]


async def test_a_result_says_what_ran_and_where(client: Client) -> None:
    result = await client.infer("add", {"X": X})
    assert result["Y"].tolist() == (2 * X).tolist()
    assert (result.model, result.version, result.node, result.route, result.hops) == (
        "add", "1", "edge-1", "local", 0,
    )  # fmt: skip


async def test_arrays_need_not_be_contiguous_and_outputs_may_be_chosen(client: Client) -> None:
    a: Array = np.arange(32, dtype=np.int32).reshape(16, 2).T[:1]
    assert not a.flags.c_contiguous
    result = await client.infer("simple", {"INPUT0": a, "INPUT1": a}, outputs=["OUTPUT1"], version="1")
    assert list(result.outputs) == ["OUTPUT1"]
    assert result["OUTPUT1"].tolist() == [[0] * 16]


async def test_what_the_mesh_holds(client: Client, door: Door) -> None:
    metadata = await client.metadata("simple")
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [
        ("INPUT0", "INT32", (-1, 16)),
        ("INPUT1", "INT32", (-1, 16)),
    ]
    assert await client.models() == sorted(MODELS)
    (node,) = await client.nodes()
    assert (node["node"], node["state"], node["http"]) == ("edge-1", "ready", door.address)
    assert client.doors == [door.address]


async def test_errors_arrive_by_type(client: Client) -> None:
    index = {"I": np.array([99], dtype=np.int64)}
    with pytest.raises(ModelNotFound, match=r"^Request for unknown model"):
        await client.infer("nope", {"X": X})
    with pytest.raises(ModelNotFound, match="version '7'"):
        await client.infer("add", {"X": X}, version="7")
    with pytest.raises(ModelNotFound):
        await client.metadata("nope")
    with pytest.raises(InvalidRequest, match="X"):
        await client.infer("add", {"Z": X})
    with pytest.raises(InvalidRequest, match="no output"):
        await client.infer("add", {"X": X}, outputs=["nope"])
    with pytest.raises(MeshError) as caught:
        await client.infer("gather", index)
    assert type(caught.value) in (InferenceFailed, InvalidRequest)
    with pytest.raises(InvalidRequest):
        await client.infer("add", {"X": np.zeros(3, dtype=np.complex64)})
    with pytest.raises(PayloadTooLarge):
        await client.infer("bytes", {"INPUT": np.array([bytes(65 << 20)], dtype=object)})
    assert (await client.infer("add", {"X": X})).node == "edge-1"


async def test_the_deadline_is_kept_by_the_door_and_by_the_client(client: Client) -> None:
    forever = {"N": np.array(ENDLESS, dtype=np.int64)}
    with pytest.raises(DeadlineExceeded):
        await soon(client.infer("loop", forever, deadline_ms=200))
    with pytest.raises(DeadlineExceeded):
        await client.infer("add", {"X": X}, deadline_ms=0)


async def test_a_door_that_takes_connections_and_says_nothing_is_no_door() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with Client(f"127.0.0.1:{silent.getsockname()[1]}") as client:
            with pytest.raises(NoReadyInstance, match="no door of the mesh answers"):
                await soon(client.infer("add", {"X": X}))


async def test_no_door_at_all_is_said_at_once() -> None:
    async with Client(f"http://127.0.0.1:{free_port()}", deadline_ms=60_000) as client:
        for work in (client.infer("add", {"X": X}), client.metadata("add"), client.nodes(), client.models()):
            with pytest.raises(NoReadyInstance, match="no door of the mesh answers; give its URL"):
                await work


async def test_a_dead_url_is_passed_over_and_a_door_that_dies_is_left(tmp_path: Path) -> None:
    models = repository(tmp_path, {"add": onnx_models.add()})
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        one = await first.enter_async_context(agent(models, node={"name": "one"}))
        two = await stack.enter_async_context(agent(models, node={"name": "two"}))
        urls = (f"http://127.0.0.1:{free_port()}", f"http://{one.address}/", two.address)
        client = await stack.enter_async_context(Client(*urls))
        assert client.doors == [one.address, two.address] or client.doors == [two.address, one.address]
        assert {(await client.infer("add", {"X": X})).node for _ in range(5)} <= {"one", "two"}
        await first.aclose()
        assert {(await client.infer("add", {"X": X})).node for _ in range(5)} == {"two"}
        assert (await client.metadata("add")).name == "add"
        assert [n["node"] for n in await client.nodes()] == ["two"]


async def test_a_door_that_comes_back_on_its_port_is_used_again(tmp_path: Path) -> None:
    models = repository(tmp_path, {"add": onnx_models.add()})
    listen = f"127.0.0.1:{free_port()}"
    async with Client(listen) as client:
        assert client.doors == []
        async with agent(models, http={"listen": listen}):
            await until(lambda: bool(client.doors))
            assert (await client.infer("add", {"X": X})).node == "edge-1"


async def test_many_at_once_on_one_client(client: Client) -> None:
    arrays = [np.full((1, 16), n, dtype=np.float32) for n in range(50)]
    results = await asyncio.gather(*(client.infer("add", {"X": array}) for array in arrays))
    assert [r["Y"][0, 0] for r in results] == [2.0 * n for n in range(50)]


async def test_a_client_that_is_not_open_says_so(door: Door) -> None:
    client = Client(door.address)
    for opened in (False, True):
        with pytest.raises(RuntimeError, match="use it in a with statement"):
            await client.infer("add", {"X": X})
        with pytest.raises(RuntimeError, match="use it in a with statement"):
            await client.models()
        if not opened:
            async with client:
                await client.infer("add", {"X": X})


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


async def test_plain_code_on_a_thread_of_its_own(door: Door) -> None:
    def plain() -> list[Any]:
        with SyncClient(door.address) as client:
            result = client.infer("add", {"X": X})
            with pytest.raises(ModelNotFound):
                client.infer("nope", {"X": X})
            return [result["Y"].tolist(), client.metadata("add").name, client.models(), client.nodes()[0]["node"]]

    y, name, models, node = await asyncio.to_thread(plain)
    assert (y, name, models, node) == ((2 * X).tolist(), "add", sorted(MODELS), "edge-1")


def test_plain_code_without_any_door() -> None:
    with no_thread_left(), SyncClient(f"127.0.0.1:{free_port()}") as client, pytest.raises(NoReadyInstance):
        client.infer("add", {"X": X})
    with pytest.raises(RuntimeError, match="not open"):
        client.models()
    with pytest.raises(RuntimeError, match="not open"):
        SyncClient("127.0.0.1:1").models()


def test_a_plain_client_that_cannot_be_opened_leaves_no_thread() -> None:
    with no_thread_left(), pytest.raises(ConfigError):
        SyncClient("https://door").__enter__()


async def test_a_plain_client_works_in_the_thread_of_a_running_loop() -> None:
    # It blocks this loop, by its caller's own choice; a call that needed this loop would never return.
    with SyncClient(f"127.0.0.1:{free_port()}") as client, pytest.raises(NoReadyInstance):
        client.models()


async def test_the_urls_may_come_from_the_environment(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_URL", f"http://127.0.0.1:{free_port()}, http://{door.address},")
    async with Client() as client:
        assert (await client.infer("add", {"X": X})).node == "edge-1"


def test_what_is_no_option_is_refused() -> None:
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="retry_ratio"):
            Client("127.0.0.1:1", retry_ratio=ratio)
    with pytest.raises(ConfigError, match="not in both"):
        Client("nats://127.0.0.1:1", nats=NatsOptions(("nats://127.0.0.1:2",), "me"))


@pytest.mark.parametrize("url", ["https://door:443", "door", "http://door", "http://door:port", "http://", "ftp://d:1"])
def test_what_is_no_door_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        door_address(url)
