"""``mesh demo``: one router and four agents on real models through a burst, a kill and a bus outage.

Three agents stand at one site, the fourth in the cloud where only the bus reaches it. Every process is real, every
answer is checked, nothing is scripted but the faults. Not here: load (``load``), counting (``phases``), tables
(``mesh.cli.demo``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.client import Client
from mesh.cluster import Child, Cluster
from mesh.demo.load import Caller, calling
from mesh.demo.phases import Phase
from mesh.demo.workloads import Workload, load
from mesh.errors import Unavailable

SITE = "shop"
EDGES = ("edge-1", "edge-2", "edge-3")
CLOUD = "cloud-1"
SETTLE_S = 60.0
BURST_CALLERS = 16
MIN_DEADLINE_MS = 20_000.0
DEADLINE_FACTOR = 200.0
AGENT = {
    "MESH_MODELS__ISOLATION": "device",
    "MESH_MODELS__THREADS": "1",
    "MESH_LOG__LEVEL": "info",
}


@dataclass(slots=True)
class Stage:
    """The running mesh and who calls it."""

    cluster: Cluster
    workloads: tuple[Workload, ...]
    seconds: float
    clients: dict[str, Client]
    agents: dict[str, Child]
    deadline_ms: float = MIN_DEADLINE_MS
    phases: list[Phase] = field(default_factory=list)

    def callers(self, home: str, count: int) -> list[Caller]:
        """``count`` applications whose home door is ``home``."""
        first = 1000 * sorted(self.clients).index(home)
        return [Caller(self.clients[home], self.workloads, first + n, self.deadline_ms) for n in range(count)]


async def run(models: Path, run_dir: Path, seconds: float, said: Callable[[Stage, str], None]) -> list[Phase]:
    """Play all phases, ``seconds`` each; ``said`` is told what happens. Raises ``MeshError`` if it cannot start."""
    workloads = load(models)
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(run_dir, agents=AGENT))
        stage = Stage(cluster, workloads, seconds, {}, {})
        said(stage, "starting a bus, a router and four agents")
        await _start(stage, models)
        for home, doors in _doors(stage).items():
            stage.clients[home] = await stack.enter_async_context(Client(*doors))
        said(stage, "waiting until every node sees the others")
        await _settled(stage, {*EDGES, CLOUD})
        said(stage, "calibrating: each model once, alone")
        await _calibrate(stage)
        for play in (_steady, _burst, _kill, _bus_outage):
            await play(stage, lambda text: said(stage, text))
    return stage.phases


async def _start(stage: Stage, models: Path) -> None:
    cluster = stage.cluster
    router = await cluster.router()
    for name in EDGES:
        stage.agents[name] = await cluster.agent(name, models, site=SITE)
    hidden = {"MESH_HTTP__ADVERTISE": "none"}  # behind NAT: only the bus reaches it
    stage.agents[CLOUD] = await cluster.agent(CLOUD, models, tier="cloud", environ=hidden)
    stage.agents["router"] = router
    await asyncio.gather(*(child.until_ready() for child in cluster.children))


def _doors(stage: Stage) -> dict[str, list[str]]:
    """For each home its own door first, then the others of the site: where an application goes when home is gone."""
    urls = {name: stage.agents[name].url for name in EDGES}
    homes = {name: [urls[name], *(urls[other] for other in EDGES if other != name)] for name in EDGES}
    return {**homes, "router": [stage.agents["router"].url]}


async def _settled(stage: Stage, wanted: set[str]) -> None:
    """Until every living door sees exactly ``wanted`` ready, with all their models."""
    count = len(stage.workloads)
    until = time.monotonic() + SETTLE_S
    for home in ["router", *sorted(wanted & set(EDGES))]:
        while True:
            rows = await stage.clients[home].nodes()
            whole = {r["node"] for r in rows if r["state"] == "ready" and _ready_models(r) == count}
            if whole & {*EDGES, CLOUD} == wanted:
                break
            if time.monotonic() > until:
                raise Unavailable(f"{home} sees {sorted(whole)} ready, not {sorted(wanted)}, after {SETTLE_S:g} s")
            await asyncio.sleep(0.1)


def _ready_models(row: dict[str, Any]) -> int:
    return sum(model["state"] == "READY" for model in row["models"])


async def _calibrate(stage: Stage) -> None:
    """How fast this machine is, which sets the deadline; wrong answers show here already."""
    phase = Phase("calibration", "")
    (caller,) = stage.callers("edge-1", 1)
    for _ in stage.workloads:
        await caller.once(phase)
    if phase.failed or phase.wrong:
        what = dict(phase.errors) or dict(phase.mistakes)
        raise Unavailable(f"the models do not answer right even when nothing else runs: {what}")
    slowest_ms = phase.quantile_ms(1.0) or 0.0
    stage.deadline_ms = max(MIN_DEADLINE_MS, DEADLINE_FACTOR * slowest_ms)


@contextlib.asynccontextmanager
async def _phase(stage: Stage, name: str, title: str, callers: list[Caller]) -> AsyncIterator[Phase]:
    phase = Phase(name, title)
    stage.phases.append(phase)
    async with calling(callers, phase):
        yield phase


async def _steady(stage: Stage, said: Callable[[str], None]) -> None:
    said("steady: one application at each door")
    callers = [caller for home in (*EDGES, "router") for caller in stage.callers(home, 1)]
    async with _phase(stage, "steady", "one application at each door", callers):
        await asyncio.sleep(stage.seconds)


async def _burst(stage: Stage, said: Callable[[str], None]) -> None:
    said(f"burst: {BURST_CALLERS} applications at edge-1")
    callers = stage.callers("edge-1", BURST_CALLERS)
    async with _phase(stage, "burst", f"{BURST_CALLERS} applications at one agent", callers):
        await asyncio.sleep(stage.seconds)


async def _kill(stage: Stage, said: Callable[[str], None]) -> None:
    said("kill: load at edge-2 and edge-3, then SIGKILL for edge-2")
    callers = [*stage.callers("edge-2", 3), *stage.callers("edge-3", 1), *stage.callers("router", 1)]
    async with _phase(stage, "kill", "an agent killed with SIGKILL under load", callers) as phase:
        await asyncio.sleep(stage.seconds / 2)
        killed = time.monotonic()
        await stage.agents["edge-2"].kill()
        said("kill: edge-2 is dead")
        seen_s = await _until_lost(stage, "edge-2", killed)
        phase.events.append(f"edge-2 killed; the router lists it as lost after {seen_s:.1f} s")
        await asyncio.sleep(max(stage.seconds / 2 - seen_s, 0))


async def _until_lost(stage: Stage, node: str, since: float) -> float:
    while time.monotonic() - since < SETTLE_S:
        rows = await stage.clients["router"].nodes()
        if any(row["node"] == node and row["state"] == "lost" for row in rows):
            return time.monotonic() - since
        await asyncio.sleep(0.05)
    raise Unavailable(f"{node} was killed, and the router still does not list it as lost after {SETTLE_S:g} s")


async def _bus_outage(stage: Stage, said: Callable[[str], None]) -> None:
    said("bus outage: nats-server stopped under load")
    callers = [*stage.callers("edge-1", 3), *stage.callers("edge-3", 1)]
    async with _phase(stage, "bus-outage", "NATS stopped and started again", callers) as phase:
        await asyncio.sleep(stage.seconds / 4)
        await stage.cluster.bus.kill()
        said("bus outage: the bus is gone, the site goes on by itself")
        await asyncio.sleep(stage.seconds / 2)
        await stage.cluster.bus.start()
        back = time.monotonic()
        await _settled(stage, {"edge-1", "edge-3", CLOUD})
        phase.events.append(f"all nodes see each other {time.monotonic() - back:.1f} s after the bus is back")
        said("bus outage: the bus is back")
        await asyncio.sleep(stage.seconds / 4)
