"""Processes of a mesh under test: agents on hosts of their own, the real CLI, callers that check every answer.

A mesh on this very host is a ``mesh.cluster.Cluster``. Not here: raw HTTP (``tests.integration.doors``), namespaces
(``tests.netns``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mesh.child import tied
from mesh.client import Client
from mesh.cluster import Child, Cluster
from mesh.errors import MeshError
from tests import onnx_models
from tests.integration.doors import Door
from tests.netns import Host

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
POLL_S = 0.05
COUNT = onnx_models.loop
"""Counts N down and returns N: takes about a microsecond a round, and the right answer is the question."""

ALONE = {"MESH_DISCOVERY__ENABLED": "false"}
"""For meshes on this host, where the bus finds everybody."""


async def until(reached: Callable[[], Awaitable[bool]], what: str, timeout_s: float = PATIENCE_S) -> float:
    """Poll for a state that nothing announces; returns the monotonic second at which it was seen."""
    end = time.monotonic() + timeout_s
    while not await reached():
        assert time.monotonic() < end, f"still not after {timeout_s:g} s: {what}"
        await asyncio.sleep(POLL_S)
    return time.monotonic()


def door(child: Child) -> Door:
    return Door(child.address)


async def states(child: Child) -> dict[str, str]:
    """State of each node as the door of ``child`` shows it."""
    return {row["node"]: row["state"] for row in (await door(child).get("/mesh/v1/nodes")).json()["nodes"]}


async def until_state(at: Child, node: str, *wanted: str) -> float:
    async def reached() -> bool:
        return (await states(at)).get(node) in wanted

    return await until(reached, f"{node} is {' or '.join(wanted)} at {at.name}")


async def until_held(at: Child, model: str, *nodes: str) -> None:
    """Wait until ``at`` sees ``model`` READY on each of ``nodes``."""

    async def reached() -> bool:
        rows = (await door(at).get("/mesh/v1/nodes")).json()["nodes"]
        ready = {r["node"] for r in rows for m in r["models"] if m["name"] == model and m["state"] == "READY"}
        return ready.issuperset(nodes)

    await until(reached, f"{at.name} sees {model} on {nodes}")


async def command(
    *argv: str, environ: Mapping[str, str] | None = None, host: Host | None = None
) -> tuple[int, str, str]:
    """Run ``python -m argv`` to its end: exit code, stdout, stderr."""
    line = [sys.executable, "-m", *argv]
    process = await asyncio.create_subprocess_exec(
        *tied(line if host is None else host.command(*line)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environ or {})},
        cwd=ROOT,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def cli(*argv: str, host: Host | None = None) -> Any:
    """The document that ``mesh ... --json`` prints."""
    code, out, err = await command("mesh.cli", *argv, "--json", host=host)
    assert code == 0, err
    return json.loads(out)


async def cli_states(at: Child) -> dict[str, str]:
    """What ``mesh nodes --json`` shows when it is started now."""
    return {row["node"]: row["state"] for row in (await cli("nodes", "--url", at.url))["nodes"]}


class Site:
    """Agents without a bus, each on a host of a LAN or on this one; leaving stops them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "MESH_SITE__MESH": f"site-{secrets.token_hex(4)}",
            "MESH_SITE__KEY": secrets.token_hex(32),
            "MESH_NODE__STATE_DIR": str(folder / "state"),
        }
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def agent(
        self, name: str, models: Path, *flags: str, host: Host | None = None, environ: Mapping[str, str] | None = None
    ) -> Child:
        """Started and not waited for. On a ``host`` it serves the LAN at port 8000."""
        listen = "127.0.0.1:0" if host is None else "0.0.0.0:8000"
        run = ["edge.cli", "run", "--models", str(models), "--node", name, "--http", listen, *flags]
        return await self._start(name, run, host, {"MESH_MODELS__ISOLATION": "none", **(environ or {})})

    async def router(self, name: str, *flags: str, environ: Mapping[str, str] | None = None) -> Child:
        run = ["cloud.cli", "run", "--node", name, "--http", "127.0.0.1:0", *flags]
        return await self._start(name, run, None, environ or {})

    async def _start(self, name: str, run: list[str], host: Host | None, environ: Mapping[str, str]) -> Child:
        line = [sys.executable, "-m", *run]
        with self.log(name).open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *tied(line if host is None else host.command(*line)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env={**os.environ, **self.environ, **environ},
                cwd=ROOT,
                start_new_session=True,
            )
        child = Child(name, process, self.log(name))
        self._stack.push_async_callback(child.stop)
        return child

    @contextlib.asynccontextmanager
    async def guest(self, name: str, models: Path, *flags: str, **more: Any) -> AsyncIterator[Child]:
        """An agent for one test: ready, and stopped on leaving."""
        child = await self.agent(name, models, *flags, **more)
        try:
            await child.until_ready()
            yield child
        finally:
            await child.stop()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def workers(agent: Child) -> list[psutil.Process]:
    """The worker processes of an agent."""
    return [p for p in psutil.Process(agent.pid).children() if "hardware.worker" in p.cmdline()]


class Load:
    """Callers of the model ``count`` in closed loops while entered; every answer is checked against its question."""

    def __init__(self, client: Client, *, callers: int = 8, rounds: int = 10_000, model: str = "count") -> None:
        self.nodes: Counter[str] = Counter()
        """Right answers by the node that gave them."""
        self.failed: list[MeshError] = []
        self.wrong = 0
        self._client = client
        self._callers = callers
        self._rounds = rounds
        self._model = model
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._call(random.Random(n))) for n in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Every request that was begun is answered."""
        self._stop = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), PATIENCE_S)

    @property
    def right(self) -> int:
        return sum(self.nodes.values())

    async def more(self, count: int, *nodes: str) -> None:
        """Wait for ``count`` more right answers, of each of ``nodes`` where some are named."""
        goals = {node: self.nodes[node] + count for node in nodes}
        right = self.right + count

        async def reached() -> bool:
            assert not any(task.done() for task in self._tasks), [task for task in self._tasks if task.done()]
            return all(self.nodes[n] >= goal for n, goal in goals.items()) if nodes else self.right >= right

        await until(reached, f"{count} more answers of {nodes or 'anybody'}, so far {self.nodes}, failed {self.failed}")

    async def fails(self, count: int) -> None:
        """Wait for ``count`` more failures."""
        goal = len(self.failed) + count

        async def reached() -> bool:
            return len(self.failed) >= goal

        await until(reached, f"{count} failures")

    async def _call(self, luck: random.Random) -> None:
        while not self._stop:
            asked = luck.randrange(1, 2 * self._rounds)
            try:
                result = await self._client.infer(self._model, {"N": np.array(asked, dtype=np.int64)})
            except MeshError as error:
                self.failed.append(error)
                await asyncio.sleep(0.01)  # a refusal comes at once: no storm of them
                continue
            if result["Y"] == asked:
                self.nodes[result.node] += 1
            else:
                self.wrong += 1


@contextlib.asynccontextmanager
async def holder(cluster: Cluster, name: str, models: Path, **environ: str) -> AsyncIterator[Child]:
    """One more agent of a cluster, for a test that ends it; stopped on leaving."""
    child = await cluster.agent(name, models, environ=environ)
    try:
        await child.until_ready()
        yield child
    finally:
        await child.stop()
