"""kserve's own clients at our doors: ``python -m tests.interop.kserve_asks HTTP GRPC``, where kserve is installed.

Started by ``other_clients``, which says what it prints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

from tests.interop import checks

FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.full((1, 16), 3, dtype=np.int32)
SUM, DIFFERENCE = "OUTPUT0", "OUTPUT1"


def request(model: str, *, binary: bool, datatype: str = "INT32") -> InferRequest:
    inputs = []
    for name, array in (("INPUT0", FIRST), ("INPUT1", SECOND)):
        one = InferInput(name, list(array.shape), datatype)
        as_asked = np.array([[str(n).encode() for n in array[0]]], dtype=object) if datatype == "BYTES" else array
        one.set_data_from_numpy(as_asked, binary_data=binary)
        inputs.append(one)
    outputs = [RequestedOutput(name, {"binary_data": binary}) for name in (SUM, DIFFERENCE)]
    return InferRequest(model, inputs, request_id="7", request_outputs=outputs)


def right(answer: Any) -> None:
    """Sum and difference, be they numbers or texts of numbers."""
    assert answer.id == "7", answer.id
    for name, expected in ((SUM, FIRST + SECOND), (DIFFERENCE, FIRST - SECOND)):
        found = answer.get_output_by_name(name)
        assert found is not None, f"no {name}"
        assert found.as_numpy().astype(np.int32).tolist() == expected.tolist(), found


async def rest(http: str, sent: InferRequest) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        right(await client.infer(f"http://{http}", sent, model_name=sent.model_name))


async def rest_json(http: str, _: str) -> None:
    await rest(http, request("simple", binary=False))


async def rest_binary(http: str, _: str) -> None:
    await rest(http, request("simple", binary=True))


async def rest_texts(http: str, _: str) -> None:
    await rest(http, request("simple_string", binary=True, datatype="BYTES"))


async def rest_health(http: str, _: str) -> None:
    url = f"http://{http}"
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "simple")
        said = ""
        try:
            await client.infer(url, request("nobody", binary=False), model_name="nobody")
        except Exception as error:
            said = str(error)
        assert "Request for unknown model" in said, said


async def grpc_raw(_: str, grpc: str) -> None:
    async with InferenceGRPCClient(grpc) as client:
        right(await client.infer(request("simple", binary=True)))


async def grpc_typed(_: str, grpc: str) -> None:
    async with InferenceGRPCClient(grpc) as client:
        right(await client.infer(request("simple", binary=False)))


async def grpc_texts(_: str, grpc: str) -> None:
    async with InferenceGRPCClient(grpc) as client:
        right(await client.infer(request("simple_string", binary=True, datatype="BYTES")))


async def grpc_health(_: str, grpc: str) -> None:
    async with InferenceGRPCClient(grpc) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("simple")


if __name__ == "__main__":
    checks.main(
        {
            "REST, JSON": rest_json,
            "REST, binary": rest_binary,
            "REST, BYTES": rest_texts,
            "REST, health, unknown model": rest_health,
            "gRPC, raw contents": grpc_raw,
            "gRPC, typed contents": grpc_typed,
            "gRPC, BYTES": grpc_texts,
            "gRPC, health": grpc_health,
        }
    )
