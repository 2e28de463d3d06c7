"""The bus over NATS: one connection after the other, for as long as the bus is entered (DESIGN D17, D18).

Whatever closes a connection, its pending requests fail at once and a new one is made, with exponential backoff and
full jitter, and all subscriptions are made again; a bus that was never reachable is only a longer wait. A server that
refuses us (credentials, TLS, version) is said so loudly once and asked again slowly. Only configured servers are
dialled, never those that a server advertises: they may not be reachable from here.

Not here: what one connection does (``nats_connection``), JetStream, subjects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from mesh import subjects
from mesh.bus import BusMessage, Handler, Payload
from mesh.bus_core import (
    ConnectionState,
    Handlers,
    check_pattern,
    check_size,
    check_subject,
    clean_headers,
    encode_headers,
    flat,
)
from mesh.errors import BusUnavailable, ConfigError, DeadlineExceeded, MeshError
from mesh.lifecycle import Tasks, within
from mesh.nats_connection import Connection, NatsOptions, check_url

__all__ = ["NatsBus", "NatsOptions"]

log = logging.getLogger(__name__)

CLOSE_S = 2.0
"""Longest that each step of leaving may take: last handlers, last messages, the socket."""

DEFAULT_MAX_PAYLOAD = 1 << 20
"""What a server allows that says nothing else; assumed until the first connection."""


class _Subscription:
    """Outlives connections; ``held`` is the one it is made on, with what ends it there."""

    def __init__(self, bus: NatsBus, pattern: str, queue: str, handlers: Handlers) -> None:
        self.pattern = pattern
        self.queue = queue
        self.handlers = handlers
        self.held: tuple[Connection, Callable[[], Awaitable[None]]] | None = None
        self._bus = bus

    def on(self, connection: Connection) -> bool:
        return self.held is not None and self.held[0] is connection

    async def make(self, connection: Connection) -> None:
        end = await connection.listen(self.pattern, self.queue, self.handlers.take)
        self.held = connection, end
        if not self._bus.holds(self):  # unsubscribed meanwhile
            await end()

    async def unsubscribe(self) -> None:
        self._bus.forget(self)
        if self.held is not None:
            _, end = self.held
            self.held = None
            await end()


class NatsBus:
    """A :class:`mesh.bus.Bus`. Entering returns at once, server or not; leaving is bounded in time.

    At most ``handler_limit`` handlers of one subscription run at once. Above that, messages wait: in the client, up to
    nats-py's limits, then they are dropped and logged. Nobody is answered for them: a request then meets its deadline.
    """

    def __init__(self, options: NatsOptions) -> None:
        if not options.urls:
            raise ConfigError("nats.url: no server is named")
        for url in options.urls:
            check_url(url)
        self._options = options
        self._inbox = options.inbox_prefix or f"_INBOX_{subjects.token(options.name)}"
        self._state = ConnectionState()
        self._connection: Connection | None = None
        self._max_payload = DEFAULT_MAX_PAYLOAD
        self._subscriptions: dict[_Subscription, None] = {}
        self._trouble = "not entered"
        self._leaving = False
        self._supervisor = Tasks("bus")
        self._handlers = Tasks("bus")

    async def __aenter__(self) -> NatsBus:
        self._leaving = False
        self._supervisor.start(self._supervise(), "supervisor")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving = True
        await self._supervisor.cancel()
        await _within(CLOSE_S, self._handlers.cancel(), "its handlers do not end")
        if self._connection is not None:
            with contextlib.suppress(BusUnavailable):  # lost just now, then there is nothing left to send
                await _within(CLOSE_S, self._connection.round_trip(), "its last messages may be lost")
        if self._connection is not None:
            await self._connection.shut(CLOSE_S)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def max_payload(self) -> int:
        return self._max_payload

    @property
    def trouble(self) -> str:
        """Why it is not connected, for people; empty while it is."""
        return self._trouble

    def on_state(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        return self._state.listen(listener)

    async def wait_connected(self, timeout_s: float) -> None:
        """Raises :class:`BusUnavailable` with the reason if there is no connection after ``timeout_s`` seconds."""
        try:
            await within(timeout_s, self._state.wait_connected())
        except asyncio.TimeoutError:
            raise BusUnavailable(f"the bus is not connected after {timeout_s:g} s: {self._trouble}") from None

    async def publish(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        connection, head, body = self._checked(subject, payload, headers)
        if reply:
            check_subject(reply)
        await connection.room()
        await connection.send(subject, reply, head, body)

    async def request(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> BusMessage:
        connection, head, body = self._checked(subject, payload, headers)
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time is left to ask {subject}")
        token, answer = connection.requests.open(subject, timeout_s)
        try:
            reply = connection.reply_subject(token)
            await connection.room(answer)
            if not answer.done():
                await connection.send(subject, reply, head, body)
            return await answer
        finally:
            connection.requests.close(token)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> _Subscription:
        """Made at the next connection if there is none now; ``flush`` after it to know that the server has it."""
        check_pattern(subject)
        if queue:
            check_subject(queue)
        handlers = Handlers(subject, handler, self._options.handler_limit, self._handlers)
        subscription = _Subscription(self, subject, queue, handlers)
        self._subscriptions[subscription] = None
        if self._connection is not None:
            await subscription.make(self._connection)
        return subscription

    def holds(self, subscription: _Subscription) -> bool:
        return subscription in self._subscriptions

    def forget(self, subscription: _Subscription) -> None:
        """Make it no more on later connections."""
        self._subscriptions.pop(subscription, None)

    async def flush(self) -> None:
        await self._live().round_trip()

    async def rtt_ms(self) -> float:
        """Milliseconds to the server and back. Raises :class:`BusUnavailable`."""
        return 1e3 * await self._live().round_trip()

    def _live(self) -> Connection:
        if self._connection is None:
            raise BusUnavailable("the bus is not connected")
        return self._connection

    def _checked(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None
    ) -> tuple[Connection, bytes, bytes]:
        connection = self._live()
        check_subject(subject)
        head = encode_headers(clean_headers(headers))
        body = flat(payload)
        check_size(len(head), len(body), self._max_payload)
        return connection, head, body

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        # A cancellation can get lost in nats-py and in wait_for (before Python 3.12), hence the flag beside it.
        while not self._leaving:
            connection, refused = await self._connect()
            if connection is not None:
                since = loop.time()
                await asyncio.wait((connection.lost,))
                await connection.shut(CLOSE_S)
                # A server that takes us and drops us at once must not be stormed: only a connection that held counts.
                failures = 0 if loop.time() - since > self._options.reconnect_max_s else failures
            if not self._leaving:
                await asyncio.sleep(self._pause(failures, refused=refused))
            failures += 1

    def _pause(self, failures: int, *, refused: bool) -> float:
        if refused:
            return random.uniform(0.5, 1.0) * self._options.refused_retry_s
        longest = self._options.reconnect_min_s * 2.0 ** min(failures, 30)
        return random.uniform(0.0, min(longest, self._options.reconnect_max_s))

    async def _connect(self) -> tuple[Connection | None, bool]:
        """Try each server once. Returns the connection, or None and whether every server refused us for good."""
        errors: list[MeshError] = []
        for url in random.sample(self._options.urls, len(self._options.urls)):
            tried = await self._dial(url)
            if isinstance(tried, Connection):
                return tried, False
            errors.append(tried)
            if self._leaving:
                return None, False
        refusals = sum(isinstance(error, ConfigError) for error in errors)
        trouble = "; ".join(sorted(error.text for error in errors))
        self._report(trouble, logging.ERROR if refusals else logging.WARNING)
        return None, refusals == len(errors)

    async def _dial(self, url: str) -> Connection | MeshError:
        connection = Connection(self._options, url, self._inbox)
        try:
            await connection.open()
            await within(self._options.connect_timeout_s, self._make_subscriptions(connection))
            self._take(connection)
            return connection
        except (ConfigError, BusUnavailable) as error:
            return error
        except asyncio.TimeoutError:
            return BusUnavailable(f"{connection.place}: no answer within {self._options.connect_timeout_s:g} s")
        except Exception as error:  # whatever a server makes nats-py raise, the bus must try again
            log.exception("connecting to the bus at %s failed", connection.place)
            return BusUnavailable(f"{connection.place}: {type(error).__name__}")
        finally:
            if self._connection is not connection:
                await connection.shut(CLOSE_S)

    async def _make_subscriptions(self, connection: Connection) -> None:
        """Connected means that the server answers and has every subscription, those made meanwhile included."""
        missing = list(self._subscriptions)
        while True:
            for subscription in missing:
                await subscription.make(connection)
            await connection.round_trip()
            missing = [s for s in self._subscriptions if not s.on(connection)]
            if not missing:
                return

    def _take(self, connection: Connection) -> None:
        def lost(reason: str) -> None:
            self._connection = None
            self._trouble = ""
            self._report(f"{connection.place} was lost: {reason}", logging.DEBUG if self._leaving else logging.WARNING)
            self._state.set(False)

        if self._leaving:
            raise BusUnavailable("leaving")
        if connection.lost.done():
            raise BusUnavailable(f"{connection.place} closed the connection: {connection.lost.result()}")
        connection.on_lost = lost
        self._connection = connection
        self._max_payload = connection.max_payload
        self._trouble = ""
        log.info("connected to the bus at %s", connection.place)
        self._state.set(True)

    def _report(self, trouble: str, level: int) -> None:
        """Say each state once; the same trouble again is only for debugging."""
        log.log(level if trouble != self._trouble else logging.DEBUG, "the bus is down: %s", trouble)
        self._trouble = trouble


async def _within(seconds: float, work: Awaitable[object], failing: str) -> None:
    try:
        await within(seconds, work)
    except asyncio.TimeoutError:
        log.warning("leaving the bus: %s after %g s", failing, seconds)
