"""What both buses do alike: how subjects and headers must look, who waits for which reply, how handlers run.

Not here: any connection (``nats_connection``, ``memory_bus``), the meaning of subjects (``subjects``).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Mapping

from mesh.bus import BusMessage, Handler, Payload
from mesh.errors import BusUnavailable, DeadlineExceeded, InvalidRequest, MeshError, NodeUnreachable, PayloadTooLarge
from mesh.lifecycle import Tasks

log = logging.getLogger(__name__)

BUS_MARGIN = 8 * 1024
"""Room for the headers below the bus's ``max_payload``."""
HANDLER_LIMIT = 256
"""Handlers of one subscription that run at once."""

NO_RESPONDERS = "503"
"""Header ``Status`` of the empty message that a server answers when nobody subscribes to the subject (NATS ADR-4)."""

_SUBJECT = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*")
_PATTERN = re.compile(r"(?:(?:[^\s.*>]+|\*)\.)*(?:[^\s.*>]+|\*|>)")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEWLINES = str.maketrans("\r\n", "  ")


def check_subject(subject: str) -> None:
    """Raises :class:`InvalidRequest` unless ``subject`` can be published to: no wildcard, space or empty token."""
    if _SUBJECT.fullmatch(subject) is None:
        raise InvalidRequest(f"{subject!r} is not a subject")


def may_answer(reply: str) -> bool:
    """Whether an answer may go to ``reply``: a subject, and none of the mesh's or the server's own. It is chosen by
    whoever asks, who need not be allowed to publish all that this node is."""
    return _SUBJECT.fullmatch(reply) is not None and not reply.startswith(("mesh.", "$"))


def check_pattern(pattern: str) -> None:
    """Raises :class:`InvalidRequest` unless ``pattern`` can be subscribed to."""
    if _PATTERN.fullmatch(pattern) is None:
        raise InvalidRequest(f"{pattern!r} is not a subject pattern")


def clean_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers as they arrive: values trimmed, newlines become spaces. Raises :class:`InvalidRequest` for a bad name."""
    if not headers:
        return {}
    for name in headers:
        if _HEADER_NAME.fullmatch(name) is None:
            raise InvalidRequest(f"{name!r} is not a header name")
    return {name: value.translate(_NEWLINES).strip() for name, value in headers.items()}


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Clean headers in wire form (NATS ADR-4); nothing at all for none."""
    if not headers:
        return b""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode(errors="replace")


def flat(payload: Payload) -> bytes:
    """The payload as bytes that nobody changes while they wait to be sent; ``bytes`` are not copied."""
    return payload if type(payload) is bytes else bytes(payload)


def check_size(headers: int, payload: int, max_payload: int) -> None:
    """Raises :class:`PayloadTooLarge`: a server closes the connection of a client that sends more."""
    if headers + payload > max_payload:
        raise PayloadTooLarge(
            f"a message of {payload} bytes with {headers} bytes of headers is over the bus's limit of {max_payload}"
        )


class Requests:
    """Who waits for a reply on one connection. A reply nobody waits for any more is dropped."""

    def __init__(self) -> None:
        self._tokens = itertools.count()
        self._waiting: dict[str, tuple[str, asyncio.Future[BusMessage], asyncio.TimerHandle]] = {}

    def open(self, subject: str, timeout_s: float) -> tuple[str, asyncio.Future[BusMessage]]:
        """Start to wait; returns the last token of the reply subject and what will hold the reply or the error."""
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        future: asyncio.Future[BusMessage] = loop.create_future()
        timer = loop.call_later(timeout_s, self._expire, token, timeout_s)
        self._waiting[token] = subject, future, timer
        return token, future

    def close(self, token: str) -> None:
        """The caller of ``open`` leaves, with or without a reply."""
        entry = self._waiting.pop(token, None)
        if entry is None:
            return
        _, future, timer = entry
        timer.cancel()
        if not future.cancel() and not future.cancelled():
            future.exception()  # retrieved: the caller left with an error of its own

    def answer(self, token: str, reply: BusMessage) -> None:
        entry = self._waiting.get(token)
        if entry is None or entry[1].done():
            return
        subject, future, _ = entry
        if not reply.payload and reply.headers.get("Status") == NO_RESPONDERS:
            future.set_exception(NodeUnreachable(f"nobody answers on {subject}"))
        else:
            future.set_result(reply)

    def fail(self, error: Callable[[str], MeshError], only: Callable[[str], bool] = lambda _: True) -> int:
        """Fail the requests whose subject ``only`` accepts, each with an error of its own made from its subject."""
        failed = [(s, f) for s, f, _ in self._waiting.values() if not f.done() and only(s)]
        for subject, future in failed:
            future.set_exception(error(subject))
        return len(failed)

    def _expire(self, token: str, timeout_s: float) -> None:
        subject, future, _ = self._waiting[token]
        if not future.done():
            future.set_exception(DeadlineExceeded(f"no answer on {subject} within {timeout_s:.3g} s"))


class Handlers:
    """Runs the handler of one subscription, each message in a task of its own that ``tasks`` owns."""

    def __init__(self, subject: str, handler: Handler, limit: int, tasks: Tasks) -> None:
        self._handler = handler
        self._slots = asyncio.Semaphore(limit)
        self._tasks = tasks
        self._name = f"handler {subject}"

    async def take(self, message: BusMessage) -> None:
        """Start the handler; waits while ``limit`` of them run, and so holds back whoever delivers."""
        await self._slots.acquire()
        self._tasks.start(self._run(message), self._name)

    async def _run(self, message: BusMessage) -> None:
        try:
            await self._handler(message)
        except BusUnavailable:
            log.warning("the bus went away while a message on %s was handled", message.subject)
        except Exception:  # one message's failure must not end the subscription
            log.exception("a message on %s could not be handled", message.subject)
        finally:
            self._slots.release()


class ConnectionState:
    """Whether the bus is connected, and who wants to know."""

    def __init__(self) -> None:
        self.connected = False
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[bool], None]] = []

    def listen(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        self._listeners.append(listener)

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    def set(self, connected: bool) -> None:
        if connected == self.connected:
            return
        self.connected = connected
        (self._changed.set if connected else self._changed.clear)()
        for listener in tuple(self._listeners):
            _tell(listener, connected)

    async def wait_connected(self) -> None:
        await self._changed.wait()


def _tell(listener: Callable[[bool], None], connected: bool) -> None:
    try:
        listener(connected)
    except Exception:  # a listener's failure must not keep the others from knowing
        log.exception("a listener to the state of the bus failed")
