"""The parts of the bench on real processes: the delaying proxy, the open-loop generator, the shaped wires."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.bench.reality.delay import DelayProxy
from tests.bench.reality.load import Arrival, Asked, Generator, Outcome, Plan
from tests.bench.reality.models import Model
from tests.bench.reality.run import figures
from tests.bench.reality.scenarios import CASES
from tests.bench.reality.testbed import Denied, laid
from tests.netns import requires_netns

HERE = "127.0.0.1"
PATIENCE_S = 60.0
DELAY_MS = 80.0
MODEL = Model("detect", 8, 2)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[int]:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(closing, HERE, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def delayed(handle: Handler) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through a proxy to a server that handles it."""
    async with serving(handle) as port, DelayProxy((HERE, 0), (HERE, port), DELAY_MS) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        try:
            yield reader, writer
        finally:
            writer.close()


async def soon(work: Awaitable[bytes]) -> bytes:
    return await asyncio.wait_for(work, PATIENCE_S)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def test_every_byte_is_delayed_both_ways_and_all_arrive_in_order() -> None:
    sent = bytes(range(256)) * 40_000
    async with delayed(echo) as (reader, writer):
        began = time.monotonic()
        writer.write(sent)
        first = await soon(reader.readexactly(1))
        assert time.monotonic() - began >= 2 * DELAY_MS / 1e3
        assert first + await soon(reader.readexactly(len(sent) - 1)) == sent
        assert time.monotonic() - began >= 2 * DELAY_MS / 1e3


async def test_bytes_that_follow_do_not_wait_for_each_other() -> None:
    """Bytes sent half a delay apart are under way side by side."""
    arrived: list[float] = []
    done = asyncio.Event()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(4):
            await reader.readexactly(1)
            arrived.append(time.monotonic())
        done.set()

    async with delayed(note) as (_, writer):
        left: list[float] = []
        for _ in range(4):
            left.append(time.monotonic())
            writer.write(b"x")
            await asyncio.sleep(DELAY_MS / 2e3)
        await asyncio.wait_for(done.wait(), PATIENCE_S)
    assert all(there - here >= DELAY_MS / 1e3 for here, there in zip(left, arrived, strict=True))


async def test_what_a_server_says_before_it_closes_is_delivered() -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words" * 1000)

    async with delayed(say) as (reader, _):
        assert await soon(reader.read(-1)) == b"last words" * 1000


async def test_a_caller_that_closes_ends_the_way() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
        finally:
            gone.set()

    async with delayed(wait) as (_, writer):
        await asyncio.sleep(0)
        writer.close()
        await asyncio.wait_for(gone.wait(), PATIENCE_S)


async def test_a_refused_connection_is_closed() -> None:
    async with serving(echo) as port:
        pass
    async with DelayProxy((HERE, 0), (HERE, port), 1.0) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        with contextlib.suppress(ConnectionError):
            assert await soon(reader.read(1)) == b""
        writer.close()


def answering(hold_s: float, count: list[int], body: bytes = MODEL.answer) -> Handler:
    """A door that takes its time for each request of its own, and counts how many are under way."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            count[0] += 1
            count[1] = max(count)
            await asyncio.sleep(hold_s)
            count[0] -= 1
            said = b"HTTP/1.1 200 OK\r\nMesh-Route: peer\r\nMesh-Node: n7\r\nInference-Header-Content-Length: 2\r\n"
            writer.write(said + b"Content-Length: %d\r\n\r\n{}" % (2 + len(body)) + body)

    return handle


async def play(port: int, moments: list[float], timeout_ms: float = 10_000.0) -> list[Outcome]:
    asked = Asked(MODEL.name, MODEL.width, MODEL.answers, timeout_ms)
    arrivals = [Arrival(number, at_s, 0, 0) for number, at_s in enumerate(moments)]
    plan = Plan(time.monotonic() + 0.2, [f"{HERE}:{port}"], [asked], arrivals)
    return await asyncio.wait_for(Generator(plan).play(), PATIENCE_S)


async def test_requests_leave_when_they_are_due_whatever_became_of_those_before() -> None:
    count = [0, 0]
    async with serving(answering(1.0, count)) as port:
        outcomes = await play(port, [n / 100 for n in range(20)])
    assert count[1] == 20
    assert sorted(outcome.id for outcome in outcomes) == list(range(20))
    assert {(o.status, o.route, o.node, o.wrong) for o in outcomes} == {(200, "peer", "n7", False)}
    assert all(outcome.latency_ms >= 1000.0 + outcome.lag_ms for outcome in outcomes)


async def test_a_wrong_answer_and_a_lost_connection_are_told() -> None:
    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with serving(answering(0.0, [0, 0], b"\0" * len(MODEL.answer))) as port:
        (wrong,) = await play(port, [0.0])
    async with serving(hang_up) as port:
        (lost,) = await play(port, [0.0])
    assert (wrong.status, wrong.wrong) == (200, True)
    assert lost.status == 0


def test_every_arrival_counts() -> None:
    world = CASES["poisson"].lasting(2.0).environment(1)
    count, slo_ms = len(world.requests), [model.slo_ms for model in world.scenario.models]
    fine = [Outcome(r.id, 200, 10.0, 0.0, "local") for r in world.requests]
    bad = [
        Outcome(0, 200, slo_ms[world.requests[0].model] + 1.0, 0.0, "peer"),
        Outcome(1, 503, 1.0, 0.0),
        Outcome(2, 200, 1.0, 0.0, "peer", wrong=True),
        Outcome(3, 0, 1.0, 0.0),
    ]
    found = figures(world, bad + fine[4:], 1.5)
    assert found.attainment == pytest.approx(100.0 * (count - 4) / count)
    assert found.routes == {"local": pytest.approx(100.0 * (count - 4) / count), "peer": 0.0, "cloud": 0.0}
    assert found.p50_ms == 10.0
    assert found.p99_ms == float("inf")


SENDER = """
import socket, sys
s = socket.create_connection((sys.argv[1], 9))
s.sendall(bytes(500_000))
s.shutdown(1)
s.recv(1)
"""
TAKER = """
import socket, time
s = socket.create_server(("", 9))
print("up", flush=True)
c, _ = s.accept()
began, n = time.monotonic(), 0
while d := c.recv(65536):
    n += len(d)
print(n, time.monotonic() - began)
"""


@requires_netns
def test_a_wire_carries_no_more_than_its_rate_and_counts_what_it_carried() -> None:
    try:
        with laid([1, 1], up_mbit=8.0, down_mbit=80.0) as bed:
            before = bed.wan_bytes()
            edge, cloud = bed.nodes
            with subprocess.Popen(
                cloud.command(sys.executable, "-c", TAKER), stdout=subprocess.PIPE, text=True
            ) as taker:
                assert taker.stdout is not None
                taker.stdout.readline()
                sender = bed.borders[0].command(sys.executable, "-c", SENDER, cloud.address)
                subprocess.run(sender, check=True, timeout=PATIENCE_S)
                count, seconds = taker.stdout.readline().split()
            assert int(count) == 500_000
            assert float(seconds) > 0.9 * (500_000 - 64_000) / 1e6
            assert bed.wan_bytes() - before > 500_000
            names = {space.name for space in [*bed.nodes, *bed.borders]}
            assert edge.name in names
    except Denied as error:
        pytest.skip(str(error))
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not names.intersection(left.split())
