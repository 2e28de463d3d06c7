"""The server on real sockets and asyncio's own loop: what the drain waits for, slow readers, readers that do not read.

Not here: framing (``test_http_connection``), the door behind it (``tests/integration/test_http_wire``).
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from mesh import http_server
from mesh.http_answer import Answer
from mesh.http_connection import Request
from mesh.http_server import HttpServer
from tests.integration.doors import request
from tests.nats import soon

LIMIT = 1 << 20
GRACE_S = 30.0
ASK = request("GET", "/")
CLOSE = request("GET", "/", headers={"Connection": "close"})


async def big(_: Request) -> Answer:
    return Answer(200, b"", (b"x" * (16 << 20),))


async def gone(server: HttpServer) -> None:
    while server.connections:
        await asyncio.sleep(0.01)


async def read_all(sock: socket.socket) -> int:
    """Bytes until the end; raises if the connection is cut."""
    loop, total = asyncio.get_running_loop(), 0
    while got := await soon(loop.sock_recv(sock, 1 << 20)):
        total += len(got)
    return total


async def asking(server: HttpServer, sent: bytes) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    sock = socket.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, sent)
    await soon(loop.sock_recv(sock, 1))  # the answer has begun
    return sock


@pytest.mark.parametrize("sent", [ASK, CLOSE])
async def test_an_answer_on_its_way_is_not_cut_by_the_drain(sent: bytes) -> None:
    async with HttpServer(big, "127.0.0.1:0", max_body_bytes=LIMIT, grace_s=GRACE_S) as server:
        sock = await asking(server, sent)
        leaving = asyncio.ensure_future(server.__aexit__())
        await asyncio.sleep(0.2)
        with sock:
            assert await read_all(sock) > 16 << 20
        await leaving


async def test_a_slow_reader_gets_its_last_answer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("LINGER_S", "SWEEP_S"):
        monkeypatch.setattr(http_server, limit, 0.05)
    async with HttpServer(big, "127.0.0.1:0", max_body_bytes=LIMIT, grace_s=0) as server:
        sock = await asking(server, CLOSE)
        await asyncio.sleep(0.5)
        with sock:
            assert await read_all(sock) > 16 << 20


async def test_a_caller_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("STALL_S", "SWEEP_S"):
        monkeypatch.setattr(http_server, limit, 0.05)
    async with HttpServer(big, "127.0.0.1:0", max_body_bytes=LIMIT, grace_s=0) as server:
        with await asking(server, ASK):
            await soon(gone(server))


async def test_a_body_that_arrives_is_waited_for_by_the_drain() -> None:
    async def echo(asked: Request) -> Answer:
        return Answer(200, b"", (bytes(asked.body),))

    async with HttpServer(echo, "127.0.0.1:0", max_body_bytes=LIMIT, grace_s=GRACE_S) as server:
        sent = request("POST", "/", b"a" * 1000)
        sock = await asking(server, request("POST", "/", b"b") + sent[:-500])
        leaving = asyncio.ensure_future(server.__aexit__())
        await asyncio.sleep(0)
        with sock:
            await asyncio.get_running_loop().sock_sendall(sock, sent[-500:])
            assert await read_all(sock) > 1000
        await leaving
