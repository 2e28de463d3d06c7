"""The bus comes back whatever closes a connection, and says by name what will not pass by waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh.bus import BusMessage
from mesh.errors import BusUnavailable, ConfigError, Unavailable
from mesh.nats_bus import NatsBus, NatsOptions
from mesh.nats_server import NatsServer
from tests.fake_nats import FakeNats
from tests.nats import PATIENCE_S, Heard, connected_bus, soon, until_state

FAR = 10 * PATIENCE_S
"""A timeout that must not be what ends a wait."""


@pytest.fixture
async def fake() -> AsyncIterator[FakeNats]:
    async with FakeNats() as fake:
        yield fake


def bus_to(fake: FakeNats, **options: Any) -> NatsBus:
    return NatsBus(NatsOptions((fake.url,), "edge.1", **{"refused_retry_s": 0.02} | options))


async def until_trouble(bus: NatsBus, text: str) -> None:
    async def poll() -> None:
        while text not in bus.trouble:
            await asyncio.sleep(0.01)

    await soon(poll())


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "error",
    ["User Authentication Expired", "Authorization Violation", "maximum connections exceeded", "Slow Consumer"],
)
async def test_an_error_that_closes_nats_py_for_good_only_interrupts_the_bus(fake: FakeNats, error: str) -> None:
    async with bus_to(fake) as bus:
        await bus.subscribe("mesh.news", Heard())
        await bus.wait_connected(PATIENCE_S)
        asking = asyncio.create_task(bus.request("mesh.slow", b"", timeout_s=FAR))
        await fake.until(lambda f: "mesh.slow" in f.published)
        await fake.error(error)
        with pytest.raises(BusUnavailable):
            await soon(asking)
        await fake.until(lambda f: f.subscribed.count("mesh.news") == 2)
        await until_state(bus, connected=True)
        await bus.flush()


async def test_a_refusal_is_said_once_and_asked_again_until_it_ends(
    fake: FakeNats, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuse = "Authorization Violation"
    async with bus_to(fake, user="u", password="secret-word") as bus:
        await fake.until(lambda f: len(f.connects) >= 4)
        (said,) = errors_in(caplog)
        assert fake.url in said
        assert "nats.password" in said
        assert not bus.connected
        with pytest.raises(BusUnavailable):
            await bus.publish("x", b"")
        fake.refuse = ""
        await bus.wait_connected(PATIENCE_S)
    assert len(errors_in(caplog)) == 1
    assert "secret-word" not in caplog.text


@pytest.mark.parametrize("version", ["2.13.9", "1.4.1", "2", ""])
async def test_a_server_with_known_bypasses_never_sees_our_credentials(fake: FakeNats, version: str) -> None:
    fake.version = version
    async with bus_to(fake, token="t") as bus:
        await until_trouble(bus, "at least 2.14 is required")
        assert not bus.connected
        assert not fake.connects
        fake.version = "2.14.0"
        await bus.wait_connected(PATIENCE_S)
    assert [said["auth_token"] for said in fake.connects] == ["t"]


async def test_a_server_without_tls_never_sees_our_credentials_when_tls_was_asked_for(fake: FakeNats) -> None:
    options = NatsOptions((fake.url.replace("nats://", "tls://"),), "n", token="t", refused_retry_s=0.02)
    async with NatsBus(options) as bus:
        await until_trouble(bus, "offers no TLS")
    assert not fake.connects


async def test_a_denied_publish_fails_the_request_that_made_it_and_no_other(fake: FakeNats) -> None:
    fake.deny.add("mesh.v1.Secret.node")
    async with bus_to(fake) as bus:
        await bus.wait_connected(PATIENCE_S)
        other = asyncio.create_task(bus.request("mesh.v1.open", b"", timeout_s=FAR))
        with pytest.raises(Unavailable, match=r"mesh\.v1\.Secret\.node"):
            await soon(bus.request("mesh.v1.Secret.node", b"", timeout_s=FAR))
        await bus.flush()
        assert bus.connected
        assert not other.done()
        other.cancel()


async def test_a_flush_does_not_overtake_what_was_sent_before(fake: FakeNats) -> None:
    async with bus_to(fake) as bus:
        await bus.wait_connected(PATIENCE_S)
        fake.verbs.clear()
        await bus.publish("one", b"")
        await bus.subscribe("two", Heard())
        await bus.flush()
        assert fake.verbs == ["PUB", "SUB", "PING"]


async def test_a_peer_that_fell_silent_is_given_up(fake: FakeNats) -> None:
    async with bus_to(fake, ping_interval_s=0.05) as bus:
        await bus.wait_connected(PATIENCE_S)
        asking = asyncio.create_task(bus.request("mesh.slow", b"", timeout_s=FAR))
        fake.freeze()
        with pytest.raises(BusUnavailable):
            await soon(asking)
        fake.thaw()
        await until_state(bus, connected=True)


async def test_a_publisher_held_back_by_a_dead_peer_is_let_go_when_it_is_given_up(fake: FakeNats) -> None:
    async with bus_to(fake, ping_interval_s=0.1) as bus:
        await bus.wait_connected(PATIENCE_S)
        fake.freeze()

        async def flood() -> None:
            while True:
                await bus.publish("flood", bytes(1 << 20))

        async def ask() -> None:
            while True:
                await bus.request("flood", bytes(1 << 20), timeout_s=FAR)

        for sender in (flood, ask):
            with pytest.raises(BusUnavailable):
                await soon(sender())
        fake.thaw()


async def test_leaving_does_not_wait_for_a_dead_peer(fake: FakeNats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.nats_bus.CLOSE_S", 0.2)

    async def flood() -> None:
        while True:
            await bus.publish("flood", bytes(1 << 19))

    async with bus_to(fake) as bus:
        await bus.wait_connected(PATIENCE_S)
        fake.freeze()
        sending = asyncio.create_task(flood())
        held, _ = await asyncio.wait((sending,), timeout=0.2)
        assert not held
        leaving = asyncio.create_task(bus.__aexit__())
        await soon(leaving)
    with pytest.raises(BusUnavailable):
        await soon(sending)
    assert not [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == fake.port]


async def test_leaving_at_any_moment_of_connecting_ends(fake: FakeNats) -> None:
    async def come_and_go(turns: int) -> None:
        async with bus_to(fake) as bus:
            await bus.subscribe("news", Heard())
            for _ in range(turns):
                await asyncio.sleep(0)
        assert not bus.connected

    for turns in range(100):
        await soon(come_and_go(turns))


async def test_a_server_that_drops_us_at_once_is_not_stormed(fake: FakeNats, monkeypatch: pytest.MonkeyPatch) -> None:
    longest: list[float] = []

    def no_luck(low: float, high: float) -> float:
        longest.append(high)
        return low

    monkeypatch.setattr("mesh.nats_bus.random.uniform", no_luck)
    async with bus_to(fake, reconnect_min_s=0.1, reconnect_max_s=1.0) as bus:
        for _ in range(6):
            await until_state(bus, connected=True)
            await fake.error("maximum connections exceeded")
            await until_state(bus, connected=False)
        await until_state(bus, connected=True)
    assert longest[:6] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


async def test_the_bus_boots_without_a_server_and_leaves_without_one() -> None:
    server = NatsServer()
    async with server:
        await server.stop()
        async with NatsBus(NatsOptions((server.url,), "edge")) as bus:
            heard = Heard()
            await bus.subscribe("news", heard)
            with pytest.raises(BusUnavailable):
                await bus.publish("news", b"")
            with pytest.raises(BusUnavailable, match="not connected after"):
                await bus.wait_connected(0.05)
            await server.start()
            await bus.wait_connected(PATIENCE_S)
            await bus.publish("news", b"at last")
            assert (await heard.next()).payload == b"at last"
            assert 0.0 < await bus.rtt_ms() < 1e3 * PATIENCE_S
            await server.stop()
            await until_state(bus, connected=False)


async def test_the_first_server_that_takes_us_is_used(fake: FakeNats) -> None:
    fake.version = "2.2.0"
    async with NatsServer() as server, NatsBus(NatsOptions((fake.url, server.url), "edge")) as bus:
        await bus.wait_connected(PATIENCE_S)
        assert bus.max_payload == 8 << 20


async def test_a_wrong_token_is_named_and_the_right_one_works() -> None:
    async with NatsServer(token="right") as server:
        async with NatsBus(NatsOptions((server.url,), "edge", token="wrong")) as bus:
            await until_trouble(bus, "refused our credentials")
            with pytest.raises(BusUnavailable, match="refused our credentials"):
                await bus.wait_connected(0.0)
        async with connected_bus(server) as bus:
            await bus.flush()


async def test_permissions_of_a_real_server_are_mapped() -> None:
    allowed = {"publish": ["open", "_INBOX_me.>"], "subscribe": ["open", "_INBOX_me.>"]}
    deaf = {"publish": ["open"], "subscribe": ["open"]}
    users = [
        {"user": "me", "password": "p", "permissions": allowed},
        {"user": "deaf", "password": "p", "permissions": deaf},
    ]
    async with NatsServer(extra={"authorization": {"users": users}}) as server:
        me = NatsOptions((server.url,), "me", user="me", password="p", inbox_prefix="_INBOX_me")
        async with NatsBus(me) as bus:
            await bus.wait_connected(PATIENCE_S)

            async def answer(message: BusMessage) -> None:
                await bus.publish(message.reply, b"yes")

            await bus.subscribe("open", answer)
            with pytest.raises(Unavailable, match="publish to closed"):
                await soon(bus.request("closed", b"", timeout_s=FAR))
            assert (await bus.request("open", b"", timeout_s=PATIENCE_S)).payload == b"yes"
        async with NatsBus(NatsOptions((server.url,), "deaf", user="deaf", password="p")) as bus:
            await bus.wait_connected(PATIENCE_S)
            with pytest.raises(Unavailable, match="its own replies"):
                await soon(bus.request("open", b"", timeout_s=FAR))


async def test_a_credentials_file_that_holds_none_is_named(fake: FakeNats, tmp_path: Path) -> None:
    empty = tmp_path / "empty.creds"
    empty.touch()
    for path, said in ((empty, "does not hold"), (tmp_path / "missing.creds", "cannot read")):
        async with bus_to(fake, creds_file=path) as bus:
            await until_trouble(bus, said)
    assert fake.greeted == 0


@pytest.mark.parametrize("urls", [(), ("http://127.0.0.1:4222",), ("nats://",), ("nats://host:x",), ("host:4222",)])
def test_urls_that_are_none_are_refused_before_anything_starts(urls: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"nats\.url"):
        NatsBus(NatsOptions(urls, "edge"))


def test_secrets_are_not_shown() -> None:
    options = NatsOptions(("nats://u:hidden@h",), "n", user="u", password="hidden2", token="hidden3")
    assert "hidden2" not in repr(options)
    assert "hidden3" not in repr(options)
    with pytest.raises(ConfigError) as caught:
        NatsBus(NatsOptions(("ftp://u:hidden@host",), "n"))
    assert "hidden" not in caught.value.text
