"""The bus as the rest of the mesh sees it: publish, subscribe, request. Implemented by ``nats_bus`` and ``memory_bus``.

One contract suite (``tests/contract/test_bus.py``) runs on both. Not here: subjects (``subjects``), what the
payloads mean (``messages``, ``hop_bus``), durable streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Payload = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class BusMessage:
    """One message as received. ``reply`` is the subject to answer on, empty when nobody waits for an answer."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""


Handler = Callable[[BusMessage], Awaitable[None]]
"""Called once per message, each call in a task of its own: handlers of one subscription run concurrently."""


class Subscription(Protocol):
    async def unsubscribe(self) -> None:
        """Stop delivery; handlers already running go on."""


class Bus(Protocol):
    """A connection to the bus that survives whatever closes it.

    Subscriptions outlive reconnects. While disconnected, ``publish`` and ``request`` raise ``BusUnavailable`` at once,
    and every request pending at the moment of the disconnect fails with it (DESIGN D17).
    """

    @property
    def connected(self) -> bool: ...

    @property
    def max_payload(self) -> int:
        """Most bytes that headers and payload of one message may have together, as the server announced."""

    def on_state(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Call ``listener(connected)`` on each change; returns a function that removes it."""

    async def publish(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Send and forget. Raises ``BusUnavailable`` or ``PayloadTooLarge``."""

    async def request(
        self, subject: str, payload: Payload, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> BusMessage:
        """Send and wait for one reply.

        Raises ``NodeUnreachable`` at once when nobody subscribes to the subject, ``DeadlineExceeded`` after
        ``timeout_s`` seconds, ``BusUnavailable`` when the connection drops, ``PayloadTooLarge`` before sending,
        ``Unavailable`` when the server denies the publish.
        """

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription: ...

    async def flush(self) -> None:
        """Return once the server has seen everything sent before. Raises ``BusUnavailable``."""
