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
from mesh.client_calls import Calls
from mesh.client_sequence import IDLE_S, ClientSequence
from mesh.deadline import Deadline
from mesh.discovery import Discovery, Found
from mesh.door_bus import RouterHop
from mesh.doors import BUS, NO_DOOR, DoorHop, DoorWays
from mesh.errors import ConfigError, DeadlineExceeded, MeshError, NoReadyInstance
from mesh.hop import Context, Target
from mesh.hop_http import HttpClient, model_path
from mesh.lifecycle import within
from mesh.nats_bus import NatsBus, NatsOptions
from mesh.neighbours import Neighbours
from mesh.oip.documents import decode_model_metadata
from mesh.result import Inputs, Result, deadline_of, make_request, read_result
from mesh.router import Router
from mesh.sequencer import Sequencer
from mesh.settings import SequencesSettings
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import View
from mesh.watcher import Watcher

DISCOVERY_S = 3.0
SETTLE_S = 2.0
ASK_MS = 3_000.0
"""The longest that a door is waited for where another can be asked what there is."""


class Client:
    """An async context manager, which can be entered once.

    ``urls`` are doors (``http://HOST:PORT``), the first preferred, and servers of a bus (``nats://HOST:PORT``), whose
    nodes tell of their doors; none means ``MESH_URL``, else zeroconf. ``mesh`` limits what zeroconf or the bus may find
    to one mesh id; without it the first mesh that zeroconf finds and that answers is the one. At most ``retry_ratio``
    of the requests are tried again elsewhere after an error that leaves open whether they ran. ``nats`` is for a bus
    that wants more than ``nats_token``.
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
        given = urls or tuple(u.strip() for u in os.environ.get("MESH_URL", "").split(",") if u.strip())
        self._addresses = tuple(door_address(url) for url in given if not is_bus(url))
        self._mesh = mesh or ""
        self._deadline_ms = deadline_ms
        self._found = asyncio.Event()
        name = self._name = f"client-{secrets.token_hex(4)}"
        buses = tuple(url for url in given if is_bus(url))
        if not 0.0 <= retry_ratio <= 1.0:
            raise ConfigError(f"retry_ratio is a share of the requests, 0 to 1, got {retry_ratio:g}")
        if buses and nats is not None:
            raise ConfigError("name the bus by its URL or in the options of nats, not in both")
        self._nats = nats or (NatsOptions(buses, name, token=nats_token) if buses else None)
        watcher = Watcher(self._mesh, name)
        self._http = HttpClient(name)
        self._neighbours = Neighbours(watcher, self._http, None, name)
        self._watcher = watcher
        self._ways = DoorWays(watcher, self._neighbours, DoorHop(self._http), self._addresses, host_token())
        view = View(name, watcher, None)
        self._router = Router(view=view, ways=self._ways, neighbours=self._neighbours, retry_ratio=retry_ratio)
        self._sequencer = Sequencer(self._router.infer, SequencesSettings(idle_s=IDLE_S))
        self._routers: RouterHop | None = None
        self._stack = contextlib.AsyncExitStack()
        self._calls = Calls()

    async def __aenter__(self) -> Client:
        self._calls.opening()
        async with self._stack as stack:
            await stack.enter_async_context(self._watcher.running())
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self._neighbours.running())
            for address in self._addresses:
                self._neighbours.hear_of(address, "given")
            if self._nats is not None:
                await self._listen(stack, self._nats)
            elif not self._addresses:
                self._watcher.on_news(self._on_news)
                discovery = Discovery(
                    announce=None, on_found=self._on_found, on_gone=self._neighbours.forget, interfaces=None
                )
                await stack.enter_async_context(discovery)
            if not self._addresses:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(DISCOVERY_S, self._found.wait())
            await self._neighbours.settled(SETTLE_S)
            await stack.enter_async_context(self._sequencer.running())
            self._stack = stack.pop_all()
        self._calls.opened()
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is under way ends: whoever waits for it gets a ``RuntimeError``."""
        try:
            await self._calls.close()
        finally:
            await self._stack.aclose()

    async def _listen(self, stack: contextlib.AsyncExitStack, options: NatsOptions) -> None:
        """Learn of doors from the reports on the bus, and ask the routers over it where no door can be reached."""
        bus = await stack.enter_async_context(NatsBus(options))
        self._watcher.on_news(lambda _: self._found.set())
        await stack.enter_async_context(self._watcher.subscribed(bus, ("*",)))
        self._routers = RouterHop(bus)
        self._ways.join_bus(bus, self._routers)
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
        with self._calls.one():
            context = Context(self._deadline(deadline_ms))
            request = make_request(model, version, inputs, outputs, parameters)
            return read_result(await self._router.infer(request, ModelIdentity(model, version, ""), context))

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
        self._calls.check()
        context = Context(self._deadline(deadline_ms))
        request = make_request(model, version, inputs, outputs, parameters)
        replies = self._calls.each(self._router.stream(request, ModelIdentity(model, version, ""), context))
        async with contextlib.aclosing(replies):
            async for reply in replies:
                yield read_result(reply)

    def sequence(
        self, model: str, *, version: str = "", sequence_id: int | str = 0, deadline_ms: float | None = None
    ) -> ClientSequence:
        """Requests to a model that keeps state, one after the other; 0 takes an id that this client did not use yet."""
        each_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        identity = ModelIdentity(model, version, "")
        return ClientSequence(self._calls, self._sequencer, self._name, identity, sequence_id, each_ms)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Inputs and outputs of a model held anywhere in the mesh."""
        ref = ModelRef(model, version)
        if self._routers is None or self.doors:
            return decode_model_metadata(await self._get(model_path(ref)))
        with self._calls.one():
            deadline = self._deadline(None)
            return decode_model_metadata(await self._routers.ask(Target(BUS, "", "cloud"), "metadata", ref, deadline))

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
        """From the first door that answers; one that has just died, or hangs, is not the last word."""
        with self._calls.one():
            deadline, known = self._deadline(None), self.doors
            doors = sorted(known, key=lambda address: address not in self._addresses)
            failed: MeshError = NoReadyInstance(NO_DOOR)
            for address in doors:
                soon = deadline if address == doors[-1] else deadline.at_most_ms(ASK_MS)
                try:
                    return await self._http.get_json(address, path, soon)
                except MeshError as error:
                    if not (error.retryable or isinstance(error, DeadlineExceeded)):
                        raise
                    failed = error
            raise failed

    def _deadline(self, deadline_ms: float | None) -> Deadline:
        return deadline_of(self._deadline_ms if deadline_ms is None else deadline_ms)

    def _on_found(self, found: Found) -> None:
        self._neighbours.forget(found.id)  # where it was announced before
        if self._mesh in ("", found.mesh):
            for address in found.addresses:
                self._neighbours.hear_of(address, found.id)

    def _on_news(self, node: str) -> None:
        """The first mesh of which a door answers is the one: of what is announced much may be dead."""
        view = self._watcher.membership.get(node)
        if not self._mesh and view is not None:
            self._mesh = view.report.mesh
            self._watcher.keep_to(self._mesh)
        if self.doors:
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
