"""Variants of ``serving`` that speak no HTTP: gRPC unary and stream, MQTT, each beside a bare echo of its transport.

Not here: the loops (``grpc_load``, ``mqtt_load``), which variants a table has (``serving``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2

from mesh.nats_server import NatsServer, free_port
from tests.bench.grpc_load import GrpcJob, over_grpc
from tests.bench.loadgen import Sample, Window
from tests.bench.models import Model
from tests.bench.mqtt_load import MqttJob, over_mqtt
from tests.bench.processes import Server

SITE = "bench"


def grpc_request(model: Model) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model.name, raw_input_contents=[model.tensor.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=model.shape)
    return bytes(request.SerializeToString())


def grpc_reply(model: Model) -> bytes:
    """A right one, as short as it can be."""
    response = service_pb2.ModelInferResponse(model_name=model.name, raw_output_contents=[model.expected.tobytes()])
    response.outputs.add(name="y", datatype="FP32", shape=model.expected.shape)
    return bytes(response.SerializeToString())


@dataclass(frozen=True)
class GrpcAnswer:
    model: Model
    stream: bool

    def __call__(self, reply: bytes) -> str:
        if self.stream:
            part = service_pb2.ModelStreamInferResponse.FromString(reply)
            if part.error_message:
                return str(part.error_message)
            response = part.infer_response
        else:
            response = service_pb2.ModelInferResponse.FromString(reply)
        values = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(self.model.expected.shape)
        return str(self.model.judge_numbers(values))


@dataclass(frozen=True)
class MqttAnswer:
    model: Model

    def __call__(self, reply: bytes) -> str:
        document = json.loads(reply)
        if "outputs" not in document:
            return str(document)
        values = np.array(document["outputs"][0]["data"], np.float32).reshape(self.model.expected.shape)
        return str(self.model.judge_numbers(values))


@dataclass(frozen=True)
class Size:
    nbytes: int

    def __call__(self, reply: bytes) -> str:
        return "" if len(reply) == self.nbytes else f"{len(reply)} bytes instead of {self.nbytes}"


class GrpcVariant:
    """``address`` is that of the gRPC door of ``server``."""

    most_connections = 1 << 16

    def __init__(
        self, name: str, server: Server, address: str, load: ProcessPoolExecutor, *, stream: bool, echo: bool
    ) -> None:
        self.name = name
        self.server = server
        self._address = address
        self._load = load
        self._stream = stream
        self._echo = echo

    def sample(self, model: Model, connections: int, window: Window) -> Sample:
        judge = Size(len(grpc_reply(model))) if self._echo else GrpcAnswer(model, self._stream)
        job = GrpcJob(self._address, grpc_request(model), judge, self._stream, connections, window)
        return self._load.submit(over_grpc, job).result()


class MqttVariant:
    """The body is the bare tensor; what answers is either the agent or the echo, at a site of its own."""

    most_connections = 1 << 16

    def __init__(
        self, name: str, server: Server, port: int, site: str, load: ProcessPoolExecutor, *, echo: bool
    ) -> None:
        self.name = name
        self.server = server
        self._port = port
        self._site = site
        self._load = load
        self._echo = echo

    def sample(self, model: Model, connections: int, window: Window) -> Sample:
        judge = Size(mqtt_reply_bytes(model)) if self._echo else MqttAnswer(model)
        topic, result = (f"mesh/{self._site}/{kind}/{model.name}" for kind in ("infer", "result"))
        job = MqttJob(self._port, "", topic, result, model.tensor.tobytes(), judge, connections, window)
        return self._load.submit(over_mqtt, job).result()


def mqtt_reply_bytes(model: Model) -> int:
    """Of a result in JSON, about."""
    tensor = {
        "name": "y",
        "datatype": "FP32",
        "shape": list(model.expected.shape),
        "data": model.expected.ravel().tolist(),
    }
    return len(json.dumps({"model_name": model.name, "model_version": "1", "id": "1", "outputs": [tensor]}))


@contextlib.contextmanager
def bus(folder: Path) -> Iterator[tuple[str, int]]:
    """A nats-server with an MQTT listener, run from a loop of its own: its URL, and the port of MQTT."""
    folder.mkdir()
    port = free_port("127.0.0.1")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = NatsServer(run_dir=folder, mqtt=f"127.0.0.1:{port}")
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
        yield server.url, port
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
