"""What Triton's own client examples do, done with ``tritonclient`` on their models, at an agent and a router.

Not here: the examples themselves (``test_other_clients``), trained models (``test_tritonclient``), every odd request
(``tests.integration``).
"""

from __future__ import annotations

import contextlib
import os
import queue
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from tests.interop.asked import KINDS, Asked, asked
from tests.models.make_triton import FOLDER

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.ones((1, 16), np.int32)
VALUES = (11, 7, 5, 3, 2, 0, 1)
PATIENCE_S = 60.0
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
AIO = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}
over = pytest.mark.parametrize("over", CLIENTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Asked]:
    async with asked(request.param, FOLDER) as door:
        yield door


@contextlib.contextmanager
def client_at(door: Asked, over: str) -> Iterator[Any]:
    with contextlib.closing(CLIENTS[over].InferenceServerClient(getattr(door, over))) as client:
        yield client


def tensor(over: str, name: str, array: np.ndarray[Any, Any], datatype: str = "INT32") -> Any:
    made = CLIENTS[over].InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def texts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([[str(n).encode() for n in row] for row in array], dtype=object)


def pair(over: str, datatype: str) -> list[Any]:
    make: Callable[[Any], Any] = texts if datatype == "BYTES" else lambda array: array.astype(datatype.lower())
    return [tensor(over, f"INPUT{n}", make(array), datatype) for n, array in enumerate((FIRST, SECOND))]


def right(result: Any) -> None:
    """Sum and difference, be they numbers or texts of numbers."""
    for name, expected in (("OUTPUT0", FIRST + SECOND), ("OUTPUT1", FIRST - SECOND)):
        assert result.as_numpy(name).astype(np.int32).tolist() == expected.tolist(), name


@over
async def test_health_and_metadata(door: Asked, over: str) -> None:
    how = {"as_json": True} if over == "grpc" else {}
    with client_at(door, over) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("simple")
        assert client.get_server_metadata(**how)["name"] == "triton"
        inputs = client.get_model_metadata("simple", **how)["inputs"]
        assert [(i["name"], i["datatype"], [int(n) for n in i["shape"]]) for i in inputs] == [
            (name, "INT32", [-1, 16]) for name in ("INPUT0", "INPUT1")
        ]
        sequence = client.get_model_metadata("simple_dyna_sequence", **how)
        assert [i["name"] for i in sequence["inputs"]] == ["INPUT"], "controls are not the caller's"
        config = client.get_model_config("simple", **how)
        assert config.get("config", config)["max_batch_size"] == 8
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.get_model_metadata("wrong_model_name")


@over
@pytest.mark.parametrize(
    ("model", "datatype"), [("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "BYTES")]
)
async def test_sums_and_differences(door: Asked, over: str, model: str, datatype: str) -> None:
    with client_at(door, over) as client:
        right(client.infer(model, pair(over, datatype)))
        outputs = [CLIENTS[over].InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
        right(client.infer(model, pair(over, datatype), outputs=outputs))
        counted = client.get_inference_statistics(model, **({"as_json": True} if over == "grpc" else {}))
        (row,) = counted["model_stats"]
        assert row["name"] == model
        assert int(row["inference_count"]) >= 2


@over
async def test_texts_come_back_as_they_were(door: Asked, over: str) -> None:
    sent = np.array([["a", "模型".encode(), b"\x00\x7f", b""]], dtype=object)
    with client_at(door, over) as client:
        got = client.infer("simple_identity", [tensor(over, "INPUT0", sent, "BYTES")]).as_numpy("OUTPUT0")
    assert got.tolist() == [[b"a", "模型".encode(), b"\x00\x7f", b""]]


@over
async def test_asynchronous_clients(door: Asked, over: str) -> None:
    async with AIO[over].InferenceServerClient(getattr(door, over)) as client:
        right(await client.infer("simple", pair(over, "INT32")))
        assert await client.is_model_ready("simple_string")
    with client_at(door, over) as client:
        if over == "http":
            futures = [client.async_infer("simple", pair(over, "INT32")) for _ in range(4)]
            results = [future.get_result() for future in futures]
        else:
            answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
            for _ in range(4):
                client.async_infer("simple", pair(over, "INT32"), lambda result, error: answers.put((result, error)))
            results = [unwrapped(answers) for _ in range(4)]
    for result in results:
        right(result)


def unwrapped(answers: queue.Queue[tuple[Any, Any]]) -> Any:
    result, error = answers.get(timeout=PATIENCE_S)
    assert error is None, error
    return result


async def test_typed_contents_and_the_errors_the_examples_wait_for(door: Asked) -> None:
    request = service_pb2.ModelInferRequest(model_name="simple_int8")
    for name, array in (("INPUT0", FIRST), ("INPUT1", SECOND)):
        request.inputs.add(name=name, datatype="INT8", shape=[1, 16]).contents.int_contents.extend(array[0].tolist())
    with tritonclient.grpc.InferenceServerClient(door.grpc) as client:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
        answer = stub.ModelInfer(request)
        assert np.frombuffer(answer.raw_output_contents[0], np.int8).tolist() == (FIRST + SECOND)[0].tolist()
        request.model_version = "wrong_specification"
        with pytest.raises(
            grpc.RpcError, match="get model version from specified version string 'wrong_specification'"
        ):
            stub.ModelInfer(request)
        request.model_version = ""
        request.raw_input_contents.append(bytes(16))
        beside = (
            "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'simple_int8'"
        )
        with pytest.raises(grpc.RpcError, match=beside):
            stub.ModelInfer(request)


def expected(model: str, sequence_id: int | str) -> list[int]:
    """1 more at the start; the id at the end where the model takes it."""
    answers = list(VALUES)
    answers[0] += 1
    answers[-1] += int(sequence_id) if model == "simple_dyna_sequence" else 0
    return answers


def steps(over: str, sequence_id: int | str) -> Iterator[dict[str, Any]]:
    for step, value in enumerate(VALUES):
        yield {
            "inputs": [tensor(over, "INPUT", np.array([[value]], np.int32))],
            "request_id": f"{sequence_id}_{step}",
            "sequence_id": sequence_id,
            "sequence_start": step == 0,
            "sequence_end": step == len(VALUES) - 1,
        }


SEQUENCES: list[tuple[str, int | str]] = [
    ("simple_sequence", 1000),
    ("simple_sequence", str(uuid.uuid4())),
    ("simple_dyna_sequence", 1001),
]


@over
@pytest.mark.parametrize(("model", "sequence_id"), SEQUENCES, ids=["int", "text", "dyna"])
async def test_sequences(door: Asked, over: str, model: str, sequence_id: int | str) -> None:
    with client_at(door, over) as client:
        answers = [client.infer(model, **step).as_numpy("OUTPUT").item() for step in steps(over, sequence_id)]
        assert answers == expected(model, sequence_id)
        with pytest.raises(InferenceServerException, match="sequence"):
            client.infer(model, next(steps(over, 1))["inputs"])


async def test_sequences_on_one_stream(door: Asked) -> None:
    """Their steps take turns, and each answer names its request."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    found: dict[str, dict[int, int]] = {}
    with tritonclient.grpc.InferenceServerClient(door.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for turn in zip(*(steps("grpc", sequence_id) for _, sequence_id in SEQUENCES), strict=True):
            for (model, _), step in zip(SEQUENCES, turn, strict=True):
                client.async_stream_infer(model, **step)
        for _ in range(len(SEQUENCES) * len(VALUES)):
            result = unwrapped(answers)
            sequence, step = result.get_response().id.rsplit("_", 1)
            found.setdefault(sequence, {})[int(step)] = result.as_numpy("OUTPUT").item()
        client.stop_stream()
    for model, sequence_id in SEQUENCES:
        assert [found[str(sequence_id)][n] for n in range(len(VALUES))] == expected(model, sequence_id)


async def test_a_sequence_on_an_asynchronous_stream(door: Asked) -> None:
    async def sent() -> AsyncIterator[dict[str, Any]]:
        for step in steps("grpc", 77):
            yield {"model_name": "simple_sequence", **step}

    async with tritonclient.grpc.aio.InferenceServerClient(door.grpc) as client:
        answers = [answer async for answer in client.stream_infer(sent())]
    assert [error for _, error in answers] == [None] * len(VALUES)
    assert [result.as_numpy("OUTPUT").item() for result, _ in answers] == expected("simple_sequence", 77)


async def test_a_decoupled_model_answers_as_often_as_it_is_asked_to(door: Asked) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(door.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for count in (5, 1):
            numbers, delays = np.arange(count, dtype=np.int32) + 100, np.zeros(count, np.uint32)
            inputs = [tensor("grpc", "IN", numbers), tensor("grpc", "DELAY", delays, "UINT32")]
            inputs.append(tensor("grpc", "WAIT", np.zeros(1, np.uint32), "UINT32"))
            client.async_stream_infer("repeat_int32", inputs, request_id=str(count))
            results = [unwrapped(answers) for _ in range(count)]
            assert [result.as_numpy("OUT").tolist() for result in results] == [[n] for n in numbers]
            assert [result.as_numpy("IDX").item() for result in results] == list(range(count))
        client.stop_stream()
    assert answers.empty()


@contextlib.contextmanager
def region(client: Any, name: str, data: bytes) -> Iterator[Path]:
    """A file of shared memory, registered. (``tritonclient``'s own makers leave a tracker process behind.)"""
    path = Path(f"/dev/shm/interop_{os.getpid()}_{name}")
    path.write_bytes(data)
    try:
        client.register_system_shared_memory(name, f"/{path.name}", len(data))
        yield path
    finally:
        client.unregister_system_shared_memory(name)
        path.unlink()


@over
@pytest.mark.parametrize(("model", "datatype"), [("simple", "INT32"), ("simple_string", "BYTES")])
async def test_shared_memory(door: Asked, over: str, model: str, datatype: str) -> None:
    inputs, outputs = pair(over, datatype), []
    with client_at(door, over) as client, contextlib.ExitStack() as regions:
        for n, array in enumerate((FIRST, SECOND)):
            data = array.tobytes() if datatype == "INT32" else serialize_byte_tensor(texts(array)).item()
            regions.enter_context(region(client, f"in{n}", bytes(8) + data))
            inputs[n].set_shared_memory(f"in{n}", len(data), offset=8)
        files = [regions.enter_context(region(client, f"out{n}", bytes(512))) for n in range(2)]
        for n in range(2):
            outputs.append(CLIENTS[over].InferRequestedOutput(f"OUTPUT{n}"))
            outputs[n].set_shared_memory(f"out{n}", 512)
        result = client.infer(model, inputs, outputs=outputs)
        for n, wanted in enumerate((FIRST + SECOND, FIRST - SECOND)):
            size, told = placed(result.get_output(f"OUTPUT{n}"))
            written = files[n].read_bytes()[:size]
            assert not told
            got = np.frombuffer(written, np.int32) if datatype == "INT32" else deserialize_bytes_tensor(written)
            assert got.astype(np.int32).tolist() == wanted[0].tolist()


def placed(output: Any) -> tuple[int, bool]:
    """How many bytes were written for it, and whether the answer tells its values as well."""
    if isinstance(output, dict):
        return output["parameters"]["shared_memory_byte_size"], "data" in output
    return output.parameters["shared_memory_byte_size"].int64_param, output.contents.ByteSize() > 0


@over
async def test_model_control(door: Asked, over: str) -> None:
    """It leaves the model as it found it."""
    model = "simple_int8"
    with client_at(door, over) as client:
        index = client.get_model_repository_index()
        assert len(index if over == "http" else index.models) == 7
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model(model, config='"parameters": {"config": {{"max_batch_size": "16"}}}')
        client.load_model(model, config='{"max_batch_size":"16"}')
        changed = client.get_model_config(model)
        assert (changed["max_batch_size"] if over == "http" else changed.config.max_batch_size) == 16
        client.unload_model(model)
        assert not client.is_model_ready(model)
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("wrong_model_name")
        client.load_model(model)
        assert client.is_model_ready(model)
        right(client.infer(model, pair(over, "INT8")))
