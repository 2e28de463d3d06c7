"""One connection to a NATS server, from dialling to its first loss. With ``nats_reader`` all that imports nats-py.

nats-py's own reconnecting is off: it gives up for good on several errors, and delivers late what was published in
between. Its client is subclassed where it must be told from inside: ``_close`` (its callbacks come after a drain that
may raise or hang), ``_connect_command`` (the last moment before credentials leave), ``_send_ping`` (a PING must not
overtake what is pending). These are private names, hence the pin to one minor version; the tests with a fake server
fail if one of them goes. Not here: reconnecting and subscriptions that outlive a connection (``nats_bus``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nats import errors
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh.bus import BusMessage
from mesh.bus_core import HANDLER_LIMIT, Requests
from mesh.errors import BusUnavailable, ConfigError, Unavailable
from mesh.lifecycle import within
from mesh.nats_reader import Reader

log = logging.getLogger(__name__)

UNSUBSCRIBE_S = 2.0
"""Longest that messages under way are waited for when a subscription ends."""

HIGH_WATER = 4 << 20
"""Bytes waiting to be written above which senders wait for the server to catch up."""

_DENIED = re.compile(r'permissions violation for (publish|subscription)(?: with reply)? (?:to|of) "([^"]+)"', re.I)
_REFUSED = re.compile("authorization violation|authentication (expired|revoked)", re.I)


Take = Callable[[BusMessage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class NatsOptions:
    """Where the bus is, and who we are there. Times in seconds."""

    urls: tuple[str, ...]
    name: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    creds_file: Path | None = None
    """Read again at each connect, so that rotated credentials are taken up."""
    tls: ssl.SSLContext | None = None
    """Given, or with a ``tls://`` URL, a server without TLS is refused before any credentials are sent."""
    connect_timeout_s: float = 2.0
    ping_interval_s: float = 10.0
    """A peer that leaves two pings in a row unanswered is dead."""
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 5.0
    refused_retry_s: float = 30.0
    """Pause where every server refused us: credentials, TLS, version."""
    inbox_prefix: str | None = None
    """Prefix of reply subjects, which a server may keep for this client; None makes ``_INBOX_<name>``."""
    min_server: tuple[int, int] = (2, 14)
    """Older servers have authentication bypasses (DESIGN D18)."""
    handler_limit: int = HANDLER_LIMIT


def place(url: str) -> str:
    """The URL without credentials, for people."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def check_url(url: str) -> None:
    """Raises :class:`ConfigError` unless the URL names a server."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"nats", "tls"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"nats.url: {url.rpartition('@')[2]!r} is not nats://HOST[:PORT] or tls://HOST[:PORT]")


class Connection(Reader):
    """``lost`` is done as soon as nats-py starts to close, for whatever reason; ``requests`` have failed by then."""

    def __init__(self, options: NatsOptions, url: str, inbox: str) -> None:
        super().__init__()
        self.requests = Requests()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_lost: Callable[[str], None] = lambda _: None
        self.place = place(url)
        self.dropped = 0
        self._url = url
        self._wanted = options
        self._replies = f"{inbox}.{secrets.token_hex(8)}"
        self._inbox_denied = False
        self._trouble: Exception | None = None

    async def open(self) -> None:
        """Connect and listen for replies. Raises ``BusUnavailable``, or ``ConfigError`` when waiting will not help."""
        wanted = self._wanted
        credentials = None
        if wanted.creds_file is not None:
            credentials = await asyncio.to_thread(_read_credentials, wanted.creds_file)
        try:
            await self.connect(
                servers=[self._url],
                name=wanted.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # 0 would dial forever
                reconnect_time_wait=0,
                connect_timeout=wanted.connect_timeout_s,  # type: ignore[arg-type] # seconds, fractions are fine
                ping_interval=wanted.ping_interval_s,  # type: ignore[arg-type]
                max_outstanding_pings=2,
                tls=wanted.tls,
                user=wanted.user or None,
                password=wanted.password or None,
                token=wanted.token or None,
                user_credentials=credentials,
                pending_size=0,  # never hold a publish back inside nats-py, where a lost connection leaves it hanging
                error_cb=self._on_error,
            )
            await self.subscribe(f"{self._replies}.*", cb=self._on_reply)
        except ImportError:
            raise ConfigError("nats.creds_file: credentials need the package nkeys; install nats-py[nkeys]") from None
        except (OSError, errors.Error, asyncio.TimeoutError, ValueError) as error:
            raise self._explained(self._trouble or error) from error

    async def listen(self, pattern: str, queue: str, take: Take) -> Callable[[], Awaitable[None]]:
        """Subscribe; returns what ends it. Messages that wait for ``take`` are kept up to 128 MiB, then dropped."""

        async def on_message(msg: Msg) -> None:
            await take(BusMessage(msg.subject, msg.data, msg.headers or {}, msg.reply))

        try:
            subscription = await self.subscribe(pattern, queue=queue, cb=on_message)
        except errors.ConnectionClosedError:
            raise BusUnavailable("the bus was lost while subscribing") from None

        async def end() -> None:
            with contextlib.suppress(errors.ConnectionClosedError):  # a lost connection has ended it already
                if not self.lost.done():
                    await self._send_unsubscribe(subscription._id)
                    with contextlib.suppress(BusUnavailable, asyncio.TimeoutError):
                        await within(UNSUBSCRIBE_S, self._taken(subscription))
                await subscription.unsubscribe()

        return end

    async def _taken(self, subscription: Subscription) -> None:
        """Wait until what the server sent before it knew of the end was handed on: nobody else answers that."""
        await self.round_trip()
        await subscription._pending_queue.join()

    async def send(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """Hand one checked message to the writer. Raises ``BusUnavailable``.

        ``Client.publish`` does the same, but joins head, headers and payload anew at each step: for a tensor that
        costs more than the rest of the call.
        """
        if self.lost.done():
            raise BusUnavailable("the bus is not connected")
        size = len(headers) + len(payload)
        head = f"HPUB {subject} {reply} {len(headers)} {size}\r\n" if headers else f"PUB {subject} {reply} {size}\r\n"
        first = head.encode() + headers
        self._pending.extend((first, payload, b"\r\n"))
        self._pending_data_size += len(first) + len(payload) + 2
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def reply_subject(self, token: str) -> str:
        """Raises ``Unavailable`` if the server does not let us hear replies."""
        if self._inbox_denied:
            raise Unavailable("the bus does not let this client subscribe to its own replies")
        return f"{self._replies}.{token}"

    async def room(self, until: asyncio.Future[BusMessage] | None = None) -> None:
        """Wait while too much is waiting to be written, at most until the connection is lost or ``until`` is done."""
        while self._pending_data_size > HIGH_WATER and not self.lost.done() and not (until and until.done()):
            pong = await self._ping()
            await asyncio.wait([f for f in (pong, self.lost, until) if f], return_when=asyncio.FIRST_COMPLETED)

    async def round_trip(self) -> float:
        """Seconds until the server had seen everything sent before. Raises ``BusUnavailable`` if lost meanwhile."""
        start = time.monotonic()
        pong = await self._ping()
        await asyncio.wait((pong, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if not pong.done():
            raise BusUnavailable("the connection to the bus was lost")
        return time.monotonic() - start

    async def shut(self, timeout_s: float) -> None:
        """Close, whatever state it is in, within ``timeout_s``."""
        if self._flush_queue is None:
            return  # never dialled
        try:
            await within(timeout_s, self.close())
        except asyncio.TimeoutError:
            log.warning("%s: the connection did not close within %g s", self.place, timeout_s)

    async def _ping(self) -> asyncio.Future[bool]:
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._send_ping(pong)
        return pong  # never cancelled: nats-py's reader dies on a PONG for a cancelled future

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(b"PING\r\n")
        await self._flush_pending()

    def _connect_command(self) -> bytes:
        version = str(self._server_info.get("version", ""))
        numbers = re.match(r"(\d+)\.(\d+)\.", version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) < self._wanted.min_server:
            least = ".".join(map(str, self._wanted.min_server))
            raise ConfigError(f"{self.place} runs nats-server {version or 'unknown'}, at least {least} is required")
        secure = self._wanted.tls is not None or self._url.startswith("tls://")
        if secure and not self._server_info.get("tls_required"):
            raise ConfigError(f"{self.place} offers no TLS, and TLS was asked for")
        return super()._connect_command()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if not self.lost.done():
            reason = str(self._err or "closed").removeprefix("nats: ")
            self.lost.set_result(reason)
            self.requests.fail(lambda subject: BusUnavailable(f"the bus was lost before {subject} answered"))
            self.on_lost(reason)
            # Nothing unsent may go out later, and a dead peer must not make closing wait for its buffers.
            self._pending, self._pending_data_size = [], 0
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
        await super()._close(status, do_cbs)

    async def _on_reply(self, msg: Msg) -> None:
        token = msg.subject.rpartition(".")[2]
        self.requests.answer(token, BusMessage(msg.subject, msg.data, msg.headers or {}, msg.reply))

    async def _on_error(self, error: Exception) -> None:
        self._trouble = error
        if isinstance(error, errors.SlowConsumerError):
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th...: a flood must not flood the log
                log.error(
                    "%d messages dropped so far, the last on %s: its handlers are slow", self.dropped, error.subject
                )
        elif denied := _DENIED.search(str(error)):
            self._on_denied(denied[1].lower(), denied[2])
        else:
            log.debug("%s: %r", self.place, error)

    def _on_denied(self, action: str, subject: str) -> None:
        """The server denied us a subject, which it names; nats-py has made it lower case."""
        log.error("%s does not permit this client to %s on %s", self.place, action, subject)
        if subject.startswith(self._replies.lower()):
            self._inbox_denied = True
            self.requests.fail(lambda _: Unavailable("the bus does not let this client use its own reply subjects"))
        elif action == "publish":
            self.requests.fail(
                lambda asked: Unavailable(f"the bus does not permit this client to publish to {asked}"),
                only=lambda asked: asked.lower() == subject,
            )

    def _explained(self, error: Exception) -> ConfigError | BusUnavailable:
        text = str(error).removeprefix("nats: ").strip("'\" ")
        if isinstance(error, ssl.SSLError):
            return ConfigError(f"{self.place}: TLS failed: {error.reason or 'see the certificate and its authority'}")
        if isinstance(error, errors.Error) and _REFUSED.search(text):
            return ConfigError(
                f"{self.place} refused our credentials ({text}): set nats.user and nats.password, nats.token or "
                f"nats.creds_file to what the server expects"
            )
        if isinstance(error, asyncio.TimeoutError):
            text = f"no answer within {self._wanted.connect_timeout_s:g} s"
        return BusUnavailable(f"{self.place}: {text or type(error).__name__}")


def _read_credentials(path: Path) -> RawCredentials:
    """Raises :class:`ConfigError`; nats-py would search a file without the markers forever."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"nats.creds_file: cannot read {path}: {error.strerror}") from None
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
        raise ConfigError(f"nats.creds_file: {path} does not hold a NATS user JWT and its seed")
    return RawCredentials(text)
