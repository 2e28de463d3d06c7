"""The SDK: infer on whatever door of the mesh answers in time. Numpy in, numpy out, one deadline.

Doors come from URLs, from ``MESH_URL``, from the reports on a bus, or from zeroconf. The client routes among doors by
the same rule as the mesh routes among nodes and goes to another door when one dies. Not here: the same calls for plain
code (``sync_client``), what is sent and what comes back (``result``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from mesh.addresses import host_token, parse
from mesh.client_sequence import ClientSequence
from mesh.deadline import Deadline
from mesh.discovery import Discovery, Found
from mesh.door_bus import RouterHop
from mesh.doors import NO_DOOR, DoorHop, DoorWays
from mesh.errors import ConfigError, MeshError, NodeLost, NoReadyInstance
from mesh.hop import Context
from mesh.hop_http import HttpClient, model_path
from mesh.lifecycle import within
from mesh.nats_bus import NatsBus, NatsOptions
from mesh.neighbours import Neighbours
from mesh.oip.documents import decode_model_metadata
from mesh.result import Inputs, Result, make_request, read_result
from mesh.router import Router
from mesh.sequencer import Sequencer
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import View
from mesh.watcher import Watcher

DISCOVERY_S = 3.0
SETTLE_S = 2.0


class Client:
    """An async context manager.

    ``urls`` are doors (``http://HOST:PORT``), the first preferred, and servers of a bus (``nats://HOST:PORT``), whose
    nodes tell of their doors; none means ``MESH_URL``, else zeroconf. ``mesh`` limits what zeroconf or the bus may find
    to one mesh id; without it the first mesh that zeroconf finds is the one. At most ``retry_ratio`` of the requests
    are tried again elsewhere after an error that leaves open whether they ran. ``nats`` is for a bus that wants more
    than ``nats_token``.
    """

    def __init__(
        self,
        *urls: str,
        mesh: str | None = None,
        deadline_ms: float = 10_000.0,
        retry_ratio: float = 0.1,
        nats_token: str = "",
        nats: NatsOptions | None = None,
    ) -> None:
        given = urls or tuple(u for u in os.environ.get("MESH_URL", "").split(",") if u)
        self._addresses = tuple(door_address(url) for url in given if not is_bus(url))
        self._mesh = mesh
        self._deadline_ms = deadline_ms
        self._found = asyncio.Event()
        name = self._name = f"client-{secrets.token_hex(4)}"
        buses = tuple(url for url in given if is_bus(url))
        self._nats = nats or (NatsOptions(buses, name, token=nats_token) if buses else None)
        watcher = Watcher(mesh or "", name)
        self._http = HttpClient(name)
        self._neighbours = Neighbours(watcher, self._http, None, name)
        self._watcher = watcher
        self._ways = DoorWays(watcher, self._neighbours, DoorHop(self._http), self._addresses, host_token())
        view = View(name, watcher, None)
        self._router = Router(view=view, ways=self._ways, neighbours=self._neighbours, retry_ratio=retry_ratio)
        self._sequencer = Sequencer(self._router.infer)
        self._stack = contextlib.AsyncExitStack()
        self._open = False

    async def __aenter__(self) -> Client:
        async with self._stack as stack:
            await stack.enter_async_context(self._watcher.running())
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self._neighbours.running())
            for address in self._addresses:
                self._neighbours.hear_of(address, "given")
            if self._nats is not None:
                await self._listen(stack, self._nats)
            elif not self._addresses:
                discovery = Discovery(
                    announce=None, on_found=self._on_found, on_gone=self._neighbours.forget, interfaces=None
                )
                await stack.enter_async_context(discovery)
            if not self._addresses:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(DISCOVERY_S, self._found.wait())
            await self._neighbours.settled(SETTLE_S)
            self._stack = stack.pop_all()
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        await self._stack.aclose()

    async def _listen(self, stack: contextlib.AsyncExitStack, options: NatsOptions) -> None:
        """Learn of doors from the reports on the bus, and ask the routers over it where no door can be reached."""
        bus = await stack.enter_async_context(NatsBus(options))
        self._watcher.on_news(lambda _: self._found.set())
        await stack.enter_async_context(self._watcher.subscribed(bus, ("*",)))
        self._ways.join_bus(bus, RouterHop(bus))
        if not self._addresses:
            await bus.wait_connected(DISCOVERY_S)

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Result:
        """Run ``model`` once. No ``outputs`` means all. Raises an error of ``mesh.errors``."""
        self._check_open()
        deadline = self._deadline(deadline_ms)
        request = make_request(model, version, inputs, outputs, parameters)
        return read_result(await self._router.infer(request, ModelIdentity(model, version, ""), Context(deadline)))

    async def stream(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Result, None]:
        """The answers of ``model``, as they come: any number of a decoupled one, else one. The deadline is for all of
        them. An async generator: whoever leaves early should close it (``contextlib.aclosing``), which ends the run.
        """
        self._check_open()
        deadline = self._deadline(deadline_ms)
        request = make_request(model, version, inputs, outputs, parameters)
        replies = self._router.stream(request, ModelIdentity(model, version, ""), Context(deadline))
        async with contextlib.aclosing(replies):
            async for reply in replies:
                yield read_result(reply)

    def sequence(
        self, model: str, *, version: str = "", sequence_id: int | str = 0, deadline_ms: float | None = None
    ) -> ClientSequence:
        """Requests to a model that keeps state, one after the other; 0 takes an id that this client did not use yet."""
        self._check_open()
        each_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        return ClientSequence(self._sequencer, self._name, ModelIdentity(model, version, ""), sequence_id, each_ms)

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

    def _deadline(self, deadline_ms: float | None) -> Deadline:
        return Deadline.after_ms(self._deadline_ms if deadline_ms is None else deadline_ms)

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


def is_bus(url: str) -> bool:
    return url.startswith(("nats://", "tls://"))


def door_address(url: str) -> str:
    """``http://HOST:PORT[/]`` or ``HOST:PORT`` to HOST:PORT. Raises ``ConfigError``."""
    if url.startswith("https://"):
        raise ConfigError(f"{url}: doors do not speak TLS yet; put a proxy before them or use http://")
    address = url.removeprefix("http://").rstrip("/")
    parse(address)
    return address
