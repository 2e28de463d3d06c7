"""mlserver's types, codecs and stubs at our doors: ``python -m tests.interop.mlserver_asks HTTP GRPC``, where it is.

It brings no REST client: what its codecs make is posted as it is, and what comes back is read by its types. Started by
``other_clients``, which says what it prints.
"""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import grpc as grpc_package
import numpy as np
from mlserver import types
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc import converters, dataplane_pb2
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from tests.interop import checks

FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.full((1, 16), 3, dtype=np.int32)
SUM, DIFFERENCE = "OUTPUT0", "OUTPUT1"


def numbers() -> Any:
    inputs = [NumpyCodec.encode_input(name, array) for name, array in (("INPUT0", FIRST), ("INPUT1", SECOND))]
    return types.InferenceRequest(id="7", inputs=inputs)


def texts(*, as_bytes: bool) -> Any:
    inputs = []
    for name, array in (("INPUT0", FIRST), ("INPUT1", SECOND)):
        one = StringCodec.encode_input(name, [str(n) for n in array[0]], use_bytes=as_bytes)
        one.shape = [1, 16]  # it makes a column of a list
        inputs.append(one)
    return types.InferenceRequest(id="7", inputs=inputs)


def right(answer: Any, codec: Any) -> None:
    assert answer.id == "7", answer.id
    found = {output.name: output for output in answer.outputs}
    for name, expected in ((SUM, FIRST + SECOND), (DIFFERENCE, FIRST - SECOND)):
        values = np.array(codec.decode_output(found[name])).astype(np.int32)
        assert values.reshape(1, 16).tolist() == expected.tolist(), found[name]


async def http_of(http: str, path: str, body: bytes | None = None) -> bytes:
    def ask() -> bytes:
        said = urllib.request.Request(f"http://{http}{path}", data=body, headers={"content-type": "application/json"})
        with urllib.request.urlopen(said, timeout=30) as answer:
            read: bytes = answer.read()
            return read

    return await asyncio.to_thread(ask)


async def rest(http: str, model: str, sent: Any, codec: Any) -> None:
    said = await http_of(http, f"/v2/models/{model}/infer", sent.model_dump_json(exclude_none=True).encode())
    right(types.InferenceResponse.model_validate_json(said), codec)


async def rest_numbers(http: str, _: str) -> None:
    await rest(http, "simple", numbers(), NumpyCodec)


async def rest_texts(http: str, _: str) -> None:
    await rest(http, "simple_string", texts(as_bytes=False), StringCodec)


async def rest_metadata(http: str, _: str) -> None:
    server = types.MetadataServerResponse.model_validate_json(await http_of(http, "/v2"))
    assert server.name == "triton", server
    model = types.MetadataModelResponse.model_validate_json(await http_of(http, "/v2/models/simple"))
    assert [tensor.name for tensor in model.inputs or ()] == ["INPUT0", "INPUT1"], model


async def infer(grpc: str, model: str, sent: Any, codec: Any, *, raw: bool) -> None:
    asked = converters.ModelInferRequestConverter.from_types(sent, model_name=model, use_raw=raw)
    async with grpc_package.aio.insecure_channel(grpc) as channel:
        said = await GRPCInferenceServiceStub(channel).ModelInfer(asked)
    right(converters.ModelInferResponseConverter.to_types(said), codec)


async def grpc_typed(_: str, grpc: str) -> None:
    await infer(grpc, "simple", numbers(), NumpyCodec, raw=False)


async def grpc_raw(_: str, grpc: str) -> None:
    await infer(grpc, "simple", numbers(), NumpyCodec, raw=True)


async def grpc_texts(_: str, grpc: str) -> None:
    await infer(grpc, "simple_string", texts(as_bytes=True), StringCodec, raw=False)


async def grpc_metadata(_: str, grpc: str) -> None:
    async with grpc_package.aio.insecure_channel(grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert (await stub.ServerReady(dataplane_pb2.ServerReadyRequest())).ready
        assert (await stub.ModelReady(dataplane_pb2.ModelReadyRequest(name="simple"))).ready
        said = await stub.ModelMetadata(dataplane_pb2.ModelMetadataRequest(name="simple"))
    model = converters.ModelMetadataResponseConverter.to_types(said)
    assert [tensor.name for tensor in model.outputs or ()] == [SUM, DIFFERENCE], model


if __name__ == "__main__":
    checks.main(
        {
            "REST, NumpyCodec": rest_numbers,
            "REST, StringCodec": rest_texts,
            "REST, metadata": rest_metadata,
            "gRPC, NumpyCodec, typed contents": grpc_typed,
            "gRPC, NumpyCodec, raw contents": grpc_raw,
            "gRPC, StringCodec": grpc_texts,
            "gRPC, health, metadata": grpc_metadata,
        }
    )
