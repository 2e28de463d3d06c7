"""Doors to knock at: agents and routers of this process on real sockets, and raw connections that hide nothing.

Everything here is an async context manager. Not here: the models (``onnx_models``), the bus (``nats``), malformed
requests (``malformed``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloud.app import App
from cloud.settings import CloudSettings
from edge.agent import Agent
from edge.settings import EdgeSettings
from mesh.node_id import NodeIdentity
from tests import onnx_models
from tests.nats import soon

HEADER_LENGTH = "inference-header-content-length"
POLL_S = 0.01


def repository(folder: Path, models: Mapping[str, bytes], toml: Mapping[str, str] | None = None) -> Path:
    """A repository of version 1 of each model; ``toml`` maps a model to the text of its ``model.toml``."""
    for name, model in models.items():
        onnx_models.save(model, folder / name / "1" / "model.onnx")
    for name, text in (toml or {}).items():
        (folder / name / "model.toml").write_text(text)
    return folder


@dataclass(frozen=True)
class Door:
    """A served HTTP door, HOST:PORT, and the gRPC door beside it."""

    address: str
    grpc: str = ""

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        host, port = self.address.split(":")
        reader, writer = await soon(asyncio.open_connection(host, int(port)))
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def get(self, path: str) -> Answer:
        async with self.connect() as connection:
            return await connection.request("GET", path)

    async def infer(self, model: str, head: Mapping[str, Any], tensors: bytes = b"") -> Answer:
        async with self.connect() as connection:
            return await connection.infer(model, head, tensors)

    async def until_open(self, count: int) -> None:
        """Wait until ``count`` requests are at this door, whatever node runs them."""

        async def reached() -> bool:
            lines = (await self.get("/metrics")).body.decode().splitlines()
            return f"mesh_requests_in_flight {float(count)}" in lines

        await until(reached)

    async def until_in_flight(self, model: str, count: int) -> None:
        """Wait until the door's own node has ``count`` requests of a model admitted and unanswered."""

        async def reached() -> bool:
            report = (await self.get("/mesh/v1/report")).json()
            return any(m["name"] == model and m.get("in_flight", 0) == count for m in report["models"])

        await until(reached)


async def until(reached: Callable[[], Any]) -> None:
    """Wait for a state that nothing announces; ``reached`` is a coroutine function."""

    async def poll() -> None:
        while not await reached():
            await asyncio.sleep(POLL_S)

    await soon(poll())


@contextlib.asynccontextmanager
async def agent(
    models: Path, /, *, ready: bool = True, nats: str | Mapping[str, Any] = "", **groups: Mapping[str, Any]
) -> AsyncIterator[Door]:
    """An agent that runs its models in this process unless ``models`` in ``groups`` says otherwise."""
    settings = EdgeSettings.model_validate(
        _settings(nats, groups, "edge-1")
        | {"models": {"dir": models, "isolation": "none"} | dict(groups.get("models", {}))}
    )
    served = Agent(settings, NodeIdentity(uuid.uuid4().hex, 1))
    async with served.running() as address:
        if ready:
            await soon(served.until_ready())
        yield Door(address, served.bound.grpc)


@contextlib.asynccontextmanager
async def router(nats: str | Mapping[str, Any], **groups: Mapping[str, Any]) -> AsyncIterator[Door]:
    settings = CloudSettings.model_validate(_settings(nats, groups, "router-1"))
    served = App(settings, NodeIdentity(uuid.uuid4().hex, 1))
    async with served.running() as address:
        yield Door(address, served.bound.grpc)


def _settings(nats: str | Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]], node: str) -> dict[str, Any]:
    defaults: dict[str, dict[str, Any]] = {
        "node": {"name": node},
        "http": {"listen": "127.0.0.1:0", "grace_s": 1},
        "nats": {"url": nats} if isinstance(nats, str) else dict(nats),
        "discovery": {"enabled": False},
        "router": {},
    }
    names = {*defaults, *groups} - {"models"}
    return {name: defaults.get(name, {}) | dict(groups.get(name, {})) for name in names}


async def until_served(door: Door, model: str) -> None:
    """Wait until a model is READY somewhere that ``door`` can see."""

    async def reached() -> bool:
        return (await door.get(f"/v2/models/{model}/ready")).status == 200

    await until(reached)


@dataclass(frozen=True)
class Answer:
    """One HTTP response; names of headers are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """Text of the OIP error document, which must be all there is."""
        document = self.json()
        assert list(document) == ["error"], document
        assert self.headers["content-type"] == "application/json"
        return str(document["error"])

    def output(self, name: str) -> np.ndarray[Any, Any]:
        """A binary output as bytes of ``uint8``, a JSON one as its flat values."""
        assert self.status == 200, self.body
        length = int(self.headers.get(HEADER_LENGTH, len(self.body)))
        at = length
        for output in json.loads(self.body[:length])["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if output["name"] == name:
                return np.array(output["data"]) if size is None else np.frombuffer(self.body[at : at + size], np.uint8)
            at += size or 0
        raise AssertionError(f"no output {name} in {self.body[:length]!r}")


class Connection:
    """A keep-alive connection: what is sent is what the test says, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await soon(self._writer.drain())

    async def send_on(self, data: bytes) -> None:
        """Send the same again and again, until the door hangs up."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.send(data)

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One exchange with a Content-Length where there is a body."""
        await self.send(request(method, path, body, headers))
        return await self.answer(head=method == "HEAD")

    async def infer(self, model: str, head: Mapping[str, Any], tensors: bytes = b"") -> Answer:
        """``head`` alone, or with binary ``tensors`` behind it; ``model`` may hold a version: ``name/versions/1``."""
        text = json.dumps(head).encode()
        headers = {HEADER_LENGTH: str(len(text))} if tensors else {}
        return await self.request("POST", f"/v2/models/{model}/infer", text + tensors, headers)

    async def answer(self, *, head: bool = False) -> Answer:
        """The next response on this connection; ``head`` where it answers HEAD and has no body."""
        begun = await self.begun()
        if head or begun.status == 100:
            return begun
        assert "transfer-encoding" not in begun.headers
        length = int(begun.headers["content-length"])
        return Answer(begun.status, begun.headers, await soon(self._reader.readexactly(length)))

    async def begun(self) -> Answer:
        """The head of the next response, which is all that was read then."""
        version, _, rest = (await self._line()).partition(" ")
        assert version == "HTTP/1.1", version
        headers = {}
        while line := await self._line():
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        return Answer(int(rest[:3]), headers, b"")

    async def chunk(self) -> bytes:
        """The next chunk of a body that is sent in chunks; empty at its end."""
        size = int(await self._line(), 16)
        data = await soon(self._reader.readexactly(size + 2))
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def rest(self) -> bytes:
        """All until the door hangs up."""
        return await soon(self._reader.read())

    async def closed(self) -> bool:
        """Whether the door hangs up, saying nothing more."""
        try:
            return await soon(self._reader.read(1)) == b""
        except ConnectionError:
            return True

    async def hung_up(self) -> None:
        """Return once the door has, whatever it says before."""
        with contextlib.suppress(ConnectionError):
            await soon(self._reader.read())

    def reset(self) -> None:
        """Leave without goodbye."""
        self._writer.transport.abort()

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._writer.write_eof()

    async def _line(self) -> str:
        line = await soon(self._reader.readuntil(b"\r\n"))
        return line[:-2].decode("latin-1")


def request(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: door", *(f"{n}: {v}" for n, v in (headers or {}).items())]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
