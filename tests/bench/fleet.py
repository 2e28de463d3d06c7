"""Stand-in nodes on the bus: one process that sends the heartbeats of many, each at its own time, and nothing else.

What is in a heartbeat and where it goes is the product's own (``mesh.messages``, ``mesh.subjects``). Each node holds
the given models and has so much to do, still at its next heartbeat, that a router prefers whoever is idle. No door and
no subject of theirs answers: a request that went there would fail. Not here: what they cost a router
(``router_cpu``).
"""

from __future__ import annotations

import asyncio
import heapq
import random
import signal
import sys
from collections.abc import Sequence

import msgspec
import nats
import uvloop
from nats.aio.client import Client

from mesh import subjects
from mesh.heartbeat import JITTER, PERIOD_S, TTL_MS
from mesh.messages import BINS, DeviceGauges, Gauges, ModelLoad, Queued, Report, encode_report
from mesh.values import Tier

SITE_NODES = 10
"""Nodes of a site; every tenth site is the cloud."""
SEED = 11
FIRST_BIN = 3
"""Work is queued from this bin of time left on."""


class StandIn:
    """One node."""

    def __init__(self, number: int, models: Sequence[ModelLoad], luck: random.Random) -> None:
        self._luck = luck
        site = number // SITE_NODES
        tier: Tier = "cloud" if site % 10 == 9 else "edge"
        where = subjects.CLOUD_SITE if tier == "cloud" else f"site-{site}"
        self._facts = Report(
            node=f"stand-in-{number}", site=where, mesh="default", tier=tier, incarnation=1_700_000_000_000 + number,
            seq=0, ttl_ms=TTL_MS, state="ready", hop_key=luck.randbytes(32).hex(),
        )  # fmt: skip
        self._models = tuple(
            msgspec.structs.replace(model, service_ms=luck.uniform(4.0, 30.0), row_ms=luck.uniform(2.0, 4.0))
            for model in models
        )
        self._wait_ms = luck.uniform(10_000.0, 20_000.0)
        self.subject = subjects.report(self._facts.site, self._facts.node)

    def heartbeat(self) -> bytes:
        luck = self._luck
        self._facts = msgspec.structs.replace(self._facts, seq=self._facts.seq + 1)
        wait_ms = self._wait_ms * luck.uniform(0.7, 1.3)
        models = [
            msgspec.structs.replace(
                model, in_flight=luck.randrange(1, 40), service_ms=model.service_ms * luck.uniform(0.95, 1.05)
            )
            for model in self._models
        ]
        device = DeviceGauges("gpu-0", "jetson-orin", luck.uniform(20.0, 99.0), 5 << 30, 8 << 30, unified_memory=True)
        return encode_report(
            msgspec.structs.replace(
                self._facts,
                wait_ms=wait_ms,
                queued=a_queue(wait_ms * 0.95, luck),
                models=tuple(models),
                gauges=Gauges(luck.uniform(10.0, 90.0), 6 << 30, 8 << 30, luck.uniform(40.0, 70.0), (device,)),
            )
        )


def a_queue(total_ms: float, luck: random.Random) -> Queued:
    """So much work, spread over two classes and some of the bins of each."""
    weights = {level: [luck.random() for _ in range(FIRST_BIN, BINS)] for level in (2, 16)}
    whole = sum(sum(row) for row in weights.values())
    none = (0.0,) * FIRST_BIN
    return tuple(
        (level, none + tuple(round(total_ms * weight / whole, 3) for weight in row)) for level, row in weights.items()
    )


async def beat(client: Client, nodes: Sequence[StandIn], luck: random.Random) -> None:
    """Publish for ever; the first round is spread over one period."""
    loop = asyncio.get_running_loop()
    due = [(loop.time() + PERIOD_S * luck.random(), number) for number in range(len(nodes))]
    heapq.heapify(due)
    while True:
        at, number = due[0]
        if at > (now := loop.time()):
            await asyncio.sleep(max(at - now, 0.002))
            continue
        await client.publish(nodes[number].subject, nodes[number].heartbeat())
        heapq.heapreplace(due, (at + PERIOD_S * luck.uniform(1 - JITTER, 1 + JITTER), number))


async def _serve(url: str, count: int, models: Sequence[ModelLoad]) -> None:
    luck, stop = random.Random(SEED), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    nodes = [StandIn(number, models, luck) for number in range(count)]
    client = await nats.connect(url, allow_reconnect=False)
    beating = asyncio.create_task(beat(client, nodes, luck))
    print(f"ready {url}", flush=True)
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait((beating, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if beating in done:
        beating.result()  # it ended by an error only
    beating.cancel()
    await client.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=list[ModelLoad])))
