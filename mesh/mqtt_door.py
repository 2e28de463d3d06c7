"""The MQTT door: requests that devices publish through nats-server's own MQTT listener, and results published back.

To this process they are messages on the bus; topics are ``mqtt_topics``. A body is an OIP request in JSON, or the value
of the model's one input. Whoever sends with QoS 1 may be answered twice, and results come with QoS 0: that is the
server's. Not here: the listener (``nats_server``), what a request means (``dataplane``).
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator

import msgspec

from mesh import mqtt_topics
from mesh.bus import Bus, BusMessage, Subscription
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import BusUnavailable, MeshError, Overloaded, PayloadTooLarge
from mesh.http_stream import as_json
from mesh.lifecycle import Counted
from mesh.mqtt_topics import Asked
from mesh.oip.request import InferRequest
from mesh.sequence_steps import CLIENT, ID
from mesh.settings import MqttSettings
from mesh.shared_tensors import check_none
from mesh.values import ModelRef

log = logging.getLogger(__name__)

RESULT = "mesh_result"
"""Parameter of a request: the topic that its results go to."""
MOST_REQUESTS, MOST_BYTES = 1024, 256 << 20
"""Taken and not answered yet, all together; what comes beyond is refused. A device cannot be made to wait."""
_OBJECT = re.compile(rb"""\s*\{\s*(?:["'}]|inputs|$)""")


class _Refused(msgspec.Struct, omit_defaults=True):
    """The result of a request that failed."""

    error: str
    code: str
    model: str = ""
    id: str = ""


class MqttDoor:
    def __init__(self, dataplane: Dataplane, bus: Bus, settings: MqttSettings) -> None:
        self._dataplane = dataplane
        self._bus = bus
        self._settings = settings
        self._subscription: Subscription | None = None
        self._open = Counted()
        self._bytes = 0

    @contextlib.asynccontextmanager
    async def serving(self, site: str) -> AsyncIterator[None]:
        """Answer requests of ``site``, together with others that do."""
        pattern = mqtt_topics.requests(site)
        self._subscription = await self._bus.subscribe(pattern, self._on_message, queue=mqtt_topics.QUEUE)
        try:
            yield
        finally:
            await self.leave()

    async def leave(self) -> None:
        """Take nothing more; what is being answered goes on."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def finished(self, timeout_s: float) -> None:
        """Wait until what was asked is answered, at most for ``timeout_s``."""
        await self._open.idle(timeout_s)

    async def _on_message(self, message: BusMessage) -> None:
        arrived, refusing = time.monotonic(), self._dataplane.requests.refusing
        to, asked = mqtt_topics.errors(message.subject), None
        try:
            with refusing():
                asked = mqtt_topics.read(message.subject)
            to = asked.result
            with self._taken(len(message.payload)):
                request = await self._request(asked, message.payload)
                with refusing():
                    check_none(request)
                    if (topic := request.parameters.pop(RESULT, None)) is not None:
                        to = mqtt_topics.chosen(topic, asked.site)
                await self._answer(request, arrived, to)
        except MeshError as error:
            await self._refuse(error, asked, to)
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            await self._refuse(unexpected(message.subject), asked, to)

    @contextlib.contextmanager
    def _taken(self, size: int) -> Iterator[None]:
        if self._open.count >= MOST_REQUESTS or self._bytes + size > MOST_BYTES:
            with self._dataplane.requests.refusing():
                raise Overloaded(f"{self._open.count} requests of {self._bytes} bytes are waiting at this node")
        self._bytes += size
        try:
            with self._open.one():
                yield
        finally:
            self._bytes -= size

    async def _request(self, asked: Asked, payload: bytes) -> InferRequest:
        ref = ModelRef(asked.model)
        await self._dataplane.view.acquainted(ref)
        if is_json(payload):
            if len(payload) > (most := self._settings.max_json_bytes):
                with self._dataplane.requests.refusing():
                    raise PayloadTooLarge(f"the JSON body has {len(payload)} bytes, over {most}")
            request = self._dataplane.decode(ref, payload, None)
        else:
            request = await self._dataplane.known.raw(ref, payload, binary=False)
        as_json(request)
        if asked.id:
            request.id = request.id or asked.id
            if ID in request.parameters:
                request.parameters.setdefault(CLIENT, asked.id)
        return request

    async def _answer(self, request: InferRequest, arrived: float, to: str) -> None:
        """Each answer a message of its own: of most models there is one."""
        replies = self._dataplane.stream(request, arrived, None, want_load=False)
        async with contextlib.aclosing(replies):
            async for reply in replies:
                try:
                    await self._bus.publish(to, reply.body.joined())
                except PayloadTooLarge as error:
                    raise PayloadTooLarge(f"the result cannot be sent: {error.text}") from None

    async def _refuse(self, error: MeshError, asked: Asked | None, to: str) -> None:
        model, request_id = (asked.model, asked.id) if asked is not None else ("", "")
        try:
            await self._bus.publish(to, msgspec.json.encode(_Refused(error.text, error.code, model, request_id)))
        except BusUnavailable:
            log.info("a result could not be published, the bus is gone: %s", error.text)


def is_json(body: bytes) -> bool:
    """Whether it is meant as JSON: text that begins as an object does. A picture's first byte may be a brace too."""
    if _OBJECT.match(body) is None:
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
