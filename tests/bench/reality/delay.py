"""A TCP proxy that delays every byte by a fixed time and does not limit how many pass.

It stands in for the length of a WAN where the kernel has no netem; the bandwidth is the link's behind it. What has
waited is written at once; while the far side takes no more, no more is read from the near side, so that a sender feels
the link. A caller that closes has given up: what of its request has not yet gone out is thrown away, after the delay.
What the server said before it closed is delivered. Run as ``python -m tests.bench.reality.delay --ms MS
LISTEN=TARGET...``; prints a line when it listens. Not here: the link.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import struct
from collections import deque
from typing import cast

import uvloop

SEND_BUFFER = 128 * 1024
"""Bytes of a connection that the kernel may hold on their way out: less than the delay's worth, for what is given up
should not be sent."""
HELD = 64 * 1024
"""Bytes over their time that are kept before reading stops."""
NO_LINGER = struct.pack("ii", 1, 0)


class _Side(asyncio.Protocol):
    """One of the two connections of a way: what it receives leaves by ``other`` after the delay."""

    def __init__(self, delay_s: float) -> None:
        self.other: _Side
        self.calls = True
        """Whether it is the caller's."""
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._delay_s = delay_s
        self._line: deque[tuple[float, bytes | None]] = deque()
        """What was received, with the moment it is due; None is the end."""
        self._timer: asyncio.TimerHandle | None = None
        self._held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        wire = self.transport.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.transport.set_write_buffer_limits(HELD)
        if self._held:
            self.transport.pause_reading()
        self.other.deliver()

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._take(None)

    def _take(self, data: bytes | None) -> None:
        self._line.append((self._loop.time() + self._delay_s, data))
        if self._timer is None:
            self._timer = self._loop.call_later(self._delay_s, self.deliver)

    def deliver(self) -> None:
        """Send on what is due, once the other side stands."""
        out, now = self.other.transport, self._loop.time()
        if out is None:
            return
        while self._line and self._line[0][0] <= now:
            data = self._line.popleft()[1]
            if data is None:
                self._ends(out)
            elif not out.is_closing():
                out.write(data)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._line[0][0], self.deliver) if self._line else None

    def _ends(self, out: asyncio.Transport) -> None:
        if not self.calls:
            out.close()
        elif not out.is_closing():
            out.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            out.abort()

    def pause_writing(self) -> None:
        self.other.hold(on=True)

    def resume_writing(self) -> None:
        self.other.hold(on=False)

    def hold(self, *, on: bool) -> None:
        """Read no more for a while."""
        self._held = on
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.pause_reading if on else self.transport.resume_reading)()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.transport is not None:
            self.transport.abort()


class DelayProxy:
    """Listens while it is entered; ``address`` is where."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], delay_ms: float) -> None:
        self.address = listen
        self._target = target
        self._delay_s = delay_ms / 1e3
        self._sides: set[_Side] = set()
        self._dialling: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> DelayProxy:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, *self.address)
        host, port, *_ = self._server.sockets[0].getsockname()
        self.address = host, port
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        for side in self._sides:
            side.close()
        await asyncio.sleep(0)

    def _accept(self) -> _Side:
        near, far = _Side(self._delay_s), _Side(self._delay_s)
        near.other, far.other, far.calls = far, near, False
        self._sides = {side for side in self._sides if side.transport is None or not side.transport.is_closing()}
        self._sides |= {near, far}
        task = asyncio.get_running_loop().create_task(self._dial(near, far))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return near

    async def _dial(self, near: _Side, far: _Side) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, *self._target)
        except OSError:
            near.close()  # as a refused connection, as near as a proxy comes to that


async def _serve(delay_ms: float, ways: list[str]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        for way in ways:
            listen, _, target = way.partition("=")
            proxy = await stack.enter_async_context(DelayProxy(_parsed(listen), _parsed(target), delay_ms))
        print(f"ready http://{proxy.address[0]}:{proxy.address[1]}", flush=True)
        await stop.wait()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ms", type=float, required=True, help="delay of each byte, one way")
    parser.add_argument("ways", nargs="+", help="LISTEN=TARGET, each HOST:PORT")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.ms, arguments.ways))


if __name__ == "__main__":
    main()
