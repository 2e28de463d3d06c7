"""The bus inside one process: the same contract as NATS without a server, for tests and the simulator.

A :class:`MemoryBroker` stands for the server, each :class:`MemoryBus` for one client's connection to it. Not here:
anything across processes, delays or loss (stop the broker for an outage).
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Mapping

from mesh.bus import BusMessage, Handler, Payload
from mesh.bus_core import (
    HANDLER_LIMIT,
    NO_RESPONDERS,
    ConnectionState,
    Handlers,
    Requests,
    check_pattern,
    check_size,
    check_subject,
    clean_headers,
    encode_headers,
    flat,
)
from mesh.errors import BusUnavailable, DeadlineExceeded
from mesh.lifecycle import Tasks, within

Deliver = Callable[[BusMessage], None]


class _Subscription:
    def __init__(self, bus: MemoryBus, pattern: str, queue: str, deliver: Deliver, pump: asyncio.Task[None]) -> None:
        self.bus = bus
        self.queue = queue
        self.deliver = deliver
        self._tokens = pattern.split(".")
        self._pump = pump

    def wants(self, tokens: list[str]) -> bool:
        if self._tokens[-1] == ">":
            head = self._tokens[:-1]
            return len(tokens) > len(head) and all(w in ("*", t) for w, t in zip(head, tokens, strict=False))
        return len(tokens) == len(self._tokens) and all(
            w in ("*", t) for w, t in zip(self._tokens, tokens, strict=True)
        )

    async def unsubscribe(self) -> None:
        self.bus.broker.subscriptions.pop(self, None)
        self._pump.cancel()


class MemoryBroker:
    """What all buses of one process share. ``stop`` disconnects every bus at once, ``start`` brings them back."""

    def __init__(self, max_payload: int = 8 << 20) -> None:
        self.max_payload = max_payload
        self.running = True
        self.buses: dict[str, MemoryBus] = {}
        self.subscriptions: dict[_Subscription, None] = {}

    def stop(self) -> None:
        self.running = False
        for bus in tuple(self.buses.values()):
            bus.on_broker(running=False)

    def start(self) -> None:
        self.running = True
        for bus in tuple(self.buses.values()):
            bus.on_broker(running=True)

    def route(self, message: BusMessage) -> None:
        """Deliver to every subscription that wants it, to one of each queue group."""
        inbox, _, token = message.subject.rpartition(".")
        if (asker := self.buses.get(inbox)) is not None:
            asker.on_reply(token, message)
            return
        tokens = message.subject.split(".")
        groups: dict[object, list[_Subscription]] = {}
        for subscription in self.subscriptions:
            if subscription.wants(tokens):
                groups.setdefault(subscription.queue or subscription, []).append(subscription)
        for group in groups.values():
            random.choice(group).deliver(message)
        if not groups and message.reply:
            self.route(BusMessage(message.reply, b"", {"Status": NO_RESPONDERS}))


class MemoryBus:
    """A :class:`mesh.bus.Bus`, connected while it is entered and the broker runs."""

    def __init__(self, broker: MemoryBroker, *, handler_limit: int = HANDLER_LIMIT) -> None:
        self.broker = broker
        self._inbox = f"_INBOX_{secrets.token_hex(8)}"
        self._handler_limit = handler_limit
        self._requests = Requests()
        self._state = ConnectionState()
        self._tasks = Tasks("bus")

    async def __aenter__(self) -> MemoryBus:
        self.broker.buses[self._inbox] = self
        self._state.set(self.broker.running)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.cancel()
        for subscription in [s for s in self.broker.subscriptions if s.bus is self]:
            await subscription.unsubscribe()
        del self.broker.buses[self._inbox]
        self.on_broker(running=False)

    @property
    def connected(self) -> bool:
        return self._state.connected

    @property
    def max_payload(self) -> int:
        return self.broker.max_payload

    def on_state(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        return self._state.listen(listener)

    def on_broker(self, *, running: bool) -> None:
        """The broker came or went."""
        if not running:
            self._requests.fail(lambda subject: BusUnavailable(f"the bus was lost before {subject} answered"))
        self._state.set(running)

    def on_reply(self, token: str, reply: BusMessage) -> None:
        """The broker has a reply for a request of this bus."""
        self._requests.answer(token, reply)

    async def wait_connected(self, timeout_s: float) -> None:
        """Raises :class:`BusUnavailable` if there is no connection after ``timeout_s`` seconds."""
        try:
            await within(timeout_s, self._state.wait_connected())
        except asyncio.TimeoutError:
            raise BusUnavailable(f"the bus is not connected after {timeout_s:g} s") from None

    async def publish(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        message = self._checked(subject, payload, headers, reply)
        if reply:
            check_subject(reply)
        self.broker.route(message)

    async def request(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> BusMessage:
        message = self._checked(subject, payload, headers, "")
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time is left to ask {subject}")
        token, answer = self._requests.open(subject, timeout_s)
        try:
            self.broker.route(BusMessage(subject, message.payload, message.headers, f"{self._inbox}.{token}"))
            return await answer
        finally:
            self._requests.close(token)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> _Subscription:
        check_pattern(subject)
        if queue:
            check_subject(queue)
        handlers = Handlers(subject, handler, self._handler_limit, self._tasks)
        waiting: asyncio.Queue[BusMessage] = asyncio.Queue()
        pump = self._tasks.start(_pump(waiting, handlers), f"subscription {subject}")
        subscription = _Subscription(self, subject, queue, waiting.put_nowait, pump)
        self.broker.subscriptions[subscription] = None
        return subscription

    async def flush(self) -> None:
        self._live()

    def _live(self) -> None:
        if not self._state.connected:
            raise BusUnavailable("the bus is not connected")

    def _checked(self, subject: str, payload: Payload, headers: Mapping[str, str] | None, reply: str) -> BusMessage:
        self._live()
        check_subject(subject)
        clean = clean_headers(headers)
        body = flat(payload)
        check_size(len(encode_headers(clean)), len(body), self.max_payload)
        return BusMessage(subject, body, clean, reply)


async def _pump(waiting: asyncio.Queue[BusMessage], handlers: Handlers) -> None:
    while True:
        await handlers.take(await waiting.get())
