"""A fake nats-server: just enough of the protocol to fail on purpose in ways that a real one does only by chance.

It greets, takes CONNECT, SUB, PUB and HPUB, answers PING, delivers nothing. Everything that a real server can be made
to do is tested on a real server (``nats``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

from tests.nats import soon


class FakeNats:
    def __init__(self) -> None:
        self.version = "2.15.1"
        self.refuse = ""
        """Error that answers CONNECT."""
        self.deny: set[str] = set()
        """Subjects that nobody may publish to."""
        self.greeted = 0
        """Connections accepted."""
        self.connects: list[dict[str, object]] = []
        """What each CONNECT said."""
        self.verbs: list[str] = []
        """Every command in the order in which it came."""
        self.subscribed: list[str] = []
        self.published: list[str] = []
        self._changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Event()
        self._reading.set()

    async def __aenter__(self) -> FakeNats:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await self._server.wait_closed()

    async def until(self, condition: Callable[[FakeNats], bool]) -> None:
        """Wait until something the clients did makes ``condition`` true."""
        async with self._changed:
            await soon(self._changed.wait_for(lambda: condition(self)))

    def freeze(self) -> None:
        """Neither read nor answer any more, like a peer whose machine lost power."""
        self._reading.clear()

    def thaw(self) -> None:
        self._reading.set()

    async def error(self, text: str) -> None:
        """Send ``-ERR`` to everybody and close, as a real server does unless it is about permissions."""
        for writer in tuple(self._writers):
            await _send(writer, f"-ERR '{text}'\r\n")
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.create_task(self._serve(reader, writer))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            self.greeted += 1
            info = {"server_id": "FAKE", "version": self.version, "headers": True, "max_payload": 1 << 20}
            await _send(writer, f"INFO {json.dumps(info)}\r\n")
            while line := await reader.readline():
                await self._reading.wait()
                await self._command(line.decode().split(), reader, writer)
                async with self._changed:
                    self._changed.notify_all()
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _command(self, words: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.verbs.append(words[0])
        match words[0]:
            case "CONNECT":
                self.connects.append(json.loads(" ".join(words[1:])))
                if self.refuse:
                    await _send(writer, f"-ERR '{self.refuse}'\r\n")
                    writer.close()
            case "PING":
                await _send(writer, "PONG\r\n")
            case "SUB":
                self.subscribed.append(words[1])
            case "PUB" | "HPUB":
                await reader.readexactly(int(words[-1]) + 2)
                self.published.append(words[1])
                if words[1] in self.deny:
                    await _send(writer, f"-ERR 'Permissions Violation for Publish to \"{words[1]}\"'\r\n")


async def _send(writer: asyncio.StreamWriter, text: str) -> None:
    with contextlib.suppress(OSError):  # the client may have left
        writer.write(text.encode())
        await writer.drain()
