"""Triton's own client on the demonstration's models: what it gets is what ONNX Runtime gives in this process.

Against an agent and through the router, both real processes. Not here: malformed requests, tiny models.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
import pytest_asyncio
import tritonclient.http as triton

from mesh.cluster import Child, Cluster
from mesh.demo.workloads import Workload, load
from tests.system.processes import ALONE, ROOT

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]

MODELS = ROOT / "models"
NAMES = ("magika", "silero_vad", "ocr_det", "ocr_rec", "ocr_cls", "orientation")
SEEDS = range(4)


@dataclass(frozen=True)
class Mesh:
    agent: Child
    router: Child
    workloads: dict[str, Workload]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    one_thread = ALONE | {"MESH_MODELS__ISOLATION": "device", "MESH_MODELS__THREADS": "1"}
    async with Cluster(tmp_path_factory.mktemp("triton"), agents=one_thread) as cluster:
        router = await cluster.router()
        agent = await cluster.agent("agent", MODELS)
        await agent.until_ready()
        await router.until_ready()
        await cluster.settled(router, ["agent"])
        yield Mesh(agent, router, {w.model: w for w in load(MODELS)})


@contextlib.contextmanager
def client_of(child: Child) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(child.address, network_timeout=60.0)
    try:
        yield client
    finally:
        client.close()


def reference(model: str) -> onnxruntime.InferenceSession:
    """The session an agent opens: one thread, sequential, no memory arena."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    path = str(MODELS / model / "1" / "model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def asked(client: triton.InferenceServerClient, model: str, inputs: dict[str, Any], *, binary: bool) -> dict[str, Any]:
    tensors, declared = [], {spec["name"]: spec for spec in client.get_model_metadata(model)["inputs"]}
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), declared[name]["datatype"])
        tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    names = [spec["name"] for spec in client.get_model_metadata(model)["outputs"]]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer(model, tensors, outputs=outputs)
    return {name: result.as_numpy(name) for name in names}


@pytest.mark.parametrize("door", ["agent", "router"])
@pytest.mark.parametrize("model", NAMES)
async def test_every_bit_is_what_onnx_runtime_gives(mesh: Mesh, model: str, door: str) -> None:
    session = reference(model)
    names = [output.name for output in session.get_outputs()]
    with client_of(getattr(mesh, door)) as client:
        assert client.is_model_ready(model)
        for seed in SEEDS:
            inputs = dict(mesh.workloads[model].request(np.random.default_rng(seed)).inputs)
            expected = dict(zip(names, session.run(names, inputs), strict=True))
            got = asked(client, model, inputs, binary=True)
            for name in names:
                assert got[name].dtype == expected[name].dtype
                np.testing.assert_array_equal(got[name], expected[name], err_msg=f"{model} {name} seed {seed}")


@pytest.mark.parametrize("door", ["agent", "router"])
async def test_json_carries_the_same_numbers(mesh: Mesh, door: str) -> None:
    session = reference("ocr_cls")
    inputs = dict(mesh.workloads["ocr_cls"].request(np.random.default_rng(7)).inputs)
    expected = session.run(None, inputs)[0]
    with client_of(getattr(mesh, door)) as client:
        (got,) = asked(client, "ocr_cls", inputs, binary=False).values()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("door", ["agent", "router"])
async def test_the_questions_every_client_asks_first(mesh: Mesh, door: str) -> None:
    with client_of(getattr(mesh, door)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("magika", "1")
        assert metadata["inputs"] == [{"name": "bytes", "datatype": "INT32", "shape": [-1, 2048]}]
        with pytest.raises(triton.InferenceServerException, match="Request for unknown model"):
            client.get_model_metadata("nobody")


async def test_many_at_once_are_not_mixed_up(mesh: Mesh) -> None:
    session = reference("magika")
    rng = np.random.default_rng(11)
    batches = [rng.integers(0, 257, (1, 2048), np.int32) for _ in range(24)]
    with contextlib.closing(triton.InferenceServerClient(mesh.router.address, concurrency=8)) as client:
        pending = []
        for batch in batches:
            tensor = triton.InferInput("bytes", [1, 2048], "INT32")
            tensor.set_data_from_numpy(batch)
            pending.append(client.async_infer("magika", [tensor]))
        for batch, future in zip(batches, pending, strict=True):
            expected = session.run(None, {"bytes": batch})[0]
            np.testing.assert_array_equal(future.get_result().as_numpy("target_label"), expected)
