"""Servers under measurement: started as real processes, awaited by their ready line, stopped by signal.

Also what they cost: the CPU time of a process and of its children. Not here: which servers a table compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"^ready [a-z]+://(.+):(\d+)$")
START_S = 60.0
STOP_S = 15.0
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
"""Keeps glibc from mapping and unmapping every large body afresh."""


@dataclass(frozen=True)
class Server:
    """A running server and its HTTP door."""

    name: str
    pid: int
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds, user and system together, used so far: by the process itself, and by its live children."""
        process = psutil.Process(self.pid)
        return _cpu_s(process), sum(_cpu_s(child) for child in process.children(recursive=True))


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # a child that ended between being listed and being read
        return 0.0
    return float(times.user + times.system)


def module(name: str, *arguments: str) -> list[str]:
    """The command ``python -m NAME ARGUMENTS``."""
    return [sys.executable, "-m", name, *arguments]


def agent(repository: Path, *arguments: str) -> list[str]:
    """The command ``mesh-edge run`` on a free port."""
    return [installed("mesh-edge"), "run", "--models", str(repository), "--http", "127.0.0.1:0", *arguments]


def installed(command: str) -> str:
    """Path of a command of this environment. Raises ``RuntimeError`` if there is none."""
    beside = Path(sys.executable).parent / command
    found = str(beside) if beside.exists() else shutil.which(command)
    if found is None:
        raise RuntimeError(f"no {command}: pip install -e '.[dev]' first")
    return found


@contextlib.contextmanager
def started(name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a command, wait for its ready line, and stop it on leaving. Raises ``RuntimeError`` with its log."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=_environ(environ or {}),
        )  # fmt: skip
        try:
            host, port = _ready(name, process, errors)
            yield Server(name, process.pid, host, port)
        finally:
            _stop(process)


def _environ(extra: Mapping[str, str]) -> dict[str, str]:
    """This environment without settings of the mesh or of malloc, plus ``extra``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "MALLOC_"))}
    return kept | dict(extra)


def _ready(name: str, process: subprocess.Popen[str], errors: IO[str]) -> tuple[str, int]:
    """Host and port of the ready line; the rest of stdout is read on, so that no server ever waits on a full pipe."""
    found: queue.SimpleQueue[re.Match[str] | None] = queue.SimpleQueue()

    def drain() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if match := READY.match(line):
                    found.put(match)
        found.put(None)

    threading.Thread(target=drain, daemon=True).start()
    try:
        address = found.get(timeout=START_S)
    except queue.Empty:
        address = None
    if address is None:
        errors.seek(0)
        raise RuntimeError(f"{name} did not become ready (exit status {process.poll()}):\n{errors.read()[-4000:]}")
    return address[1], int(address[2])


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def nats_server() -> Iterator[str]:
    """A nats-server of its own on a free port, with the payload limit that servers we start have; yields its URL."""
    binary = installed("nats-server")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nats.conf"
        config.write_text(f'listen: "127.0.0.1:-1"\nmax_payload: 8388608\nports_file_dir: "{folder}"\n')
        process = subprocess.Popen([binary, "-c", str(config)], stderr=subprocess.DEVNULL, text=True)
        try:
            yield _nats_url(process, Path(folder))
        finally:
            _stop(process)


def _nats_url(process: subprocess.Popen[str], folder: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob("*.ports"):
            with contextlib.suppress(json.JSONDecodeError):  # seen before it was written whole
                return str(json.loads(path.read_text())["nats"][0])
        time.sleep(0.02)
    raise RuntimeError(f"nats-server did not start (exit status {process.poll()})")
