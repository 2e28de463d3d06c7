"""The processes of one run: a bus, an agent for each node, a delaying proxy at each site's border, generators.

Every agent is started as an operator would start it. All of them end when the fleet is left, whatever happened. Not
here: wires (``testbed``), what is asked (``load``), figures (``run``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec

from hardware import fakes
from hardware.fakes.paced import PROFILES, SLOWDOWN
from mesh.child import tied
from mesh.cluster import Child
from mesh.nats_server import find_binary
from mesh.settings import RouterSettings
from tests.bench.offload.environment import Environment
from tests.bench.processes import ROOT
from tests.bench.reality.load import Arrival, Asked, Outcome, Plan
from tests.bench.reality.models import Model, profiles_json, write_repository
from tests.bench.reality.testbed import FAR, Bed, Space

DOOR_PORT = 8000
BUS_PORT = 4222
START_S = 90.0
LEAD_S = 1.5
"""From starting the generators to the first moment of the plan."""
PACED = Path(fakes.__file__).parent / "site_paced"


class Unusable(Exception):
    """The run cannot be had as asked for."""


def policy_environ(policy: str) -> dict[str, str]:
    """What chooses the routers' policy. Raises ``Unusable`` where this build cannot switch to it."""
    if "policy" in RouterSettings.model_fields:
        return {"MESH_ROUTER__POLICY": policy}
    if policy == "ours":
        return {}
    raise Unusable(f"no setting router.policy in this build, so no {policy}")


class Fleet:
    """The agents of one environment on the wires of a testbed; ``await ready()`` after entering."""

    def __init__(
        self,
        bed: Bed,
        world: Environment,
        policy: str,
        *,
        empty: Sequence[int] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.world = world
        self.folder = Path()
        self.agents: list[Child] = []
        self._bed = bed
        self._policy = {**policy_environ(policy), **(environ or {})}
        self._empty = set(empty)
        """Nodes without models, whose door sends everything elsewhere."""
        self._stack = contextlib.AsyncExitStack()
        self._models = [Model.like(model) for model in world.scenario.models]

    async def __aenter__(self) -> Fleet:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="reality-")))
        try:
            await self._start()
            await self._ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        """Agents first, side by side; what they talk through behind them."""
        await asyncio.gather(*(agent.kill() for agent in self.agents))
        await self._stack.aclose()

    async def _start(self) -> None:
        bed, delay_ms = self._bed, self.world.scenario.wan.rtt_ms / 2
        await self._spawn("nats", bed.core.command(find_binary(), "-c", str(self._bus_config())), {})
        cloud = next(i for i, node in enumerate(self.world.nodes) if node.tier == "cloud")
        ways = [
            f"{FAR}:{DOOR_PORT}={bed.nodes[cloud].address}:{DOOR_PORT}",
            f"{FAR}:{BUS_PORT}={bed.core.address}:{BUS_PORT}",
        ]
        for border in bed.borders[:-1]:
            line = [sys.executable, "-m", "tests.bench.reality.delay", "--ms", str(delay_ms), *ways]
            proxy = await self._spawn(f"proxy of {border.address}", border.command(*line), {})
            await proxy.until_ready(START_S)
        shared = {
            "MESH_SITE__MESH": "reality",
            "MESH_SITE__KEY": secrets.token_hex(32),
            "MESH_DISCOVERY__ENABLED": "false",
            "MESH_MODELS__ISOLATION": "device",
            "MESH_MODELS__THREADS": "1",
            "MESH_MODELS__WATCHDOG_S": "0",
            "PYTHONPATH": str(PACED),
            SLOWDOWN: str(self.folder / "none"),
            **self._policy,
        }
        self.agents = [await self._agent(index, shared) for index in range(len(bed.nodes))]

    async def _agent(self, index: int, shared: Mapping[str, str]) -> Child:
        node, space = self.world.nodes[index], self._bed.nodes[index]
        profiles = dict(zip(self._models, node.profiles, strict=True))
        name = f"n{index}"
        repository = write_repository(self.folder / "models" / name, {} if index in self._empty else profiles)
        is_cloud = node.tier == "cloud"
        bus = self._bed.core.address if is_cloud else FAR
        line = [
            sys.executable, "-m", "edge.cli", "run", "--models", str(repository), "--node", name,
            "--http", f"{space.address}:{DOOR_PORT}", "--nats", f"nats://{bus}:{BUS_PORT}", "--tier", node.tier,
            "--site", "cloud" if is_cloud else f"site{node.site}",
            "--advertise", f"{FAR if is_cloud else space.address}:{DOOR_PORT}",
        ]  # fmt: skip
        own = {PROFILES: profiles_json(profiles), "MESH_NODE__STATE_DIR": str(self.folder / "state" / name)}
        slow = {SLOWDOWN: str(self.slowdown_path(index))}
        return await self._spawn(name, space.command(*line), {**shared, **own, **slow})

    def slowdown_path(self, node: int) -> Path:
        """What the paced device of a node reads, if it is there."""
        return self.folder / f"slowdown-{node}"

    def _bus_config(self) -> Path:
        path = self.folder / "nats.conf"
        path.write_text(f'listen: "{self._bed.core.address}:{BUS_PORT}"\nmax_payload: 8388608\n')
        return path

    async def _spawn(self, name: str, line: list[str], environ: Mapping[str, str]) -> Child:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "FAKE_"))}
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *tied(line),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env={**kept, **environ},
                cwd=ROOT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        if not name.startswith("n") or name == "nats":
            self._stack.push_async_callback(child.stop)
        return child

    async def _ready(self) -> None:
        await asyncio.gather(*(agent.until_ready(START_S) for agent in self.agents))
        until = time.monotonic() + START_S
        for index in self.world.edges:
            while missing := self._unseen(index, await self._nodes_at(index)):
                if time.monotonic() > until:
                    raise Unusable(f"n{index} does not see {sorted(missing)}: {self.agents[index].last_words()}")
                await asyncio.sleep(0.1)

    def _unseen(self, index: int, ready: set[str]) -> set[str]:
        site = self.world.nodes[index].site
        return {f"n{n.index}" for n in self.world.nodes if n.site == site or n.tier == "cloud"} - ready

    async def _nodes_at(self, index: int) -> set[str]:
        space = self._bed.nodes[index]
        url = f"http://{space.address}:{DOOR_PORT}/mesh/v1/nodes"
        out = await output(space, "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())", url)
        return {row["node"] for row in json.loads(out)["nodes"] if row["state"] == "ready"}

    @contextlib.asynccontextmanager
    async def loaded(self, arrivals: Sequence[Arrival]) -> AsyncIterator[Load]:
        """Generators at the borders of the sites, about to play; ``start`` is when they begin."""
        start = time.monotonic() + LEAD_S
        async with contextlib.AsyncExitStack() as stack:
            yield Load(start, [await self._generator(site, arrivals, start, stack) for site in self._sites()])

    def _sites(self) -> range:
        return range(len(self._bed.borders) - 1)

    async def _generator(
        self, site: int, arrivals: Sequence[Arrival], start: float, stack: contextlib.AsyncExitStack
    ) -> asyncio.subprocess.Process:
        nodes = [node.index for node in self.world.nodes if node.site == site]
        own = [Arrival(a.id, a.at_s, nodes.index(a.door), a.model) for a in arrivals if a.door in nodes]
        asked = [
            Asked(model.name, model.width, model.answers, simulated.slo_ms)
            for model, simulated in zip(self._models, self.world.scenario.models, strict=True)
        ]
        doors = [f"{self._bed.nodes[index].address}:{DOOR_PORT}" for index in nodes]
        path = self.folder / f"plan-{site}.json"
        path.write_bytes(msgspec.json.encode(Plan(start, doors, asked, own)))
        line = [sys.executable, "-m", "tests.bench.reality.load", str(path)]
        process = await asyncio.create_subprocess_exec(
            *tied(self._bed.borders[site].command(*line)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        stack.push_async_callback(_end, process)
        return process


class Load:
    """Generators that play."""

    def __init__(self, start: float, generators: list[asyncio.subprocess.Process]) -> None:
        self.start = start
        self._generators = generators

    def start_in_s(self) -> float:
        return max(self.start - time.monotonic(), 0.0)

    async def outcomes(self) -> list[Outcome]:
        """When all have their outcomes, in order of the arrivals."""
        outs = await asyncio.gather(*(process.communicate() for process in self._generators))
        if any(process.returncode for process in self._generators):
            raise Unusable("a generator failed, see above")
        found = [outcome for out, _ in outs for outcome in msgspec.json.decode(out, type=list[Outcome])]
        return sorted(found, key=lambda outcome: outcome.id)


async def output(space: Space, code: str, *argv: str) -> str:
    """What a line of Python prints in a namespace."""
    process = await asyncio.create_subprocess_exec(
        *tied(space.command(sys.executable, "-I", "-S", "-c", code, *argv)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await process.communicate()
    finally:
        await _end(process)
    return out.decode() or '{"nodes": []}'


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
