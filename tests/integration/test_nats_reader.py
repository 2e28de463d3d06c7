"""What others publish on a real nats-server, byte for byte, and nats-py as it comes cannot read: it must end no bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.bus import BusMessage
from mesh.bus_core import check_subject
from mesh.errors import InvalidRequest
from mesh.nats_bus import NatsBus
from mesh.nats_server import NatsServer
from tests.nats import Heard, connected_bus, soon


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    async with connected_bus(server) as bus:
        yield bus


async def published(server: NatsServer, line: bytes) -> None:
    """What a client sends that is not ours; returns when the server has taken it."""
    reader, writer = await soon(asyncio.open_connection(server.host, server.port))
    try:
        assert (await soon(reader.readline())).startswith(b"INFO ")
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + line + b"\r\nPING\r\n")
        assert await soon(reader.readline()) == b"PONG\r\n"
    finally:
        writer.close()
        await writer.wait_closed()


def with_headers(headers: bytes) -> bytes:
    return b"HPUB news.a %d %d\r\n" % (len(headers), len(headers) + 1) + headers + b"!"


async def heard_after(server: NatsServer, bus: NatsBus, line: bytes) -> Heard:
    """Everything up to a message that is sent when the server had ``line``; the bus was connected all the time."""
    heard, states = Heard(), list[bool]()
    await bus.subscribe("news.>", heard)
    await bus.flush()
    remove = bus.on_state(states.append)
    await published(server, line)
    await bus.publish("news.last", b"last")
    while (await heard.next()).payload != b"last":
        pass
    assert states == []
    remove()
    return heard


@pytest.mark.parametrize("subject", ["news.a\x0bb", "news.a\x0cb", "news.\x0b", "news.a\x1cb", "news.a\xa0b", "news.ü"])
async def test_odd_subjects_are_read(server: NatsServer, bus: NatsBus, subject: str) -> None:
    heard = await heard_after(server, bus, b"PUB %s 1\r\n!" % subject.encode())
    assert heard.messages[0].subject == subject
    assert heard.payloads == [b"!", b"last"]


async def test_odd_replies_are_read_and_never_answered(server: NatsServer, bus: NatsBus) -> None:
    heard = await heard_after(server, bus, b"PUB news.a re\x0bply 1\r\n!")
    assert heard.messages[0].reply == "re\x0bply"
    with pytest.raises(InvalidRequest):
        check_subject(heard.messages[0].reply)


@pytest.mark.parametrize(
    "line",
    [
        b"PUB news.\xff 1\r\n!",
        b"PUB news.a reply.\xff 1\r\n!",
        with_headers(b"NATS/1.0\r\n"),
        with_headers(b"NATS/1.0"),
        with_headers(b"N"),
        with_headers(b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
        with_headers(b"NATS/1.0 503 \xff\r\n\r\n"),
    ],
)
async def test_what_cannot_be_read_is_dropped_or_delivered_and_the_rest_goes_on(
    server: NatsServer, bus: NatsBus, line: bytes
) -> None:
    heard = await heard_after(server, bus, line)
    assert heard.payloads in ([b"last"], [b"!", b"last"])


@pytest.mark.parametrize("headers", [b"\xff\xfe: \xff", b"no colon", b": empty", b"a:b\r\nc", b"NATS/2.0 x: y"])
async def test_odd_headers_cost_no_message(server: NatsServer, bus: NatsBus, headers: bytes) -> None:
    heard = await heard_after(server, bus, with_headers(b"NATS/1.0\r\n" + headers + b"\r\n\r\n"))
    assert heard.payloads == [b"!", b"last"]


async def test_replies_that_cannot_be_read_leave_the_others_alone(server: NatsServer, bus: NatsBus) -> None:
    """They arrive on the subscription of all replies."""

    async def answer(message: BusMessage) -> None:
        await published(server, b"HPUB %s 10 11\r\nNATS/1.0\r\n!" % message.reply.encode())
        await bus.publish(message.reply, b"readable")

    await bus.subscribe("asked", answer)
    await bus.flush()
    reply = await bus.request("asked", b"", timeout_s=60)
    assert reply.payload in (b"!", b"readable")
    assert (await bus.request("asked", b"", timeout_s=60)).payload in (b"!", b"readable")
