"""The benchmark of the router's process: load at a rate, stand-in nodes like real ones, and what does not count."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from mesh.messages import ModelLoad, decode_report
from mesh.subjects import CLOUD_SITE, parse_node
from tests.bench import loadgen
from tests.bench.fleet import StandIn
from tests.bench.loadgen import Job, Sample, Window, any_reply
from tests.bench.models import ADD
from tests.bench.router_cpu import RATE, ByReal, Loaded, spoilt
from tests.bench.router_mesh import Spent
from tests.builders import a_model_load

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CALM = Spent(seconds=2.0, router_s=1.0, ours_s=1.5, machine_s=1.8)
STEADY = Sample(requests=10_000, seconds=5.0, p50_ms=1.0, p99_ms=2.0, answered=10_000, errors=0)


async def at_rate(rate: float, window: Window, *, hold_s: float = 0.0) -> tuple[Sample, int]:
    """What came of a load at a rate on two connections, and how many requests the server saw.

    It holds the first of each connection for ``hold_s``.
    """
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        pause_s = hold_s
        try:
            while True:
                await reader.readexactly(len(REQUEST))
                seen += 1
                await asyncio.sleep(pause_s)
                pause_s = 0.0
                writer.write(REPLY)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        job = Job("127.0.0.1", port, REQUEST, any_reply, 2, window, 30.0, rate=rate)
        sample = await asyncio.to_thread(loadgen.run, job)
    return sample, seen


async def test_a_rate_is_kept_and_not_gone_beyond() -> None:
    sample, seen = await at_rate(50.0, Window(1.0, 0.2))
    assert (sample.errors, sample.error) == (0, "")
    assert 0 < sample.requests <= sample.answered == seen
    assert sample.requests <= 50.0 * sample.seconds + 2


async def test_the_time_a_request_waits_for_a_connection_counts() -> None:
    sample, _ = await at_rate(20.0, Window(1.5, 0.0), hold_s=1.0)
    assert sample.errors == 0
    assert sample.p50_ms >= 100.0  # a closed loop would have been held up twice, and sent the rest later


@pytest.mark.parametrize("number", [0, 95])
def test_a_stand_in_reports_like_a_node_that_is_busy(number: int) -> None:
    model = a_model_load()
    node = StandIn(number, [model], random.Random(1))
    first, second = decode_report(node.heartbeat()), decode_report(node.heartbeat())
    where = parse_node(node.subject)
    assert (where.site, where.node, where.kind) == (first.site, first.node, "report")
    assert (first.tier == "cloud") == (first.site == CLOUD_SITE) == (number == 95)
    assert [m.identity for m in second.models] == [model.identity]
    assert all(isinstance(m, ModelLoad) and m.state == "READY" and m.service_ms > 0 for m in second.models)
    assert second.seq == first.seq + 1
    assert second.wait_ms != first.wait_ms
    assert second.wait_ms > 1_000.0 < sum(sum(bins) for _, bins in second.queued) < second.wait_ms


def test_only_a_real_agent_may_have_answered() -> None:
    header_length = ADD.reply.index(b"}]}") + 3
    head = b"HTTP/1.1 200 OK\r\nMesh-Node: %s\r\nInference-Header-Content-Length: %d\r\n\r\n"
    assert ByReal(ADD)(head % (b"real-2", header_length), ADD.reply) == ""
    assert "not answered by" in ByReal(ADD)(head % (b"stand-in-7", header_length), ADD.reply)


def test_the_cost_of_a_request_leaves_out_what_the_router_costs_idle() -> None:
    one = Loaded(STEADY, CALM, idle_percent=10.0)
    assert one.cpu_us == pytest.approx((1.0 - 0.2) / 10_000 * 1e6)
    assert one.percent_at_rate == pytest.approx(10.0 + 100.0 * RATE * 80e-6)


def test_a_run_at_the_rate_counts_only_on_a_machine_that_carries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda: 2)
    assert spoilt(Loaded(STEADY, CALM, 0.0)) == ""
    assert "98 % busy" in spoilt(Loaded(STEADY, replace(CALM, machine_s=3.92), 0.0))
    assert "1800 requests/s" in spoilt(Loaded(replace(STEADY, requests=9_000), CALM, 0.0))
