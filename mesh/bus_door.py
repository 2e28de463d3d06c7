"""The bus door: answers requests on this node's own subject, and at a router those of plain NATS applications.

Callers on a node's own subject share the bus, which proves them (DESIGN D4): their hop headers count. Not here: sending
(``hop_bus``), what a request means (``dataplane``).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator

from mesh import hop, subjects
from mesh.bus import Bus, BusMessage, Subscription
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import BusUnavailable, InvalidRequest, MeshError, PayloadTooLarge, ProtocolError
from mesh.hop_bus import METADATA, error_headers
from mesh.oip.documents import encode_model_metadata
from mesh.values import ModelRef

log = logging.getLogger(__name__)


class BusDoor:
    """Serves the node's inference subject on the tensor connection."""

    def __init__(self, dataplane: Dataplane, bus: Bus) -> None:
        self._dataplane = dataplane
        self._bus = bus
        self.in_flight = 0
        self._subscriptions: list[Subscription] = []

    async def leave(self) -> None:
        """Take nothing more; what is being answered goes on. Callers are told by the bus that nobody is here."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()

    @contextlib.asynccontextmanager
    async def serving_node(self, site: str, node: str) -> AsyncIterator[None]:
        """Answer on ``mesh.v1.<site>.node.<node>.infer`` while entered."""
        self._subscriptions.append(await self._bus.subscribe(subjects.infer(site, node), self._on_hop))
        try:
            yield
        finally:
            await self.leave()

    @contextlib.asynccontextmanager
    async def serving_applications(self) -> AsyncIterator[None]:
        """Answer on ``mesh.v1.infer.<model>``, shared with the other routers, while entered."""
        self._subscriptions.append(
            await self._bus.subscribe(subjects.all_models(), self._on_application, queue=subjects.ROUTER_QUEUE)
        )
        try:
            yield
        finally:
            await self.leave()

    async def _on_hop(self, message: BusMessage) -> None:
        await self._answer(message, proven=True)

    async def _on_application(self, message: BusMessage) -> None:
        await self._answer(message, proven=False)

    async def _answer(self, message: BusMessage, *, proven: bool) -> None:
        if not message.reply:
            return
        self.in_flight += 1
        try:
            payload, answered = await self._serve(message, proven=proven)
        except MeshError as error:
            payload, answered = b"", error_headers(error)
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            payload, answered = b"", error_headers(unexpected(message.subject))
        finally:
            self.in_flight -= 1
        await self._send(message.reply, payload, answered)

    async def _serve(self, message: BusMessage, *, proven: bool) -> tuple[bytes, dict[str, str]]:
        arrived = time.monotonic()
        headers = {name.lower(): value for name, value in message.headers.items()}
        ref = ModelRef(headers.get(hop.MODEL, "") if proven else _asked(message.subject), headers.get(hop.VERSION, ""))
        if not ref.name:
            raise InvalidRequest("the request names no model: header Mesh-Model is missing")
        if headers.get(hop.OP) == METADATA:
            return encode_model_metadata(await self._dataplane.metadata(ref, hops=1 if proven else 0)), {}
        request = self._dataplane.decode(ref, message.payload, headers.get(hop.HEADER_LENGTH))
        reply = await self._dataplane.infer(request, arrived, headers if proven else None, want_load=proven)
        return reply.body.joined(), hop.reply_headers(reply, want_load=proven) | hop.cascade_headers(reply)

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        try:
            await self._bus.publish(subject, payload, headers)
        except PayloadTooLarge as error:
            too_large = PayloadTooLarge(f"the answer cannot be sent: {error.text}; ask by HTTP, or for fewer outputs")
            await self._bus.publish(subject, b"", error_headers(too_large))
        except BusUnavailable:
            log.info("an answer could not be sent: the bus is gone, its caller was told by its own connection")


def _asked(subject: str) -> str:
    """The model that an application asks for."""
    try:
        return subjects.parse_model(subject)
    except ProtocolError as error:
        raise InvalidRequest(error.text) from None
