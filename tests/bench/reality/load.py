"""An open-loop generator: requests leave at given moments, whatever became of those before, on keep-alive connections.

A latency counts from the moment a request was due, so a late generator makes nobody look better, and how late it was
is told. Each reply is judged: status, bytes of the answer. Run as ``python -m tests.bench.reality.load PLAN``; the plan
and what comes out on stdout are the JSON documents of :class:`Plan` and :class:`Outcome`. Not here: when arrivals are
(``tests.bench.offload.environment``), what a good answer is worth (``run``).
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import time
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from tests.bench.reality.models import Model

GRACE_S = 3.0
"""How long after its deadline a reply is waited for."""
SPIN_S = 0.002
"""A timer's resolution."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_JSON = re.compile(rb"\r\ninference-header-content-length:[ \t]*(\d+)", re.IGNORECASE)
_ROUTE = re.compile(rb"\r\nmesh-route:[ \t]*(\w+)", re.IGNORECASE)
_NODE = re.compile(rb"\r\nmesh-node:[ \t]*([\w.-]+)", re.IGNORECASE)


class Arrival(msgspec.Struct, array_like=True):
    """A request: its number, when it is due after the start, at which door, for which of the models."""

    id: int
    at_s: float
    door: int
    model: int


class Asked(msgspec.Struct):
    """A model as it is asked for: the caller allows ``timeout_ms``."""

    name: str
    width: int
    answers: int
    timeout_ms: float


class Plan(msgspec.Struct):
    """``start`` is a moment of the monotonic clock, ``doors`` are HOST:PORT."""

    start: float
    doors: list[str]
    models: list[Asked]
    arrivals: list[Arrival]


class Outcome(msgspec.Struct, array_like=True):
    """What became of a request. ``status`` is 0 where no whole reply came, ``wrong`` an answer with other bytes."""

    id: int
    status: int
    latency_ms: float
    lag_ms: float
    """How late it left."""
    route: str = ""
    node: str = ""
    wrong: bool = False


class _Connection(asyncio.Protocol):
    """One exchange after the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.open = False
        self._buffer = bytearray()
        self._need = 0
        self._reply: asyncio.Future[tuple[bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast("asyncio.Transport", transport), True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(exc or ConnectionResetError("closed before the reply was whole"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if not self._need and end >= 0:
            length = _LENGTH.search(self._buffer, 0, end)
            self._need = end + 4 + int(length[1] if length else 0)
        if self._need and len(self._buffer) >= self._need and self._reply is not None and not self._reply.done():
            whole = bytes(self._buffer)
            self._reply.set_result((whole[:end] + b"\r\n", whole[end + 4 :]))

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the reply; raises ``OSError`` where the connection ends before."""
        self._buffer.clear()
        self._need = 0
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._reply


class Door:
    """The connections to one door: as many as there are requests under way."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._free: list[_Connection] = []

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        while self._free:
            connection = self._free.pop()
            if connection.open:
                break
        else:
            connection = await self._connect()
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.transport.abort()
            raise
        self._free.append(connection)
        return answer

    async def connects(self, count: int) -> None:
        """Have so many connections ready."""
        self._free += await asyncio.gather(*(self._connect() for _ in range(count)))

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        for connection in self._free:
            connection.transport.abort()


class Generator:
    """Plays a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._models = [Model(m.name, m.width, m.answers) for m in plan.models]
        self._doors = [Door(address) for address in plan.doors]
        self._requests = [
            [model.request(address, asked.timeout_ms) for model, asked in zip(self._models, plan.models, strict=True)]
            for address in plan.doors
        ]
        self.outcomes: list[Outcome] = []

    async def play(self, connections: int = 8) -> list[Outcome]:
        """One outcome for each arrival, in any order."""
        await asyncio.gather(*(door.connects(connections) for door in self._doors))
        tasks: set[asyncio.Task[None]] = set()
        try:
            for arrival in self._plan.arrivals:
                due = self._plan.start + arrival.at_s
                while (left := due - time.monotonic()) > 0.0:
                    await asyncio.sleep(left if left < SPIN_S else left - SPIN_S / 2)
                task = asyncio.get_running_loop().create_task(self._one(arrival, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            for door in self._doors:
                door.close()
        return self.outcomes

    async def _one(self, arrival: Arrival, due: float) -> None:
        asked = self._plan.models[arrival.model]
        lag_ms = (time.monotonic() - due) * 1e3
        request = self._requests[arrival.door][arrival.model]
        left_s = asked.timeout_ms / 1e3 + GRACE_S
        try:
            head, body = await asyncio.wait_for(self._doors[arrival.door].ask(request), left_s)
        except (OSError, asyncio.TimeoutError):
            self.outcomes.append(Outcome(arrival.id, 0, (time.monotonic() - due) * 1e3, lag_ms))
            return
        latency_ms = (time.monotonic() - due) * 1e3
        self.outcomes.append(judged(arrival.id, head, body, self._models[arrival.model].answer, latency_ms, lag_ms))


def judged(number: int, head: bytes, body: bytes, right: bytes, latency_ms: float, lag_ms: float) -> Outcome:
    """What a whole reply says."""
    status = int(head.split(b" ", 2)[1])
    route, node, length = _ROUTE.search(head), _NODE.search(head), _JSON.search(head)
    wrong = status == 200 and (length is None or body[int(length[1]) :] != right)
    return Outcome(
        number, status, latency_ms, lag_ms, route[1].decode() if route else "", node[1].decode() if node else "", wrong
    )


def main() -> None:
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    gc.disable()
    outcomes = uvloop.run(Generator(plan).play())
    sys.stdout.buffer.write(msgspec.json.encode(outcomes))


if __name__ == "__main__":
    main()
