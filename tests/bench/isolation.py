"""``python -m tests.bench.isolation``: what a model that keeps crashing its worker costs another one on the same agent.

A steady stream of requests to ``steady``, alone, then while ``crashes`` takes its worker down by SIGSEGV until it is
quarantined, then after. The crash is that of the fake TensorRT (``hardware.fakes``) at its first request; the signal,
the deaths, the restarts and the quarantine are real. Not here: a killed agent (``tests/system``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mesh.client import Client
from mesh.errors import MeshError
from tests import onnx_models
from tests.bench import processes
from tests.bench.batching import friendly
from tests.bench.processes import Server, started
from tests.bench.report import Row, machine, show
from tests.bench.stats import percentile
from tests.engine_requests import SITE

RATE = 50.0
AIM = 2.0
WARM_UP_RUNS = 3


@contextlib.contextmanager
def agent() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx_models.save(friendly(), folder / "models" / "steady" / "1" / "model.onnx")
        onnx_models.save(onnx_models.add(), folder / "models" / "crashes" / "1" / "model.onnx")
        toml = 'backends = ["tensorrt"]\n[batching]\nmax_rows = 1\n'
        (folder / "models" / "crashes" / "model.toml").write_text(toml)
        environ = {
            "MESH_DISCOVERY__ENABLED": "false",
            "MESH_NODE__STATE_DIR": str(folder / "state"),
            "PYTHONPATH": str(SITE),
            "FAKE_TRT_SEGFAULT_AT": str(WARM_UP_RUNS + 1),
        }
        with started("agent", processes.agent(folder / "models"), environ) as server:
            yield server


async def stream(client: Client, stop: asyncio.Event) -> list[float]:
    """Milliseconds of each answer at a fixed rate, from when it was due."""
    took: list[float] = []
    tasks: set[asyncio.Task[None]] = set()
    x = np.ones((1, 4096), np.float32)

    async def ask(due: float) -> None:
        await client.infer("steady", {"X": x})
        took.append((time.monotonic() - due) * 1e3)

    due = time.monotonic()
    while not stop.is_set():
        due += 1.0 / RATE
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        tasks.add(asyncio.create_task(ask(due)))
    await asyncio.gather(*tasks)
    return took


async def crash(client: Client) -> str:
    """Ask until it is quarantined; returns the reason."""
    while True:
        with contextlib.suppress(MeshError):
            await client.infer("crashes", {"X": np.ones((1, 16), np.float32)}, deadline_ms=1000)
        (row,) = [m for n in await client.nodes() for m in n["models"] if m["name"] == "crashes"]
        if row["state"] == "QUARANTINED":
            return str(row["reason"])
        await asyncio.sleep(0.02)


async def measure(seconds: float) -> tuple[list[Row], list[str]]:
    with agent() as server:
        async with Client(f"http://{server.address}") as client:
            await _for(client, 1.0)
            phases = {"alone": await _for(client, seconds)}
            stop = asyncio.Event()
            streaming = asyncio.create_task(stream(client, stop))
            began = time.monotonic()
            reason = await crash(client)
            crashing_s = time.monotonic() - began
            stop.set()
            phases["while it crashes"] = await streaming
            phases["after"] = await _for(client, seconds)
    rows: list[Row] = [_row(name, took, phases["alone"]) for name, took in phases.items()]
    notes = [machine(), f"{RATE:g} requests/s to steady; crashing took {crashing_s:.1f} s", f"quarantined: {reason}"]
    notes.append(f"the aim is a p99 of at most {AIM:g} times that alone")
    return rows, notes


async def _for(client: Client, seconds: float) -> list[float]:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await stream(client, stop)


def _row(name: str, took: list[float], alone: list[float]) -> dict[str, Any]:
    p50, p99 = (percentile(sorted(took), share) for share in (0.50, 0.99))
    return {
        "phase": name, "answers": len(took), "p50_ms": p50, "p99_ms": p99,
        "p99_ratio": p99 / percentile(sorted(alone), 0.99),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    rows, notes = asyncio.run(measure(arguments.seconds))
    show(rows, notes, as_json=arguments.json)


if __name__ == "__main__":
    main()
