"""An agent with a gRPC door in one process with somebody else's generated messages, asked by those.

``python -m tests.interop.beside MODULE`` prints what the agent answered. Generated modules of the package ``inference``
register it for the whole process, so that each needs a process of its own (ADR 14). Not here: clients as a whole.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

from tests import onnx_models
from tests.integration import doors

THEIRS = {
    "tritonclient": "tritonclient.grpc.service_pb2",
    "kserve": "kserve.protocol.grpc.grpc_predict_v2_pb2",
    "mlserver": "mlserver.grpc.dataplane_pb2",
}
"""Packages, and their messages of ``inference``."""


async def ask(module: str) -> list[int]:
    theirs = importlib.import_module(module)
    values = np.arange(16, dtype=np.int32)
    message = theirs.ModelInferRequest(model_name="simple", raw_input_contents=[values.tobytes()] * 2)
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
    with tempfile.TemporaryDirectory() as folder:
        models = doors.repository(Path(folder), {"simple": onnx_models.simple()})
        async with (
            doors.agent(models, grpc={"listen": "127.0.0.1:0"}) as door,
            grpc.aio.insecure_channel(door.grpc) as channel,
        ):
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            answer = theirs.ModelInferResponse.FromString(await infer(message.SerializeToString()))
    sums: list[int] = np.frombuffer(answer.raw_output_contents[0], np.int32).tolist()
    return sums


if __name__ == "__main__":
    print(asyncio.run(ask(sys.argv[1])))
