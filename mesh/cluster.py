"""A whole mesh on this box as real processes: bus, router, agents. For ``mesh up``, the demo and the system tests.

Every process is started as an operator would start it, told what it needs by environment, and waited for by the line it
prints when it is ready; none outlives this process. Each mesh gets an id and a site key of its own, so that two on one
LAN never merge (DESIGN D4). Not here: what the processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from mesh.child import tied
from mesh.deadline import Deadline
from mesh.errors import Unavailable
from mesh.hop_http import HttpClient
from mesh.lifecycle import within
from mesh.nats_server import NatsServer

READY = "ready http://"
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 20.0
LAST_WORDS = 600
POLL_S = 0.05


class Child:
    """One process of the mesh; ``address`` is the HOST:PORT of its HTTP door once it is ready."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.address = ""
        self._process = process
        self._log = log

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises ``Unavailable`` with the end of its log if it ends, or is not ready in time."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - started with a pipe
        try:
            while line := await within(timeout_s, stdout.readline()):
                text = line.decode(errors="replace").strip()
                if text.startswith(READY):
                    self.address = text.removeprefix(READY)
                    return
        except asyncio.TimeoutError:
            words = await asyncio.to_thread(self.last_words)
            raise Unavailable(f"{self.name} is not ready after {timeout_s:g} s: {words}") from None
        status, words = await self._process.wait(), await asyncio.to_thread(self.last_words)
        raise Unavailable(f"{self.name} ended with {status}: {words}")

    async def kill(self) -> None:
        """SIGKILL, as a crash or a power cut would."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM: it drains and leaves; killed if that takes too long."""
        await self._end(signal.SIGTERM)

    async def wait(self) -> int:
        return await self._process.wait()

    async def _end(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
        try:
            await within(STOP_GRACE_S, self._process.wait())
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-LAST_WORDS:].strip() or "it said nothing"


class Cluster:
    """An async context manager; leaving stops every process, the bus last.

    ``run_dir`` takes logs and state. ``agents`` is added to the environment of every agent. ``mqtt`` is HOST:PORT of
    the bus's MQTT listener; its clients' password is the token of the bus.
    """

    def __init__(self, run_dir: Path, *, agents: Mapping[str, str] | None = None, mqtt: str = "") -> None:
        self.run_dir = run_dir
        self.mesh = f"mesh-{secrets.token_hex(4)}"
        self.key = secrets.token_hex(32)
        self.children: list[Child] = []
        self._bus_dir = run_dir / "nats"
        self.bus = NatsServer(token=secrets.token_hex(16), run_dir=self._bus_dir, mqtt=mqtt)
        self._agents = dict(agents or {})

    async def __aenter__(self) -> Cluster:
        await asyncio.to_thread(self._bus_dir.mkdir, parents=True)
        await self.bus.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.gather(*(child.stop() for child in self.children))
        finally:
            await self.bus.__aexit__()

    async def settled(self, door: Child, nodes: Iterable[str], timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until ``door`` sees every one of ``nodes`` ready. Raises ``Unavailable`` if it does not in time."""
        missing, deadline = set(nodes), Deadline.after_ms(timeout_s * 1e3)
        async with HttpClient("mesh-cluster") as http:
            while missing and not deadline.expired:
                rows = msgspec.json.decode(await http.get_json(door.address, "/mesh/v1/nodes", deadline))["nodes"]
                missing -= {row["node"] for row in rows if row["state"] == "ready"}
                await asyncio.sleep(POLL_S)
        if missing:
            raise Unavailable(f"{door.name} does not see {sorted(missing)} ready after {timeout_s:g} s")

    async def router(
        self, *, listen: str = "127.0.0.1:0", name: str = "router", environ: Mapping[str, str] | None = None
    ) -> Child:
        return await self._spawn(name, ["cloud.cli", "run", "--http", listen, "--node", name], environ or {})

    async def agent(
        self,
        name: str,
        models: Path,
        *,
        listen: str = "127.0.0.1:0",
        site: str = "",
        tier: str = "edge",
        environ: Mapping[str, str] | None = None,
    ) -> Child:
        command = ["edge.cli", "run", "--models", str(models), "--http", listen, "--node", name, "--tier", tier]
        if site:
            command += ["--site", site]
        return await self._spawn(name, command, self._agents | dict(environ or {}))

    async def _spawn(self, name: str, command: list[str], environ: Mapping[str, str]) -> Child:
        log = self.run_dir / f"{name}.log"
        settings = {
            "MESH_SITE__MESH": self.mesh,
            "MESH_SITE__KEY": self.key,
            "MESH_NATS__URL": self.bus.url,
            "MESH_NATS__TOKEN": self.bus.token,
            "MESH_NODE__STATE_DIR": str(self.run_dir / "state"),
        }
        plain = {k: v for k, v in os.environ.items() if not (k.startswith("MESH_") and "__" in k)}
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *tied([sys.executable, "-m", *command]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=plain | settings | dict(environ),
                start_new_session=True,  # Ctrl-C is for us: we stop them in order
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child
