"""A mesh around one cloud router for ``router_cpu``: a bus, two agents with doors of their own, and stand-in nodes.

Also what its router's process costs, what all that belongs to the benchmark costs, and how busy the machine is. Not
here: load, and what is made of the figures (``router_cpu``), the stand-ins themselves (``fleet``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import psutil

from mesh.messages import ModelLoad, decode_report
from tests.bench import processes
from tests.bench.clients import until_ok
from tests.bench.models import ADD, POOL, write_repository
from tests.bench.processes import Server, module, nats_server, started

AGENTS = ("real-1", "real-2")
SITE = "bench"
MEET_S = 60.0
SETTLE_S = 3.0
"""Two periods of heartbeats and some, after everybody was seen."""


@dataclass(frozen=True)
class Spent:
    """CPU of the router in one stretch of time, and of all that runs on the machine."""

    seconds: float
    router_s: float
    ours_s: float
    """Of the benchmark's processes, the router too."""
    machine_s: float

    @property
    def router_percent(self) -> float:
        """Of a core."""
        return 100.0 * self.router_s / self.seconds

    @property
    def machine_percent(self) -> float:
        """Of all cores."""
        return 100.0 * self.machine_s / self.seconds / (psutil.cpu_count() or 1)

    @property
    def others_percent(self) -> float:
        """Of all cores, by what is no part of the benchmark."""
        return 100.0 * max(self.machine_s - self.ours_s, 0.0) / self.seconds / (psutil.cpu_count() or 1)


class Mesh:
    """A running mesh; everything of it was started by this process."""

    def __init__(self, router: Server) -> None:
        self.router = router

    def spending(self, work: Callable[[], object]) -> Spent:
        began, before = time.perf_counter(), self._cpu_s()
        work()
        seconds, after = time.perf_counter() - began, self._cpu_s()
        return Spent(seconds, *(b - a for a, b in zip(before, after, strict=True)))

    def ready_agents(self) -> int:
        """Nodes with models that the router takes for ready."""
        rows = msgspec.json.decode(asyncio.run(page(self.router, "/mesh/v1/nodes")))["nodes"]
        return sum(row["role"] == "agent" and row["state"] == "ready" for row in rows)

    def retries(self) -> float:
        """Requests that the router sent a second time: one that went to a stand-in would be."""
        lines = asyncio.run(page(self.router, "/metrics")).decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("mesh_retries_total"))

    def _cpu_s(self) -> tuple[float, float, float]:
        """Seconds so far of the router, of this process and all that it started, and of the machine."""
        this = psutil.Process()
        ours = [this.pid, *(child.pid for child in this.children(recursive=True))]
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
        return cpu_s(self.router.pid), sum(map(cpu_s, ours)), sum(times) - idle


def cpu_s(pid: int) -> float:
    """CPU seconds of a process by its own clock (``clock_getcpuclockid(3)``): idle costs less than a tick a second."""
    return time.clock_gettime(~pid << 3 | 2)


@contextlib.contextmanager
def a_mesh(nodes: int) -> Iterator[Mesh]:
    """Start it, and wait until the router knows every node and both models."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = write_repository(folder / "models", ADD, POOL)
        url = stack.enter_context(nats_server())

        def start(name: str, command: Sequence[str], **environ: str) -> Server:
            environ |= {"MESH_DISCOVERY__ENABLED": "false", "MESH_NODE__STATE_DIR": str(folder / name)}
            return stack.enter_context(started(name, command, environ))

        router = start("router", [processes.installed("mesh-cloud"), "run", "--http", "127.0.0.1:0", "--nats", url])
        agents = []
        for name in AGENTS:
            command = processes.agent(repository, "--site", SITE, "--node", name, "--nats", url)
            agents.append(start(name, command, MESH_MODELS__ISOLATION="none"))
        for server, model in itertools.product(agents, (ADD, POOL)):
            asyncio.run(until_ok(f"http://{server.address}/v2/models/{model.name}/ready", MEET_S))
        held = asyncio.run(models_of(agents[0]))
        if nodes:
            command = module("tests.bench.fleet", url, str(nodes), msgspec.json.encode(held).decode())
            stack.enter_context(started("fleet", command))
        for model in (ADD, POOL):
            asyncio.run(until_ok(f"http://{router.address}/v2/models/{model.name}/ready", MEET_S))
        mesh, end = Mesh(router), time.monotonic() + MEET_S
        while (seen := mesh.ready_agents()) < nodes + len(AGENTS):
            if time.monotonic() > end:
                raise RuntimeError(f"the router sees {seen} of {nodes + len(AGENTS)} nodes")
            time.sleep(0.5)
        time.sleep(SETTLE_S)
        yield mesh


async def page(server: Server, path: str) -> bytes:
    url = f"http://{server.address}{path}"
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url) as reply:
        return await reply.read()


async def models_of(agent: Server) -> tuple[ModelLoad, ...]:
    return decode_report(await page(agent, "/mesh/v1/report")).models
