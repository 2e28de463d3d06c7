"""Closed loops of one caller through the client libraries that the hops themselves use: nats-py and aiohttp.

They give the bare transport that a hop is compared with, and reach an agent over the bus. Each is to run in a process
of its own (``loadgen.own_process``). Not here: load from many connections (``loadgen``), what is compared (``hops``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import nats
import uvloop
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from tests.bench.loadgen import Sample, Window
from tests.bench.stats import percentile

T = TypeVar("T")
REPLY_S = 10.0

Judge = Callable[[Mapping[str, str], bytes], str]
"""Reply headers, names in lower case, and body to what is wrong, empty if nothing is. Must pickle."""


@dataclass(frozen=True)
class Ask:
    """``where`` is a subject at the NATS server ``url``, or empty for a POST to the HTTP ``url``."""

    url: str
    payload: bytes
    judge: Judge
    where: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    window: Window = field(default_factory=Window)


def over_nats(job: Ask) -> Sample:
    """Request-reply by nats-py. Raises what nats-py raises when nobody answers."""
    return uvloop.run(_over_nats(job))


def over_aiohttp(job: Ask) -> Sample:
    """POSTs on one keep-alive connection of an aiohttp session."""
    return uvloop.run(_over_aiohttp(job))


async def _over_nats(job: Ask) -> Sample:
    client = await nats.connect(job.url, allow_reconnect=False)

    async def ask() -> Msg:
        return await client.request(job.where, job.payload, timeout=REPLY_S, headers=job.headers or None)

    def wrong(reply: Msg) -> str:
        return job.judge({name.lower(): value for name, value in (reply.headers or {}).items()}, reply.data)

    try:
        return await _closed_loop(job, ask, wrong)
    finally:
        await client.close()


async def _over_aiohttp(job: Ask) -> Sample:
    timeout = aiohttp.ClientTimeout(total=REPLY_S)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:

        async def ask() -> tuple[int, Mapping[str, str], bytes]:
            async with session.post(job.url, data=job.payload, headers=job.headers) as reply:
                return reply.status, reply.headers, await reply.read()

        def wrong(reply: tuple[int, Mapping[str, str], bytes]) -> str:
            status, headers, body = reply
            if status != 200:
                return f"status {status}: {body[:300]!r}"
            return job.judge({name.lower(): value for name, value in headers.items()}, body)

        return await _closed_loop(job, ask, wrong)


async def _closed_loop(job: Ask, ask: Callable[[], Awaitable[T]], wrong: Callable[[T], str]) -> Sample:
    """Ask again as soon as answered; the first and the last reply are judged, and a wrong one ends it."""
    problem = wrong(await ask())
    answered, latencies = 1, []
    began = time.perf_counter() + job.window.warmup_s
    end = began + job.window.seconds
    while not problem:
        sent = time.perf_counter()
        reply = await ask()
        now = time.perf_counter()
        answered += 1
        if sent >= began:
            latencies.append(now - sent)
        if now >= end:
            problem = wrong(reply)
            break
    if not latencies:
        return Sample(0, job.window.seconds, 0.0, 0.0, answered, 1, problem or "no request fitted into the window")
    seconds = time.perf_counter() - began
    latencies.sort()
    p50, p99 = percentile(latencies, 0.50) * 1e3, percentile(latencies, 0.99) * 1e3
    return Sample(len(latencies), seconds, p50, p99, answered, int(bool(problem)), problem)


async def until_ok(url: str, timeout_s: float) -> None:
    """Return once a GET of ``url`` answers 200; raises ``RuntimeError`` with the last answer after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as reply:
                if reply.status == 200:
                    return
                last = f"{url} answers {reply.status}: {await reply.text()}"
            if time.monotonic() > end:
                raise RuntimeError(last)
            await asyncio.sleep(0.05)


async def until_responds(url: str, subject: str, timeout_s: float) -> None:
    """Return once somebody answers on ``subject``, whatever it says; raises ``NoRespondersError`` after that time."""
    end = time.monotonic() + timeout_s
    client = await nats.connect(url, allow_reconnect=False)
    try:
        while True:
            try:
                await client.request(subject, b"", timeout=REPLY_S)
                return
            except NoRespondersError:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.05)
    finally:
        await client.close()
