"""Closed loops over MQTT: each caller publishes (QoS 0) and waits for the result at the topic of its own.

To be run in a process of its own (``loadgen.own_process``). Also the bar of these rows: ``python -m
tests.bench.mqtt_load URL SITE BYTES...`` answers at the bus what devices publish, with as many bytes as it was told.
Not here: tables (``serving``).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import nats
import uvloop
from nats.aio.msg import Msg

from tests.bench.loadgen import Sample, Window
from tests.bench.stats import percentile
from tests.mqtt import Device

REPLY_S = 20.0
Judge = Callable[[bytes], str]
"""A result to what is wrong with it, empty if nothing is. Must pickle."""


@dataclass(frozen=True)
class MqttJob:
    """``topic`` is that of requests, ``result`` that of results; a caller's number is added to both."""

    port: int
    password: str
    topic: str
    result: str
    payload: bytes
    judge: Judge
    callers: int = 1
    window: Window = field(default_factory=Window)


def over_mqtt(job: MqttJob) -> Sample:
    return uvloop.run(_over_mqtt(job))


async def _over_mqtt(job: MqttJob) -> Sample:
    loop, latencies = asyncio.get_running_loop(), list[float]()
    waiting: dict[str, asyncio.Future[bytes]] = {}

    def heard(topic: str, payload: bytes) -> None:
        future = waiting.get(topic)
        if future is not None and not future.done():
            future.set_result(payload)

    async with Device(job.port, "bench", f"{job.result}/+", job.password, heard=heard) as device:
        now = time.perf_counter()
        begin, end = now + job.window.warmup_s, now + job.window.warmup_s + job.window.seconds

        async def caller(number: int) -> tuple[int, str]:
            topic, result, answered, problem = f"{job.topic}/{number}", f"{job.result}/{number}", 0, ""
            while not problem:
                waiting[result] = loop.create_future()
                sent = time.perf_counter()
                device.send(topic, job.payload)
                reply = await asyncio.wait_for(waiting[result], REPLY_S)
                now = time.perf_counter()
                answered += 1
                if begin <= sent and now <= end:
                    latencies.append(now - sent)
                if answered == 1 or now >= end:
                    problem = job.judge(reply)
                if now >= end:
                    break
            return answered, problem

        done = await asyncio.gather(*map(caller, range(job.callers)))
    latencies.sort()
    wrong = next((problem for _, problem in done if problem), "")
    p50, p99 = (percentile(latencies, q) * 1e3 if latencies else 0.0 for q in (0.50, 0.99))
    answered = sum(count for count, _ in done)
    return Sample(len(latencies), job.window.seconds, p50, p99, answered, int(bool(wrong)), wrong)


async def echo(url: str, site: str, sizes: list[int]) -> None:
    """By the size of the request: small ones are answered with the first, large ones with the last."""
    bus = await nats.connect(url)
    replies = [bytes(size) for size in sizes]

    async def answer(message: Msg) -> None:
        to = message.subject.replace(".infer.", ".result.", 1)
        await bus.publish(to, replies[0 if len(message.data) < 4096 else -1])

    await bus.subscribe(f"mesh.{site}.infer.>", cb=answer)
    await bus.flush()
    print(f"ready {url.replace('nats', 'bus')}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(echo(sys.argv[1], sys.argv[2], [int(size) for size in sys.argv[3:]]))
