"""What every bus does (``mesh.bus``): the same tests over the memory bus and a real nats-server that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.bus import Bus, BusMessage
from mesh.bus_core import clean_headers, encode_headers
from mesh.errors import BusUnavailable, DeadlineExceeded, InvalidRequest, NodeUnreachable, PayloadTooLarge
from tests.nats import PATIENCE_S, Heard, MemoryWorld, NatsWorld, World, answering, soon, until_state

MAX_PAYLOAD = 64 * 1024


@pytest.fixture(params=[MemoryWorld, NatsWorld], ids=["memory", "nats"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with request.param(MAX_PAYLOAD) as world:
        yield world


async def test_delivers_payload_headers_and_reply_subject_to_everybody(world: World) -> None:
    one, two, sender = await world.bus(), await world.bus(), await world.bus()
    heard_one, heard_two = Heard(), Heard()
    await one.subscribe("news", heard_one)
    await two.subscribe("news", heard_two)
    await one.flush()
    await two.flush()
    await sender.publish(
        "news", memoryview(b"\x00tensor\xff"), {"Mesh-A": "grüße", "Mesh-B": "x: y"}, reply="back.here"
    )
    for heard in (heard_one, heard_two):
        message = await heard.next()
        assert message == BusMessage("news", b"\x00tensor\xff", {"Mesh-A": "grüße", "Mesh-B": "x: y"}, "back.here")
        assert type(message.payload) is bytes


async def test_a_message_without_headers_or_payload_arrives_empty(world: World) -> None:
    bus = await world.bus()
    heard = Heard()
    await bus.subscribe("news", heard)
    await bus.publish("news", b"")
    assert await heard.next() == BusMessage("news", b"")


async def test_header_values_cannot_add_headers(world: World) -> None:
    bus = await world.bus()
    heard = Heard()
    await bus.subscribe("news", heard)
    await bus.publish("news", b"", {"Mesh-A": " one\r\nMesh-Evil: two "})
    assert (await heard.next()).headers == {"Mesh-A": "one  Mesh-Evil: two"}
    with pytest.raises(InvalidRequest):
        await bus.publish("news", b"", {"Mesh A": "x"})


async def test_a_changed_buffer_does_not_change_what_was_sent(world: World) -> None:
    bus = await world.bus()
    heard = Heard()
    await bus.subscribe("news", heard)
    buffer = bytearray(b"before")
    await bus.publish("news", buffer)
    buffer[:] = b"after!"
    assert (await heard.next()).payload == b"before"


@pytest.mark.parametrize(
    ("pattern", "wanted", "unwanted"),
    [
        ("a.*.c", ["a.b.c", "a.%2E.c"], ["a.c", "a.b.b.c", "x.b.c", "a.b.d"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        ("*.b", ["a.b", "c.b"], ["b", "a.b.b"]),
        (">", ["a", "a.b.c"], []),
        ("a.b", ["a.b"], ["a", "a.b.c", "A.b"]),
    ],
)
async def test_wildcards(world: World, pattern: str, wanted: list[str], unwanted: list[str]) -> None:
    bus = await world.bus()
    heard = Heard()
    await bus.subscribe(pattern, heard)
    for subject in (*unwanted, *wanted):
        await bus.publish(subject, b"")
    assert [(await heard.next()).subject for _ in wanted] == wanted


async def test_a_queue_group_shares_while_others_hear_all(world: World) -> None:
    members = [await world.bus(), await world.bus()]
    sender = await world.bus()
    counts = [0, 0]
    done = asyncio.Event()

    def member(index: int) -> None:
        counts[index] += 1
        if sum(counts) == 100:
            done.set()

    async def first(_: BusMessage) -> None:
        member(0)

    async def second(_: BusMessage) -> None:
        member(1)

    heard = Heard()
    await members[0].subscribe("work", first, queue="workers")
    await members[1].subscribe("work", second, queue="workers")
    await sender.subscribe("work", heard)
    for bus in (*members, sender):
        await bus.flush()
    for number in range(100):
        await sender.publish("work", str(number).encode())
    await soon(done.wait())
    assert sorted([int((await heard.next()).payload) for _ in range(100)]) == list(range(100))
    assert sum(counts) == 100
    assert min(counts) > 0


async def test_handlers_of_one_subscription_run_concurrently(world: World) -> None:
    bus = await world.bus()
    arrived = 0
    together = asyncio.Event()

    async def meet(_: BusMessage) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 3:
            together.set()
        await together.wait()

    await bus.subscribe("meet", meet)
    for _ in range(3):
        await bus.publish("meet", b"")
    await soon(together.wait())


async def test_at_most_handler_limit_run_at_once_and_none_is_lost(world: World) -> None:
    bus = await world.bus(handler_limit=2)
    running = most = done = 0
    two_run, release, all_done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(_: BusMessage) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if running == 2:
            two_run.set()
        await release.wait()
        running -= 1
        done += 1
        if done == 7:
            all_done.set()

    await bus.subscribe("work", work)
    for _ in range(7):
        await bus.publish("work", b"")
    await soon(two_run.wait())
    await bus.flush()
    release.set()
    await soon(all_done.wait())
    assert most == 2


async def test_flush_means_that_the_server_has_the_subscription(world: World) -> None:
    listener, sender = await world.bus(), await world.bus()
    for number in range(50):
        heard = Heard()
        subscription = await listener.subscribe(f"fresh.{number}", heard)
        await listener.flush()
        await sender.publish(f"fresh.{number}", b"")
        await heard.next()
        await subscription.unsubscribe()


async def test_request_and_reply_carry_headers_both_ways(world: World) -> None:
    server, client = await world.bus(), await world.bus()
    await server.subscribe("echo", answering(server, lambda m: m.payload[::-1]))
    await server.flush()
    reply = await client.request("echo", b"abc", {"Mesh-Hops": "1"}, timeout_s=PATIENCE_S)
    assert (reply.payload, reply.headers) == (b"cba", {"Mesh-Hops": "1"})


async def test_many_requests_at_once_get_their_own_replies(world: World) -> None:
    server, client = await world.bus(), await world.bus()
    await server.subscribe("echo", answering(server))
    await server.flush()
    asked = [str(n).encode() * 500 for n in range(200)]
    replies = await asyncio.gather(*(client.request("echo", body, timeout_s=PATIENCE_S) for body in asked))
    assert [reply.payload for reply in replies] == asked


async def test_asking_where_nobody_listens_fails_at_once(world: World) -> None:
    bus = await world.bus()
    with pytest.raises(NodeUnreachable, match=r"nobody\.home") as caught:
        await soon(bus.request("nobody.home", b"", timeout_s=10 * PATIENCE_S))
    assert caught.value.refused


async def test_an_unanswered_request_meets_its_deadline_and_a_late_reply_is_dropped(world: World) -> None:
    server, client = await world.bus(), await world.bus()
    asked: asyncio.Queue[BusMessage] = asyncio.Queue()

    async def take(message: BusMessage) -> None:
        asked.put_nowait(message)

    await server.subscribe("slow", take)
    await server.flush()
    with pytest.raises(DeadlineExceeded):
        await client.request("slow", b"", timeout_s=0.05)
    late = await soon(asked.get())
    await server.publish(late.reply, b"late")
    second = asyncio.create_task(client.request("slow", b"", timeout_s=PATIENCE_S))
    await server.publish((await soon(asked.get())).reply, b"in time")
    assert (await second).payload == b"in time"


async def test_no_time_left_is_not_sent(world: World) -> None:
    bus = await world.bus()
    heard = Heard()
    await bus.subscribe("late", heard)
    with pytest.raises(DeadlineExceeded):
        await bus.request("late", b"dead", timeout_s=0.0)
    await bus.publish("late", b"alive")
    assert (await heard.next()).payload == b"alive"


async def test_a_caller_that_leaves_waits_for_nothing(world: World) -> None:
    server, client = await world.bus(), await world.bus()
    heard = Heard()
    await server.subscribe("slow", heard)
    await server.flush()
    asking = asyncio.create_task(client.request("slow", b"", timeout_s=PATIENCE_S))
    asked = await heard.next()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await server.publish(asked.reply, b"too late")
    await server.subscribe("echo", answering(server))
    await server.flush()
    assert (await client.request("echo", b"next", timeout_s=PATIENCE_S)).payload == b"next"


@pytest.mark.parametrize("headers", [{}, {"Mesh-A": "1", "Mesh-B": " grüße\n"}], ids=["bare", "headers"])
async def test_max_payload_counts_headers_and_is_checked_before_sending(world: World, headers: dict[str, str]) -> None:
    bus = await world.bus()
    await bus.subscribe("size", answering(bus, lambda m: str(len(m.payload)).encode()))
    most = bus.max_payload - len(encode_headers(clean_headers(headers)))
    assert bus.max_payload == MAX_PAYLOAD
    for size in (most - 1, most):
        reply = await bus.request("size", bytes(size), headers, timeout_s=PATIENCE_S)
        assert reply.payload == str(size).encode()
    with pytest.raises(PayloadTooLarge, match=str(most + 1)):
        await bus.request("size", bytes(most + 1), headers, timeout_s=PATIENCE_S)
    with pytest.raises(PayloadTooLarge):
        await bus.publish("size", bytes(most + 1), headers)
    assert bus.connected
    await bus.request("size", b"", timeout_s=PATIENCE_S)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 0", "a.*", "a.>", "a..b", ".a", "a."])
async def test_subjects_that_are_none_are_refused(world: World, subject: str) -> None:
    bus = await world.bus()
    with pytest.raises(InvalidRequest):
        await bus.publish(subject, b"")
    with pytest.raises(InvalidRequest):
        await bus.request(subject, b"", timeout_s=1.0)
    with pytest.raises(InvalidRequest):
        await bus.publish("fine", b"", reply=subject or " ")


@pytest.mark.parametrize("pattern", ["", "a b", "a.>.b", "a..b", "a*", "a.b>"])
async def test_patterns_that_are_none_are_refused(world: World, pattern: str) -> None:
    bus = await world.bus()
    with pytest.raises(InvalidRequest):
        await bus.subscribe(pattern, Heard())


async def test_nothing_is_delivered_after_unsubscribe_and_running_handlers_go_on(world: World) -> None:
    bus = await world.bus()
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    calls = 0

    async def work(_: BusMessage) -> None:
        nonlocal calls
        calls += 1
        started.set()
        await release.wait()
        ended.set()

    subscription = await bus.subscribe("work", work)
    await bus.publish("work", b"")
    await soon(started.wait())
    await subscription.unsubscribe()
    with pytest.raises(NodeUnreachable):
        await bus.request("work", b"", timeout_s=PATIENCE_S)
    release.set()
    await soon(ended.wait())
    await subscription.unsubscribe()  # twice does no harm
    assert calls == 1


async def test_a_failing_handler_is_logged_and_the_subscription_lives(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await world.bus()
    heard = Heard()

    async def fragile(message: BusMessage) -> None:
        if message.payload == b"bad":
            raise ZeroDivisionError("on purpose")
        await heard(message)

    await bus.subscribe("work", fragile)
    await bus.publish("work", b"bad")
    await bus.publish("work", b"good")
    assert (await heard.next()).payload == b"good"
    assert "could not be handled" in caplog.text
    assert "ZeroDivisionError: on purpose" in caplog.text


async def test_a_cut_fails_pending_requests_at_once_and_refuses_new_ones(world: World) -> None:
    server, client = await world.bus(), await world.bus()
    heard = Heard()
    await server.subscribe("slow", heard)
    await server.flush()
    pending = [asyncio.create_task(client.request("slow", b"", timeout_s=10 * PATIENCE_S)) for _ in range(5)]
    for _ in pending:
        await heard.next()
    await world.cut()
    results = await soon(asyncio.gather(*pending, return_exceptions=True))
    assert {type(result) for result in results} == {BusUnavailable}
    assert not client.connected
    with pytest.raises(BusUnavailable):
        await client.publish("slow", b"")
    with pytest.raises(BusUnavailable):
        await soon(client.request("slow", b"", timeout_s=10 * PATIENCE_S))
    with pytest.raises(BusUnavailable):
        await client.flush()


async def test_subscriptions_outlive_an_outage_and_nothing_of_it_is_delivered_later(world: World) -> None:
    bus, other = await world.bus(), await world.bus()
    before, during, ended = Heard(), Heard(), Heard()
    await bus.subscribe("before", before)
    gone = await bus.subscribe("ended", ended)
    await bus.flush()
    await world.cut()
    await until_state(bus, connected=False)
    await until_state(other, connected=False)
    with pytest.raises(BusUnavailable):
        await other.publish("before", b"of the outage")
    await bus.subscribe("during", during)
    await gone.unsubscribe()
    await world.restore()
    await until_state(bus, connected=True)
    await until_state(other, connected=True)
    for subject in ("ended", "before", "during"):
        await other.publish(subject, b"after")
    await before.next()
    await during.next()
    assert (before.payloads, during.payloads, ended.payloads) == ([b"after"], [b"after"], [])


async def test_two_outages_in_a_row(world: World) -> None:
    server, client = await world.bus(), await world.bus()
    await server.subscribe("echo", answering(server))
    for number in range(2):
        await world.cut()
        await until_state(server, connected=False)
        await until_state(client, connected=False)
        await world.restore()
        await until_state(server, connected=True)
        await until_state(client, connected=True)
        body = str(number).encode()
        assert (await client.request("echo", body, timeout_s=PATIENCE_S)).payload == body


async def test_each_change_of_state_is_told_once_until_the_listener_is_removed(world: World) -> None:
    bus = await world.bus()
    told: list[bool] = []

    def broken(_: bool) -> None:
        raise ZeroDivisionError("a listener of another part")

    bus.on_state(broken)
    remove = bus.on_state(told.append)
    assert bus.connected
    await world.cut()
    await until_state(bus, connected=False)
    await world.restore()
    await until_state(bus, connected=True)
    assert told == [False, True]
    remove()
    await world.cut()
    await until_state(bus, connected=False)
    assert told == [False, True]


async def test_leaving_ends_handlers_and_pending_requests() -> None:
    for world in (MemoryWorld(MAX_PAYLOAD), NatsWorld(MAX_PAYLOAD)):
        async with world:
            bus = await world.bus()
            cancelled, started = asyncio.Event(), asyncio.Event()

            async def hang(_: BusMessage, started: asyncio.Event = started, left: asyncio.Event = cancelled) -> None:
                started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    left.set()

            await bus.subscribe("hang", hang)
            asking = asyncio.create_task(bus.request("hang", b"", timeout_s=10 * PATIENCE_S))
            await soon(started.wait())
            await soon(world.stack.aclose())
            with pytest.raises(BusUnavailable):
                await soon(asking)
            await _refuses(bus)
            assert cancelled.is_set()


async def _refuses(bus: Bus) -> None:
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        await bus.publish("hang", b"")
