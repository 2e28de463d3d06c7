"""An MQTT device for tests and benchmarks: paho-mqtt on its own thread, what it hears on the loop of the test.

Not here: the server (``nats``), topics and bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion

from tests.nats import PATIENCE_S, soon


class Device:
    """Connected and subscribed to ``results`` while entered. ``heard`` is called on the loop with each message, else
    they wait for :meth:`next`."""

    def __init__(
        self,
        port: int,
        name: str,
        results: str,
        password: str = "",
        *,
        user: str = "anybody",
        clean: bool = True,
        heard: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._tell = heard or (lambda topic, payload: self._heard.put_nowait((topic, payload)))
        self._ready = asyncio.Event()
        self._port = port
        self._results = results
        self._client = Client(CallbackAPIVersion.VERSION2, name, clean_session=clean, protocol=MQTTv311)
        self._client.username_pw_set(user, password)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    async def __aenter__(self) -> Device:
        await asyncio.to_thread(self._client.connect, "127.0.0.1", self._port)
        self._client.loop_start()
        await soon(self._ready.wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def reconnect(self) -> None:
        """Lose the connection; paho dials again by itself."""
        line = self._client.socket()
        assert isinstance(line, socket.socket)
        async with self.again():
            line.shutdown(socket.SHUT_RDWR)

    @contextlib.asynccontextmanager
    async def again(self) -> AsyncIterator[None]:
        """Wait until it is connected again after what is done meanwhile, which must cost it its connection."""
        self._ready.clear()
        yield
        await soon(self._ready.wait())

    def send(self, topic: str, body: Any, qos: int = 0, *, retain: bool = False) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body)
        self._client.publish(topic, payload, qos, retain)

    async def sent(self, topic: str, body: Any, qos: int) -> None:
        """Send, and wait until the server has it."""
        info = self._client.publish(topic, json.dumps(body), qos)
        await asyncio.to_thread(info.wait_for_publish, PATIENCE_S)

    async def next(self) -> tuple[str, Any]:
        """The topic and the document of the next message."""
        topic, payload = await soon(self._heard.get())
        return topic, json.loads(payload)

    async def ask(self, topic: str, body: Any, qos: int = 0) -> tuple[str, Any]:
        self.send(topic, body, qos)
        return await self.next()

    @property
    def silent(self) -> bool:
        return self._heard.empty()

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe(self._results, 1)

    def _on_subscribe(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._ready.set)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._tell, message.topic, bytes(message.payload))
