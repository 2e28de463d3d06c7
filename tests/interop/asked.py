"""The doors that other people's clients ask: of an agent alone, or of a router before one, as real processes.

Not here: who asks (``triton_examples``, ``other_clients``, ``tests.system.test_interop``).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from mesh.cluster import Cluster
from mesh.nats_server import free_port

HOST = "127.0.0.1"
KINDS = ("agent", "router")
ENVIRON = {
    "MESH_DISCOVERY__ENABLED": "false",
    "MESH_HTTP__SERVER_NAME": "triton",
    "MESH_HTTP__SHARED_MEMORY": "true",
    "MESH_HTTP__REPOSITORY": "true",
}


@dataclass(frozen=True)
class Asked:
    """HOST:PORT of both doors of one process."""

    http: str
    grpc: str


@contextlib.asynccontextmanager
async def asked(kind: str, models: Path, *, http: int = 0, grpc: int = 0) -> AsyncIterator[Asked]:
    """A mesh whose ``kind`` of door is ready for every model; ports of 0 are free ones."""
    at = f"{HOST}:{grpc or free_port(HOST)}"
    environ, listen = ENVIRON | {"MESH_GRPC__LISTEN": at}, f"{HOST}:{http}"
    with tempfile.TemporaryDirectory() as run_dir:
        async with Cluster(Path(run_dir), agents=ENVIRON) as cluster:
            if kind == "agent":
                door = await cluster.agent("agent", models, listen=listen, environ=environ)
            else:
                agent = await cluster.agent("agent", models)
                door = await cluster.router(listen=listen, environ=environ)
                await agent.until_ready()
            await door.until_ready()
            await cluster.settled(door, ["agent"])
            yield Asked(door.address, at)
