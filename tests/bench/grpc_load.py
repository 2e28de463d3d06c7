"""Closed loops over gRPC: unary calls on one channel, or one bidirectional stream a caller. Messages stay bytes.

To be run in a process of its own (``loadgen.own_process``). Not here: the bare server (``grpc_echo``), tables
(``serving``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
import uvloop

from tests.bench.loadgen import Sample, Window
from tests.bench.stats import percentile

UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

Ask = Callable[[], Awaitable[bytes]]
Judge = Callable[[bytes], str]
"""A reply to what is wrong with it, empty if nothing is. Must pickle."""


@dataclass(frozen=True)
class GrpcJob:
    """``callers`` loops ask ``address`` over one channel; ``stream``: each on one stream of its own."""

    address: str
    message: bytes
    judge: Judge
    stream: bool
    callers: int = 1
    window: Window = field(default_factory=Window)


def over_grpc(job: GrpcJob) -> Sample:
    return uvloop.run(_over_grpc(job))


async def _over_grpc(job: GrpcJob) -> Sample:
    async with grpc.aio.insecure_channel(job.address, options=UNLIMITED) as channel:
        await channel.channel_ready()
        now = time.perf_counter()
        begin, end = now + job.window.warmup_s, now + job.window.warmup_s + job.window.seconds
        latencies: list[float] = []
        loop = _stream_loop if job.stream else _unary_loop
        done = await asyncio.gather(*(loop(channel, job, begin, end, latencies) for _ in range(job.callers)))
    latencies.sort()
    wrong = next((problem for _, problem in done if problem), "")
    p50, p99 = (percentile(latencies, q) * 1e3 if latencies else 0.0 for q in (0.50, 0.99))
    answered = sum(count for count, _ in done)
    return Sample(len(latencies), job.window.seconds, p50, p99, answered, int(bool(wrong)), wrong)


async def _unary_loop(
    channel: grpc.aio.Channel, job: GrpcJob, begin: float, end: float, latencies: list[float]
) -> tuple[int, str]:
    call = channel.unary_unary(UNARY)
    return await _ask_on(lambda: call(job.message), job.judge, begin, end, latencies)


async def _stream_loop(
    channel: grpc.aio.Channel, job: GrpcJob, begin: float, end: float, latencies: list[float]
) -> tuple[int, str]:
    call = channel.stream_stream(STREAM)()

    async def ask() -> bytes:
        await call.write(job.message)
        reply: bytes = await call.read()
        return reply

    try:
        return await _ask_on(ask, job.judge, begin, end, latencies)
    finally:
        await call.done_writing()
        call.cancel()


async def _ask_on(ask: Ask, judge: Judge, begin: float, end: float, latencies: list[float]) -> tuple[int, str]:
    """The first and the last reply are judged."""
    problem, answered = judge(await ask()), 1
    while not problem:
        sent = time.perf_counter()
        reply = await ask()
        now = time.perf_counter()
        answered += 1
        if begin <= sent and now <= end:
            latencies.append(now - sent)
        if now >= end:
            return answered, judge(reply)
    return answered, problem
