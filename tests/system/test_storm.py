"""Thousands of malformed requests at every door of a real agent: each a clear error, and afterwards nothing is left.

The share of each door is in ``SHARE``; ``STORM`` in the environment multiplies it. Not here: named cases
(``tests.integration.test_malformed``), what is sent (``tests.storm``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio
import nats
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from mesh.cluster import Child, Cluster
from mesh.nats_server import free_port
from tests import onnx_models, storm
from tests.integration.doors import Answer, Connection, repository, request
from tests.malformed import good_json
from tests.mqtt import Device
from tests.storm import Broken

T = TypeVar("T")

SHARE = {"http": 400, "grpc": 300, "nats": 150, "mqtt": 150}
INFER = "/inference.GRPCInferenceService/ModelInfer"
CODES = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"})
REFUSALS = frozenset({400, 404, 413, 415, 501})
REFUSED = frozenset({"invalid_request", "model_not_found", "payload_too_large", "unsupported"})
WARM = 40
LOOKS = 40
GROWTH = {"files": 4, "tasks": 4, "bytes": 32 << 20}
"""A neighbour that is met only now is a task and connections; a leak would be hundreds."""


def drawn(door: str) -> settings:
    count = int(SHARE[door] * float(os.environ.get("STORM", "1")))
    return settings(
        max_examples=count,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


class Doors:
    """An agent as a process and lines to its doors, on a loop in a thread of its own: hypothesis is plain code."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="storm", daemon=True)
        self.agent: Child
        self._line: Connection | None = None
        self._bus: Any = None
        self.refused: Counter[str] = Counter()

    def __enter__(self) -> Doors:
        self._thread.start()
        self.call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        models = repository(self._folder / "models", {"simple": onnx_models.simple()})
        address, mqtt = (f"127.0.0.1:{free_port('127.0.0.1')}" for _ in range(2))
        environ = {"MESH_MODELS__ISOLATION": "device", "MESH_DISCOVERY__ENABLED": "false", "MESH_GRPC__LISTEN": address}
        self._cluster = await Cluster(self._folder / "run", agents=environ, mqtt=mqtt).__aenter__()
        self.router = await self._cluster.router()
        self.agent = await self._cluster.agent("storm", models)
        await asyncio.gather(*(child.until_ready() for child in (self.router, self.agent)))
        await self._cluster.settled(self.router, ["storm"])
        self._bus = await nats.connect(self._cluster.bus.url, token=self._cluster.bus.token)
        self._channel = grpc.aio.insecure_channel(address)
        results, port = "mesh/default/result/#", int(mqtt.rpartition(":")[2])
        self._device = await Device(port, "storm", results, self._cluster.bus.token).__aenter__()

    async def _stop(self) -> None:
        self._hang_up()
        await self._device.__aexit__()
        await self._channel.close()
        await self._bus.close()
        await self._cluster.__aexit__()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.reset()
            self._line = None

    async def http(self, broken: Broken) -> Answer:
        version = f"/versions/{broken.version}" if broken.version else ""
        path = f"/v2/models/{quote(broken.model)}{version}/infer"
        if self._line is None:
            host, port = self.agent.address.split(":")
            self._line = Connection(*await asyncio.open_connection(host, int(port)))
        await self._line.send(request("POST", path, broken.body, broken.headers))
        answer = await self._line.answer()
        if answer.headers.get("connection") == "close":
            self._hang_up()
        return answer

    async def nats(self, broken: Broken) -> dict[str, str]:
        headers = dict(broken.headers) | ({"Mesh-Version": broken.version} if broken.version else {})
        subject = f"mesh.v1.infer.{quote(broken.model, safe='').replace('.', '%2E')}"
        reply = await self._bus.request(subject, broken.body, headers=headers or None, timeout=30)
        assert reply.data == b""
        return dict(reply.headers or {})

    async def grpc(self, broken: Broken) -> tuple[str, str]:
        """Code and text of the error."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self._channel.unary_unary(INFER)(broken.body)
        return caught.value.code().name, caught.value.details() or ""

    async def mqtt(self, broken: Broken) -> dict[str, Any]:
        _, result = await self._device.ask(f"mesh/default/infer/{broken.model}/storm", broken.body)
        return dict(result)

    async def good(self) -> None:
        """The next good request is answered, on the same connection."""
        body = json.dumps(good_json()).encode()
        answer = await self.http(Broken("nothing", body))
        assert answer.status == 200, answer.body

    def held(self) -> dict[str, int]:
        """What the agent's processes hold now: bytes, files, threads, tasks."""
        agent = psutil.Process(self.agent.pid)
        family = [agent, *agent.children(recursive=True)]
        metrics = self.call(self._metrics())
        return {
            "bytes": sum(process.memory_info().rss for process in family),
            "files": sum(process.num_fds() for process in family),
            "threads": sum(threads(process.pid) for process in family),
            "tasks": int(metrics["mesh_tasks"]),
            "in_flight": int(metrics["mesh_requests_in_flight"]),
        }

    async def _metrics(self) -> dict[str, float]:
        assert self._line is not None
        answer = await self._line.request("GET", "/metrics")
        lines = [
            line.split(" ") for line in answer.body.decode().splitlines() if line and "{" not in line and line[0] != "#"
        ]
        return {name: float(value) for name, value in lines}


def threads(pid: int) -> int:
    """All but those of libuv's pool, which is there from the first name that is looked up on, whenever that is."""
    count = 0
    for comm in Path(f"/proc/{pid}/task").glob("*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            count += comm.read_text() != "libuv-worker\n"
    return count


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with Doors(tmp_path_factory.mktemp("storm")) as doors:
        yield doors


@pytest.fixture(scope="module")
def before(doors: Doors) -> dict[str, int]:
    """Once every door was used and refused a few, so that caches and pools are there."""
    for _ in range(WARM):
        doors.call(doors.good())
        doors.call(doors.http(Broken("warm", b"{")))
        doors.call(doors.nats(Broken("warm", b"{")))
        doors.call(doors.grpc(Broken("warm", b"{")))
        doors.call(doors.mqtt(Broken("warm", b"{")))
    return doors.held()


@drawn("http")
@given(broken=storm.over_http)
def test_http(doors: Doors, before: dict[str, int], broken: Broken) -> None:
    answer = doors.call(doors.http(broken))
    assert answer.status in REFUSALS, (broken, answer)
    assert len(answer.error) > 5
    doors.refused["http"] += 1


@drawn("nats")
@given(broken=storm.anywhere)
def test_nats(doors: Doors, before: dict[str, int], broken: Broken) -> None:
    answered = doors.call(doors.nats(broken))
    assert int(answered["Nats-Service-Error-Code"]) in REFUSALS, (broken, answered)
    assert len(answered["Nats-Service-Error"]) > 5
    doors.refused["nats"] += 1


@drawn("grpc")
@given(broken=storm.broken_message())
def test_grpc(doors: Doors, before: dict[str, int], broken: Broken) -> None:
    code, text = doors.call(doors.grpc(broken))
    assert code in CODES, (broken, code, text)
    assert len(text) > 5
    doors.refused["grpc"] += 1


@drawn("mqtt")
@given(broken=storm.as_json.filter(lambda broken: not broken.version))
def test_mqtt(doors: Doors, before: dict[str, int], broken: Broken) -> None:
    result = doors.call(doors.mqtt(broken))
    assert len(result["error"]) > 5, (broken, result)
    assert result["code"] in ("invalid_request", "model_not_found", "payload_too_large", "unsupported"), (
        broken,
        result,
    )
    doors.refused["mqtt"] += 1


def test_nothing_is_left(doors: Doors, before: dict[str, int]) -> None:
    """Connections, probes and reports come and go by clocks of their own: what is left is there at every look."""
    assert set(doors.refused) == set(SHARE)
    looks = []
    for _ in range(LOOKS):
        doors.call(doors.good())
        looks.append(after := doors.held())
        if not (grown := {name for name in after if after[name] > before[name] + GROWTH.get(name, 0)}):
            return
        time.sleep(0.25)
    pytest.fail(f"{grown}: {dict(doors.refused)} {before} {looks}")
