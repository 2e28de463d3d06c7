"""The gRPC door of an agent and of a router: Triton's client, plain calls, health, reflection, and what is wrong.

Not here: messages alone (``tests.unit.test_grpc_protocol``), Triton's examples (``tests.interop``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from mesh.errors import ConfigError
from mesh.grpc_protocol import message_class
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.contract.tensors import ENDLESS
from tests.integration import doors
from tests.integration.doors import Door
from tests.nats import soon
from tests.sequence_models import CHAIN_TOML, chain, chained

GRPC = {"listen": "127.0.0.1:0", "max_message_bytes": 1 << 20}
FIRST = np.arange(16, dtype=np.int32)[None]
SECOND = np.full((1, 16), 5, dtype=np.int32)
INFER = "/inference.GRPCInferenceService/ModelInfer"
MODELS = {
    "simple": onnx_models.simple(),
    "text": onnx_models.identity("BYTES"),
    "loop": onnx_models.loop(),
    "chain": chain(),
}


@pytest.fixture(params=["agent", "router"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    folder = doors.repository(tmp_path, MODELS, {"chain": CHAIN_TOML})
    models = {"isolation": "device"}  # a run that does not end can be ended there
    if request.param == "agent":
        async with doors.agent(folder, models=models, grpc=GRPC) as served:
            yield served
        return
    async with (
        NatsServer() as server,
        doors.agent(folder, nats=server.url, models=models),
        doors.router(server.url, grpc=GRPC) as served,
    ):
        for model in MODELS:
            await doors.until_served(served, model)
        yield served


@pytest.fixture
async def client(door: Door) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(door.grpc) as client:
        yield client


@pytest.fixture
async def channel(door: Door) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(door.grpc) as channel:
        yield channel


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def simple() -> list[triton.InferInput]:
    return [tensor("INPUT0", FIRST, "INT32"), tensor("INPUT1", SECOND, "INT32")]


def message(**fields: Any) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name="simple", raw_input_contents=[FIRST.tobytes(), SECOND.tobytes()])
    for name in ("INPUT0", "INPUT1"):
        made.inputs.add(name=name, datatype="INT32", shape=[1, 16])
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def without_contents() -> service_pb2.ModelInferRequest:
    made = message()
    del made.raw_input_contents[:]
    return made


async def test_what_is_asked_about_server_and_models(client: triton_aio.InferenceServerClient) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    assert not await client.is_model_ready("nothing")
    metadata = await client.get_server_metadata()
    assert metadata.name == "inference-mesh"
    assert {"binary_tensor_data", "statistics", "sequence"} <= set(metadata.extensions)
    found = await client.get_model_metadata("simple")
    assert [(t.name, t.datatype, list(t.shape)) for t in found.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    config = (await client.get_model_config("simple")).config
    assert (config.name, [i.name for i in config.input]) == ("simple", ["INPUT0", "INPUT1"])
    index = await client.get_model_repository_index()
    assert {(m.name, m.state) for m in index.models} >= {("simple", "READY")}


async def test_inference_and_its_statistics(client: triton_aio.InferenceServerClient) -> None:
    result = await client.infer("simple", simple(), request_id="7")
    assert result.as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()
    assert result.get_response().id == "7"
    outputs = [triton.InferRequestedOutput("OUTPUT1")]
    result = await client.infer("simple", simple(), model_version="1", outputs=outputs)
    assert [o.name for o in result.get_response().outputs] == ["OUTPUT1"]
    texts = np.array([b"", b"a", "\u6a21".encode()], dtype=object)
    result = await client.infer("text", [tensor("INPUT", texts, "BYTES")])
    assert result.as_numpy("OUTPUT").tolist() == texts.tolist()
    (counted,) = (await client.get_inference_statistics("simple")).model_stats
    assert counted.inference_stats.success.count == 2


async def test_errors_have_codes_and_say_who_answered(channel: grpc.aio.Channel) -> None:
    infer = channel.unary_unary(INFER, request_serializer=service_pb2.ModelInferRequest.SerializeToString)
    call = infer(message())
    answer = service_pb2.ModelInferResponse.FromString(await call)
    assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == (FIRST + SECOND)[0].tolist()
    trailers = dict(await call.trailing_metadata())
    assert (trailers["mesh-node"], trailers["mesh-route"] in ("local", "peer")) == ("edge-1", True)
    for broken, code, text in (
        (message(model_name="nothing"), "NOT_FOUND", "Request for unknown model"),
        (message(model_version="9"), "NOT_FOUND", "version"),
        (
            message(model_version="nine"),
            "INVALID_ARGUMENT",
            "failed to get model version from specified version string",
        ),
        (without_contents(), "INVALID_ARGUMENT", "INPUT0"),
        (service_pb2.ModelInferRequest(), "INVALID_ARGUMENT", "no inputs"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(broken)
        assert caught.value.code().name == code
        assert text in str(caught.value.details())
        assert "mesh-error" in dict(caught.value.trailing_metadata())
    plain = channel.unary_unary(INFER)
    for body, code in ((b"\xff\xff\xff", "INVALID_ARGUMENT"), (bytes(2 << 20), "RESOURCE_EXHAUSTED")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plain(body)
        assert caught.value.code().name == code
    assert service_pb2.ModelInferResponse.FromString(await infer(message())).model_name == "simple"


@pytest.mark.parametrize("call", ["TraceSetting", "LogSettings", "CudaSharedMemoryRegister"])
async def test_what_is_not_here_is_said(channel: grpc.aio.Channel, call: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/inference.GRPCInferenceService/{call}")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_ends_at_its_deadline_and_with_its_caller(door: Door, channel: grpc.aio.Channel) -> None:
    endless = service_pb2.ModelInferRequest(model_name="loop", raw_input_contents=[np.int64(ENDLESS).tobytes()])
    endless.inputs.add(name="N", datatype="INT64", shape=[])
    infer = channel.unary_unary(INFER, request_serializer=service_pb2.ModelInferRequest.SerializeToString)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(endless, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    endless.parameters["timeout"].int64_param = 200_000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(endless, timeout=60)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    del endless.parameters["timeout"]
    call = infer(endless, timeout=60)
    await door.until_open(1)
    call.cancel()
    await door.until_open(0)


async def test_a_stream_answers_each_request_and_goes_on_after_errors(client: triton_aio.InferenceServerClient) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(6):
            yield {
                "model_name": "nothing" if number == 2 else "simple",
                "inputs": simple(),
                "request_id": str(number),
            }

    got = {}
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            assert "unknown model" in str(error)
            got["error"] = True
        else:
            got[result.get_response().id] = result.as_numpy("OUTPUT0").tolist()
        if len(got) == 6:
            break
    assert got == {"error": True} | {str(n): (FIRST + SECOND).tolist() for n in (0, 1, 3, 4, 5)}


async def test_steps_of_a_sequence_on_a_stream_keep_their_order(client: triton_aio.InferenceServerClient) -> None:
    numbers = list(range(3, 30))

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for at, number in enumerate(numbers):
            yield {
                "model_name": "chain",
                "inputs": [tensor("INPUT", np.array([[number]], np.int64), "INT64")],
                "sequence_id": "one",
                "sequence_start": at == 0,
                "sequence_end": at == len(numbers) - 1,
            }

    got = []
    async for result, error in client.stream_infer(requests()):
        assert error is None, error
        got.append(int(result.as_numpy("OUTPUT")[0, 0]))
        if len(got) == len(numbers):
            break
    assert got == list(chained(numbers, ends=len(numbers)))


async def test_health_and_reflection(channel: grpc.aio.Channel) -> None:
    asked, said = (message_class(f"grpc.health.v1.HealthCheck{kind}") for kind in ("Request", "Response"))
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for name in ("", "inference.GRPCInferenceService"):
        assert said.FromString(await check(asked(service=name).SerializeToString())).status == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(asked(service="nothing").SerializeToString())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(asked().SerializeToString())
    assert said.FromString(await soon(watch.read())).status == 1
    watch.cancel()
    for version in ("v1", "v1alpha"):
        request, response = (
            message_class(f"grpc.reflection.{version}.ServerReflection{kind}") for kind in ("Request", "Response")
        )
        call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")()
        await call.write(request(list_services="").SerializeToString())
        listed = response.FromString(await soon(call.read()))
        assert "inference.GRPCInferenceService" in [s.name for s in listed.list_services_response.service]
        await call.write(request(file_containing_symbol="inference.ModelInferRequest").SerializeToString())
        found = response.FromString(await soon(call.read()))
        assert b"ModelInferRequest" in found.file_descriptor_response.file_descriptor_proto[0]
        await call.write(request(file_containing_symbol="no.such.thing").SerializeToString())
        assert response.FromString(await soon(call.read())).error_response.error_code == 5
        call.cancel()


async def test_the_plain_client_on_a_thread(door: Door) -> None:
    def ask() -> list[Any]:
        with triton.InferenceServerClient(door.grpc) as client:
            with pytest.raises(InferenceServerException, match="unknown model"):
                client.infer("nothing", simple())
            answer: list[Any] = client.infer("simple", simple()).as_numpy("OUTPUT1").tolist()
            return answer

    assert await asyncio.to_thread(ask) == (FIRST - SECOND).tolist()


async def test_a_drain_ends_running_calls_well(tmp_path: Path) -> None:
    folder = doors.repository(tmp_path, {"loop": onnx_models.loop()})
    async with doors.agent(folder, models={"isolation": "device"}, grpc=GRPC, http={"grace_s": 30}) as served:
        channel = grpc.aio.insecure_channel(served.grpc)
        count = service_pb2.ModelInferRequest(model_name="loop", raw_input_contents=[np.int64(2_000_000).tobytes()])
        count.inputs.add(name="N", datatype="INT64", shape=[])
        call = channel.unary_unary(INFER)(count.SerializeToString())
        await served.until_open(1)
    answer = service_pb2.ModelInferResponse.FromString(await call)
    assert answer.raw_output_contents
    await channel.close()


async def test_what_is_not_grpc_is_hung_up_on_and_harms_nobody(door: Door, channel: grpc.aio.Channel) -> None:
    for garbage in (bytes(1000), b"GET /v2 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000):
        async with Door(door.grpc).connect() as connection:
            await connection.send(garbage)
            await connection.hung_up()
    infer = channel.unary_unary(INFER, request_serializer=service_pb2.ModelInferRequest.SerializeToString)
    assert service_pb2.ModelInferResponse.FromString(await infer(message())).model_name == "simple"


async def test_a_stranger_cannot_pretend_to_be_a_hop(channel: grpc.aio.Channel) -> None:
    infer = channel.unary_unary(INFER, request_serializer=service_pb2.ModelInferRequest.SerializeToString)
    metadata = (("mesh-deadline-ms", "0"), ("mesh-hops", "99"), ("mesh-model-digest", "0" * 64), ("mesh-token", "x"))
    call = infer(message(), metadata=metadata)
    await call
    assert int(dict(await call.trailing_metadata())["mesh-hops"]) < 2


async def test_a_compressed_message_is_measured_as_it_is(door: Door) -> None:
    """Sixty million zeros are a few ten thousand bytes on the wire."""
    async with grpc.aio.insecure_channel(door.grpc, compression=grpc.Compression.Gzip) as channel:
        infer = channel.unary_unary(INFER)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(bytes(60_000_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = service_pb2.ModelInferResponse.FromString(await infer(message().SerializeToString()))
        assert answer.model_name == "simple"


async def test_models_come_and_go(tmp_path: Path) -> None:
    folder = doors.repository(tmp_path, {"simple": onnx_models.simple()})
    async with doors.agent(folder, grpc=GRPC) as served, triton_aio.InferenceServerClient(served.grpc) as client:
        await client.unload_model("simple")
        assert not await client.is_model_ready("simple")
        assert [(m.name, m.state) for m in (await client.get_model_repository_index()).models] == [
            ("simple", "UNAVAILABLE")
        ]
        await client.load_model("simple", config='{"max_batch_size": 4}')
        assert (await client.get_model_config("simple")).config.max_batch_size == 4
        assert (await client.infer("simple", simple())).as_numpy("OUTPUT0").tolist() == (FIRST + SECOND).tolist()
        with pytest.raises(InferenceServerException, match="failed to load"):
            await client.load_model("simple", files={"file:1/model.onnx": b"x"}, config="{}")


async def test_a_door_that_other_hosts_reach_lets_nobody_change_models(tmp_path: Path) -> None:
    """Though the HTTP door is on loopback."""
    folder = doors.repository(tmp_path, {"simple": onnx_models.simple()})
    async with doors.agent(folder, grpc={"listen": "0.0.0.0:0"}) as served:
        address = served.grpc.replace("0.0.0.0", "127.0.0.1")
        async with triton_aio.InferenceServerClient(address) as client:
            with pytest.raises(InferenceServerException, match="loopback") as caught:
                await client.unload_model("simple")
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
            assert await client.is_model_ready("simple")


async def test_an_address_that_is_taken_is_said_before_anything_is_served(tmp_path: Path) -> None:
    folder = doors.repository(tmp_path, {"simple": onnx_models.simple()})
    async with doors.agent(folder, grpc=GRPC) as served:
        with pytest.raises(ConfigError, match="--grpc"):
            async with doors.agent(folder, node={"name": "edge-2"}, grpc={"listen": served.grpc}):
                pass
