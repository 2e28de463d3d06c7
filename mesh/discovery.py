"""Finding doors on the LAN by multicast DNS (DNS-SD, RFC 6763). The only importer of zeroconf.

What is found here is a hint and nothing more (DESIGN D4): anybody on the LAN can announce anything, and a node that
was killed stays listed for 19 to 75 minutes, because browsers keep its record until the TTL ends. Whether a door is
alive, and may be believed, is found out by asking it (``neighbours``). So everything from the network is checked and
bounded here, and nothing of it raises. Not here: trust, liveness, seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from zeroconf import Error, IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh.addresses import AddressWatch, default_interfaces
from mesh.announcement import Announcement, Found, ips_of, is_id, read, txt_of
from mesh.lifecycle import Tasks, within

__all__ = ["Announcement", "Discovery", "Found", "browse"]

log = logging.getLogger(__name__)

TYPE = "_infermesh._tcp.local."
MAX_PEERS = 256
MAX_ASKING = 32
ASK_MS = 3000
ASK_TIMES = 3
RETRY_S = 15.0
RETRY_MAX_S = 240.0
CLOSE_S = 3.0
MAX_NAMES = 8


class Discovery:
    """Announces and browses while entered; both begin in the background, entering does not wait for them.

    ``announce`` None only browses. ``on_found`` is called in the event loop for each new or changed announcement but
    our own, ``on_gone`` with the ``id`` when one was taken back. ``interfaces`` are IPv4 addresses to speak on; None is
    all that neighbours may be on, followed as addresses come and go: everything is then forgotten and found again.
    """

    def __init__(
        self,
        *,
        announce: Announcement | None,
        on_found: Callable[[Found], None],
        on_gone: Callable[[str], None],
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._announce = announce
        self._on_found = on_found
        self._on_gone = on_gone
        self._interfaces = interfaces
        self._tasks = Tasks("discovery")

    async def __aenter__(self) -> Discovery:
        self._tasks.start(self._run(), "run")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Take the announcement back, which lasts 0.3 s."""
        await self._tasks.cancel()

    async def _run(self) -> None:
        retry_s = RETRY_S
        with AddressWatch() as watch:
            while True:
                session = _Session(self._announce, self._on_found, self._on_gone)
                try:
                    async with session.on(self._interfaces or default_interfaces()):
                        retry_s = RETRY_S
                        await self._moved(watch)
                        log.info("the addresses of this host changed, looking for neighbours anew")
                except (OSError, Error) as error:
                    if retry_s == RETRY_S:
                        log.warning("multicast DNS does not work, only seeds and the bus find neighbours: %s", error)
                    with contextlib.suppress(asyncio.TimeoutError):
                        await within(retry_s, self._moved(watch))
                    retry_s = min(2 * retry_s, RETRY_MAX_S)
                session.forget()

    async def _moved(self, watch: AddressWatch) -> None:
        if self._interfaces is None:
            await watch.changed()
        else:
            await asyncio.Event().wait()


async def browse(
    timeout_s: float,
    mesh: str | None,
    until: Callable[[list[Found]], bool],
    *,
    interfaces: Sequence[str] | None = None,
) -> list[Found]:
    """Look once, for callers that stay no longer: what was found of ``mesh`` (None: of any) when ``until`` said enough.

    ``until`` is asked after each change; at the latest after ``timeout_s`` seconds the list is returned as it is.
    """
    found: dict[str, Found] = {}
    changed = asyncio.Event()

    def on_found(one: Found) -> None:
        if mesh is None or one.mesh == mesh:
            found[one.id] = one
            changed.set()

    def on_gone(id_: str) -> None:
        found.pop(id_, None)
        changed.set()

    async def enough() -> None:
        while not until(list(found.values())):
            await changed.wait()
            changed.clear()

    async with Discovery(announce=None, on_found=on_found, on_gone=on_gone, interfaces=interfaces):
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, enough())
        return list(found.values())


class _Session:
    """One zeroconf instance, on one set of interfaces."""

    def __init__(
        self, announce: Announcement | None, on_found: Callable[[Found], None], on_gone: Callable[[str], None]
    ) -> None:
        self._announce = announce
        self._label = announce.id if announce is not None else ""
        self._on_found = on_found
        self._on_gone = on_gone
        self._tasks = Tasks("discovery")
        self._found: dict[str, Found] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._full = False

    @contextlib.asynccontextmanager
    async def on(self, interfaces: Sequence[str]) -> AsyncIterator[None]:
        """Raises ``OSError`` or zeroconf's ``Error`` where multicast does not work."""
        if not interfaces:
            raise OSError(errno.ENETDOWN, "no network interface has an address")
        mdns = AsyncZeroconf(interfaces=list(interfaces))
        try:
            await _started(mdns.zeroconf)
            # Ends before zeroconf closes: a broadcast still under way must not follow the goodbye.
            async with self._tasks, AsyncServiceBrowser(mdns.zeroconf, TYPE, handlers=[self._on_change]):
                if self._announce is not None:
                    self._tasks.start(self._register(mdns, self._announce), "register")
                yield
        finally:
            with contextlib.suppress(asyncio.TimeoutError):
                # In a task of its own: zeroconf's close ends half done when a cancelled caller awaits it itself.
                await asyncio.wait_for(mdns.async_close(), CLOSE_S)

    def forget(self) -> None:
        for label in list(self._found):
            self._drop(label)

    async def _register(self, mdns: AsyncZeroconf, announce: Announcement) -> None:
        """Probe and announce, about 1.7 s; on a conflict under another name, as often as that helps."""
        for _ in range(MAX_NAMES):
            taken = self._label
            try:
                # The inner awaitable is the broadcast of the announcements; cancelling this cancels it.
                await (await mdns.async_register_service(_service(announce, taken)))
            except NonUniqueNameException:
                self._label = f"{announce.id}-{secrets.token_hex(2)}"
                log.warning(
                    "node id %s is announced by another node (a cloned disk?); announced as %s", taken, self._label
                )
                self._resolve(mdns.zeroconf, taken)
            else:
                log.debug("announced as %s", taken)
                return
        log.warning("this node is not announced: every name it tried is taken")

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        label = name.removesuffix(f".{service_type}")
        if label == self._label or not is_id(label):
            return
        if state_change is ServiceStateChange.Removed:
            self._drop(label)
        else:
            self._resolve(zeroconf, label)

    def _resolve(self, zeroconf: Zeroconf, label: str) -> None:
        """From the cache where it can be: nodes send all their records at once, no flood of bare names delays them."""
        info = AsyncServiceInfo(TYPE, f"{label}.{TYPE}")
        if info.load_from_cache(zeroconf):
            self._take(label, info)
        elif label not in self._asking and len(self._asking) < MAX_ASKING:
            task = self._tasks.start(self._ask(zeroconf, label, info), f"ask for {label}")
            self._asking[label] = task
            task.add_done_callback(lambda _: self._asking.pop(label, None))

    async def _ask(self, zeroconf: Zeroconf, label: str, info: AsyncServiceInfo) -> None:
        for _ in range(ASK_TIMES):  # Wi-Fi loses multicast frames
            if await info.async_request(zeroconf, ASK_MS):
                self._take(label, info)
                return

    def _take(self, label: str, info: AsyncServiceInfo) -> None:
        found = read(label, info.properties, info.port or 0, info.parsed_addresses(IPVersion.All))
        if found is None:
            log.debug("ignored the announcement %s: it is not well-formed", label)
            self._drop(label)
        elif label not in self._found and len(self._found) >= MAX_PEERS:
            if not self._full:
                log.warning("more than %d nodes are announced, the others are ignored", MAX_PEERS)
            self._full = True
        elif self._found.get(label) != found:
            self._found[label] = found
            self._on_found(found)

    def _drop(self, label: str) -> None:
        task = self._asking.get(label)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if self._found.pop(label, None) is not None:
            self._on_gone(label)


async def _started(zeroconf: Zeroconf) -> None:
    """In a task of its own: the last zeroconf for Python 3.10 takes a cancellation for a start that failed.

    Raises zeroconf's ``Error``.
    """
    starting = asyncio.create_task(zeroconf.async_wait_for_start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        raise


def _service(announce: Announcement, label: str) -> AsyncServiceInfo:
    """The host name is the node's own too: of two services on one host name each resolves to both hosts' addresses."""
    return AsyncServiceInfo(
        TYPE,
        f"{label}.{TYPE}",
        port=announce.http,
        properties=txt_of(announce),
        server=f"{label}.local.",
        parsed_addresses=ips_of(announce),
    )
