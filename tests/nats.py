"""Real and in-memory buses for tests: servers that can be cut, buses that are connected, handlers that can be awaited.

A server is ``async with NatsServer() as server``. Not here: the fake server (``fake_nats``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from mesh.bus import Bus, BusMessage
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.nats_bus import NatsBus, NatsOptions
from mesh.nats_server import NatsServer

PATIENCE_S = 60.0
"""Nothing in these tests takes long; this is for a machine that is busy with other things."""

T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    """Await with the patience of a test."""
    return await asyncio.wait_for(work, PATIENCE_S)


class Heard:
    """A handler that keeps what it hears; ``await next()`` for one message after the other."""

    def __init__(self) -> None:
        self.messages: list[BusMessage] = []
        self._queue: asyncio.Queue[BusMessage] = asyncio.Queue()

    async def __call__(self, message: BusMessage) -> None:
        self.messages.append(message)
        self._queue.put_nowait(message)

    async def next(self) -> BusMessage:
        return await soon(self._queue.get())

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


def answering(bus: Bus, answer: Callable[[BusMessage], bytes] = lambda m: m.payload) -> Callable[..., Awaitable[None]]:
    """A handler that answers each request on ``bus``, with its own payload and headers unless told otherwise."""

    async def handle(message: BusMessage) -> None:
        await bus.publish(message.reply, answer(message), message.headers)

    return handle


async def until_state(bus: Bus, *, connected: bool) -> None:
    """Wait for a state of the bus on its own signal."""
    reached = asyncio.Event()
    remove = bus.on_state(lambda now: reached.set() if now is connected else None)
    try:
        if bus.connected is not connected:
            await soon(reached.wait())
    finally:
        remove()


class World:
    """Some bus technology: makes connected buses, and can be cut off and restored for all of them."""

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def bus(self, *, handler_limit: int = 256) -> Bus:
        raise NotImplementedError

    async def cut(self) -> None:
        raise NotImplementedError

    async def restore(self) -> None:
        raise NotImplementedError


class MemoryWorld(World):
    def __init__(self, max_payload: int) -> None:
        super().__init__()
        self._broker = MemoryBroker(max_payload)

    async def bus(self, *, handler_limit: int = 256) -> Bus:
        return await self.stack.enter_async_context(MemoryBus(self._broker, handler_limit=handler_limit))

    async def cut(self) -> None:
        self._broker.stop()

    async def restore(self) -> None:
        self._broker.start()


class NatsWorld(World):
    """A real server; ``cut`` is ``kill -9``, ``restore`` starts it on the same port."""

    def __init__(self, max_payload: int) -> None:
        super().__init__()
        self.server = NatsServer(max_payload=max_payload)

    async def __aenter__(self) -> World:
        await self.stack.enter_async_context(self.server)
        return self

    async def bus(self, *, handler_limit: int = 256) -> Bus:
        options = NatsOptions((self.server.url,), "test.bus", handler_limit=handler_limit, reconnect_max_s=0.5)
        bus = await self.stack.enter_async_context(NatsBus(options))
        await bus.wait_connected(PATIENCE_S)
        return bus

    async def cut(self) -> None:
        await self.server.kill()

    async def restore(self) -> None:
        await self.server.start()


@contextlib.asynccontextmanager
async def connected_bus(server: NatsServer, **options: Any) -> AsyncIterator[NatsBus]:
    """A bus connected to ``server``, with the server's token."""
    async with NatsBus(NatsOptions((server.url,), "test", token=server.token, **options)) as bus:
        await bus.wait_connected(PATIENCE_S)
        yield bus
