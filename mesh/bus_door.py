"""The bus door: answers requests on this node's own subject, and at a router those of plain NATS applications.

Callers on a node's own subject share the bus, which proves them (DESIGN D4): their hop headers count. Not here: sending
(``hop_bus``), what a request means (``dataplane``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any

from mesh import bus_streams, hop, subjects
from mesh.bus import Bus, BusMessage, Subscription
from mesh.bus_changes import ASK, Changes
from mesh.bus_core import BUS_MARGIN, may_answer
from mesh.bus_streams import BusStreams
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import BusUnavailable, InvalidRequest, MeshError, PayloadTooLarge, ProtocolError
from mesh.hop import Reply
from mesh.hop_bus import REQUEST, error_headers, lower
from mesh.lifecycle import Counted
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest
from mesh.questions import OF_A_MODEL, READ, answer
from mesh.shared_tensors import check_none
from mesh.values import ModelRef

log = logging.getLogger(__name__)

MOST_LEFT, MAX_NAME = 1024, 64


class BusDoor:
    """Serves the node's inference subject on the tensor connection."""

    def __init__(self, dataplane: Dataplane, bus: Bus) -> None:
        self._dataplane = dataplane
        self._bus = bus
        self._open = Counted()
        self._streams = BusStreams()
        self._changes = Changes()
        self._subscriptions: list[Subscription] = []
        self._running: dict[str, asyncio.Task[Any]] = {}
        """What may be called off, by the name that its caller gave it."""
        self._left: Recent[str, bool] = Recent(MOST_LEFT)
        """Names of what was called off before it was taken up, for that comes on subjects of its own."""

    async def leave(self) -> None:
        """Take nothing more; what is being answered goes on. Callers are told by the bus that nobody is here."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()

    async def finished(self, timeout_s: float) -> None:
        """Wait until what was asked is answered and what was streamed is fetched, at most for ``timeout_s``."""
        started = time.monotonic()
        await self._open.idle(timeout_s)
        await self._streams.fetched(timeout_s - (time.monotonic() - started))

    @contextlib.asynccontextmanager
    async def serving_node(self, site: str, node: str) -> AsyncIterator[None]:
        """Answer on ``mesh.v1.<site>.node.<node>.infer`` and ``.control`` while entered."""
        fetches = await self._bus.subscribe(subjects.stream(node), self._on_fetch)
        cancels = await self._bus.subscribe(subjects.cancel(site, node), self._on_left)
        steps = await self._bus.subscribe(subjects.step(site, node), self._on_step)
        self._subscriptions.append(await self._bus.subscribe(subjects.infer(site, node), self._on_hop))
        self._subscriptions.append(await self._bus.subscribe(subjects.control(site, node), self._on_control))
        remove = self._bus.on_state(lambda connected: None if connected else self._streams.end_all())
        try:
            async with self._streams.running():
                yield
        finally:
            remove()
            await self.leave()
            await fetches.unsubscribe()
            await cancels.unsubscribe()
            await steps.unsubscribe()

    @contextlib.asynccontextmanager
    async def serving_applications(self) -> AsyncIterator[None]:
        """Answer on ``mesh.v1.infer.<model>``, shared with the other routers, while entered."""
        left = await self._bus.subscribe(subjects.left(), self._on_left)
        self._subscriptions.append(
            await self._bus.subscribe(subjects.all_models(), self._on_application, queue=subjects.ROUTER_QUEUE)
        )
        try:
            yield
        finally:
            await self.leave()
            await left.unsubscribe()

    async def _on_hop(self, message: BusMessage) -> None:
        await self._named(message, self._serve(message, proven=True))

    async def _on_step(self, message: BusMessage) -> None:
        """Taken while this door drains too: no other one holds the sequence."""
        await self._named(message, self._step(message))

    async def _on_application(self, message: BusMessage) -> None:
        await self._named(message, self._serve(message, proven=False))

    async def _named(self, message: BusMessage, serving: Coroutine[Any, Any, tuple[bytes, dict[str, str]]]) -> None:
        """Answer so that it can be called off by name."""
        name, task = lower(message.headers).get(REQUEST, ""), asyncio.current_task()
        if self._left.get(name):
            serving.close()
            return
        with self._open.one():
            if not name or name in self._running or task is None:
                await self._answer(message, serving)
                return
            self._running[name] = task
            try:
                await self._answer(message, serving)
            finally:
                del self._running[name]

    async def _on_left(self, message: BusMessage) -> None:
        """A caller has left, before it knew where its stream is fetched if it asked for one."""
        headers = lower(message.headers)
        for header in (REQUEST, bus_streams.NAME):
            self._call_off(headers.get(header, ""))

    def _call_off(self, name: str) -> None:
        task = self._running.get(name)
        if task is not None:
            task.cancel()
        elif not self._streams.end(name) and 0 < len(name) <= MAX_NAME:
            self._left.put(name, True)

    async def _answer(self, message: BusMessage, serving: Coroutine[Any, Any, tuple[bytes, dict[str, str]]]) -> None:
        if not may_answer(message.reply):
            serving.close()
            return
        try:
            payload, answered = await serving
        except MeshError as error:
            payload, answered = b"", error_headers(error)
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            payload, answered = b"", error_headers(unexpected(message.subject))
        await self._send(message.reply, payload, answered)

    async def _serve(self, message: BusMessage, *, proven: bool) -> tuple[bytes, dict[str, str]]:
        arrived = time.monotonic()
        headers = lower(message.headers)
        ref = ModelRef(headers.get(hop.MODEL, "") if proven else _asked(message.subject), headers.get(hop.VERSION, ""))
        what = headers.get(hop.OP, "")
        if not proven:
            await self._dataplane.view.acquainted(ref)
        if what in (READ if proven else OF_A_MODEL):
            return await self._question(what, ref, message.payload, hops=1 if proven else 0), {}
        if not ref.name:
            with self._dataplane.requests.refusing():
                raise InvalidRequest("the request names no model: header Mesh-Model is missing")
        if headers.get(hop.HEADER_LENGTH) == "0":
            request = await self._dataplane.known.raw(ref, message.payload, binary=True)
        else:
            request = self._dataplane.decode(ref, message.payload, headers.get(hop.HEADER_LENGTH))
        if not proven:
            with self._dataplane.requests.refusing():
                check_none(request)
        if what == bus_streams.STREAM:
            return await self._stream(request, arrived, headers, proven=proven)
        reply = await self._dataplane.infer(request, arrived, headers if proven else None, want_load=proven)
        return reply.body.joined(), hop.reply_headers(reply, want_load=proven) | hop.cascade_headers(reply)

    async def _step(self, message: BusMessage) -> tuple[bytes, dict[str, str]]:
        """As if it had come to this door, by its own deadline."""
        arrived, headers = time.monotonic(), lower(message.headers)
        ref = ModelRef(headers.get(hop.MODEL, ""), headers.get(hop.VERSION, ""))
        request = self._dataplane.decode(ref, message.payload, headers.get(hop.HEADER_LENGTH))
        said = {hop.HANDED: "1"} | {name: text for name, text in headers.items() if name == hop.DEADLINE}
        reply = await self._dataplane.infer(request, arrived, said, want_load=False)
        return reply.body.joined(), hop.reply_headers(reply, want_load=False) | hop.cascade_headers(reply)

    async def _on_control(self, message: BusMessage) -> None:
        headers = lower(message.headers)
        what, ref = headers.get(hop.OP, ""), ModelRef(headers.get(hop.MODEL, ""))

        async def serve() -> tuple[bytes, dict[str, str]]:
            if what == ASK:
                return b"", {hop.CHALLENGE: self._changes.challenge}
            if what not in hop.CHANGES or not ref.name:
                raise InvalidRequest("here a model is loaded or unloaded by the headers Mesh-Op and Mesh-Model")
            if not self._dataplane.repositories.opened.bus:
                self._changes.take(self._dataplane.trust, headers, message.payload)
            return await self._question(what, ref, message.payload, hops=1), {}

        await self._answer(message, serve())

    async def _question(self, what: str, ref: ModelRef, body: bytes, *, hops: int) -> bytes:
        own = self._dataplane.repositories.own
        return await answer(self._dataplane, what, ref, body, hops=hops, repository=lambda _: own())

    async def _stream(
        self, request: InferRequest, arrived: float, headers: dict[str, str], *, proven: bool
    ) -> tuple[bytes, dict[str, str]]:
        """Begin a stream: its name, and what is there of it."""
        most, name = self._bus.max_payload - BUS_MARGIN, headers.get(bus_streams.NAME, "")
        if self._left.get(name):
            raise InvalidRequest("this stream was called off before it began")
        replies = self._dataplane.stream(request, arrived, headers if proven else None, want_load=proven)
        name = self._streams.open(_expected(replies, request.model), most, name)
        payload, answered = await self._streams.fetch(name, most, bus_streams.FIRST_S)
        where = {bus_streams.NAME: name, bus_streams.FETCH: subjects.stream(self._dataplane.identity.node)}
        return payload, answered | where

    async def _on_fetch(self, message: BusMessage) -> None:
        headers = lower(message.headers)
        name, what = headers.get(bus_streams.NAME, ""), headers.get(hop.OP)
        if what == bus_streams.END:
            self._call_off(name)
        elif what == bus_streams.KEEP:
            self._streams.keep(name)
        elif may_answer(message.reply):
            await self._fetch(message, name)

    async def _fetch(self, message: BusMessage, name: str) -> None:
        try:
            payload, answered = await self._streams.fetch(name, self._bus.max_payload - BUS_MARGIN)
        except MeshError as error:
            payload, answered = b"", error_headers(error)
        await self._send(message.reply, payload, answered)

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        try:
            await self._bus.publish(subject, payload, headers)
        except PayloadTooLarge as error:
            too_large = PayloadTooLarge(f"the answer cannot be sent: {error.text}; ask by HTTP, or for fewer outputs")
            await self._bus.publish(subject, b"", error_headers(too_large))
        except BusUnavailable:
            log.info("an answer could not be sent: the bus is gone, its caller was told by its own connection")


async def _expected(replies: AsyncGenerator[Reply, None], what: str) -> AsyncGenerator[Reply, None]:
    """A stream that ends with errors of ours only."""
    async with contextlib.aclosing(replies):
        try:
            async for reply in replies:
                yield reply
        except MeshError:
            raise
        except Exception:  # noqa: BLE001 - as in _answer
            raise unexpected(what) from None


def _asked(subject: str) -> str:
    """The model that an application asks for."""
    try:
        return subjects.parse_model(subject)
    except ProtocolError as error:
        raise InvalidRequest(error.text) from None
