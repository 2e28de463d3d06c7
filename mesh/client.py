"""The SDK: infer on whatever door of the mesh answers in time. Numpy in, numpy out, one deadline.

``Client`` is async; ``SyncClient`` is the same calls for plain code, on a thread of its own. Doors come from URLs,
from ``MESH_URL``, or from zeroconf. The client routes among doors by the same rule as the mesh routes among nodes and
goes to another door when one dies. Not here: streams and sequences.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from mesh.addresses import host_token, parse
from mesh.deadline import Deadline
from mesh.discovery import Discovery, Found
from mesh.doors import NO_DOOR, DoorHop, DoorWays
from mesh.errors import ConfigError, MeshError, NodeLost, NoReadyInstance
from mesh.hop import Context
from mesh.hop_http import HttpClient, model_path
from mesh.lifecycle import within
from mesh.neighbours import Neighbours
from mesh.oip.documents import decode_model_metadata
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response
from mesh.oip.tensor import Tensor
from mesh.router import Router
from mesh.values import ModelIdentity, ModelMetadata, ModelRef, Route
from mesh.view import View
from mesh.watcher import Watcher

T = TypeVar("T")

DISCOVERY_S = 3.0
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs by name, and where they were computed."""

    outputs: dict[str, np.ndarray[Any, Any]]
    model: str
    version: str
    node: str
    route: Route
    """``local``, ``peer`` or ``cloud``, as seen from the door that took the request."""
    hops: int
    cascade: str = ""
    """Of a cascade: "small" or "large", whichever model answered; empty where none was applied."""
    confidence: float | None = None
    """How sure the small model of the cascade was, 0 to 1."""

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.outputs[name]


class Client:
    """An async context manager.

    ``urls`` are doors (``http://HOST:PORT``), the first preferred; none means ``MESH_URL``, else zeroconf. ``mesh``
    limits what zeroconf may find to one mesh id; without it the first mesh found is the one.
    """

    def __init__(self, *urls: str, mesh: str | None = None, deadline_ms: float = 10_000.0) -> None:
        given = urls or tuple(u for u in os.environ.get("MESH_URL", "").split(",") if u)
        self._addresses = tuple(door_address(url) for url in given)
        self._mesh = mesh
        self._deadline_ms = deadline_ms
        self._found = asyncio.Event()
        name = f"client-{secrets.token_hex(4)}"
        watcher = Watcher("", name)
        self._http = HttpClient(name)
        self._neighbours = Neighbours(watcher, self._http, None, name)
        self._watcher = watcher
        ways = DoorWays(watcher, self._neighbours, DoorHop(self._http), self._addresses, host_token())
        view = View(name, watcher, None)
        self._router = Router(view=view, ways=ways, neighbours=self._neighbours)
        self._stack = contextlib.AsyncExitStack()
        self._open = False

    async def __aenter__(self) -> Client:
        async with self._stack as stack:
            await stack.enter_async_context(self._watcher.running())
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self._neighbours.running())
            for address in self._addresses:
                self._neighbours.hear_of(address, "given")
            if not self._addresses:
                discovery = Discovery(
                    announce=None, on_found=self._on_found, on_gone=self._neighbours.forget, interfaces=None
                )
                await stack.enter_async_context(discovery)
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(DISCOVERY_S, self._found.wait())
            await self._neighbours.settled(SETTLE_S)
            self._stack = stack.pop_all()
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        await self._stack.aclose()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray[Any, Any]] | Sequence[Tensor],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Result:
        """Run ``model`` once. No ``outputs`` means all. Raises an error of ``mesh.errors``."""
        self._check_open()
        if isinstance(inputs, Mapping):
            tensors = tuple(Tensor.from_numpy(name, array) for name, array in inputs.items())
        else:
            tensors = tuple(inputs)
        deadline = Deadline.after_ms(self._deadline_ms if deadline_ms is None else deadline_ms)
        request = InferRequest(
            model=model,
            version=version,
            id="",
            parameters=dict(parameters or {}),
            inputs=tensors,
            outputs=tuple(RequestedOutput(name, True, {}) for name in outputs),
            binary_default=True,
            wire=None,
        )
        reply = await self._router.infer(request, ModelIdentity(model, version, ""), Context(deadline))
        response = decode_response(reply.body.joined(), reply.body.header_length)
        arrays = {t.name: t.numpy() for t in response.outputs}
        answered = response.model, response.version, reply.node, reply.route, reply.hops
        return Result(arrays, *answered, reply.cascade, reply.confidence)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Inputs and outputs of a model held anywhere in the mesh."""
        return decode_model_metadata(await self._get(model_path(ModelRef(model, version))))

    async def nodes(self) -> list[dict[str, Any]]:
        """The fleet as the nearest door sees it (``mesh nodes --json``)."""
        found: list[dict[str, Any]] = msgspec.json.decode(await self._get("/mesh/v1/nodes"))["nodes"]
        return found

    async def models(self) -> list[str]:
        """Names of the models that are held anywhere."""
        names: list[str] = msgspec.json.decode(await self._get("/mesh/v1/models"))["models"]
        return names

    @property
    def doors(self) -> list[str]:
        """HOST:PORT of the doors that work now."""
        return [door.address for door in self._neighbours.doors()]

    async def _get(self, path: str) -> bytes:
        """From the first door that answers; one that has just died is not the last word."""
        self._check_open()
        deadline = Deadline.after_ms(self._deadline_ms)
        doors = self.doors
        failed: MeshError = NoReadyInstance(NO_DOOR)
        for address in [a for a in self._addresses if a in doors] or doors:
            try:
                return await self._http.get_json(address, path, deadline)
            except NodeLost as error:  # noqa: PERF203 - a try for each door is the point
                failed = error
        raise failed

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError("the client is not open: use it in a with statement")

    def _on_found(self, found: Found) -> None:
        if self._mesh is None:
            self._mesh = found.mesh
        if found.mesh != self._mesh:
            return
        self._neighbours.forget(found.id)  # where it was announced before
        for address in found.addresses:
            self._neighbours.hear_of(address, found.id)
        self._found.set()


class SyncClient:
    """A context manager with the calls of :class:`Client`, for code without an event loop."""

    def __init__(self, *urls: str, mesh: str | None = None, deadline_ms: float = 10_000.0) -> None:
        self._make = functools.partial(Client, *urls, mesh=mesh, deadline_ms=deadline_ms)
        self._client: Client | None = None

    def __enter__(self) -> SyncClient:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mesh-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._call(self._enter())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        client, self._client = self._client, None
        try:
            if client is not None:
                self._call(client.__aexit__(None, None, None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _enter(self) -> Client:
        return await self._make().__aenter__()

    def infer(self, model: str, inputs: Mapping[str, np.ndarray[Any, Any]], **options: Any) -> Result:
        """As :meth:`Client.infer`."""
        return self._call(self._opened.infer(model, inputs, **options))

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        return self._call(self._opened.metadata(model, version))

    def nodes(self) -> list[dict[str, Any]]:
        return self._call(self._opened.nodes())

    def models(self) -> list[str]:
        return self._call(self._opened.models())

    @property
    def _opened(self) -> Client:
        if self._client is None:
            raise RuntimeError("the client is not open: use it in a with statement")
        return self._client

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C ends the work too
            future.cancel()
            raise


def door_address(url: str) -> str:
    """``http://HOST:PORT[/]`` or ``HOST:PORT`` to HOST:PORT. Raises ``ConfigError``."""
    if url.startswith("https://"):
        raise ConfigError(f"{url}: doors do not speak TLS yet; put a proxy before them or use http://")
    address = url.removeprefix("http://").rstrip("/")
    parse(address)
    return address
