"""The doors that a node listens at, opened and closed together: HTTP always, gRPC where its settings say so.

Not here: what the doors do (``http_server``, ``grpc_server``), the bus (``node``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mesh.addresses import is_loopback, parse
from mesh.dataplane import Dataplane
from mesh.http_door import HttpDoor
from mesh.http_server import HttpServer
from mesh.settings import MeshSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """HOST:PORT of each door as bound; ``grpc`` is empty where there is none."""

    http: str
    grpc: str = ""

    @property
    def grpc_port(self) -> int:
        """0 where there is none."""
        return parse(self.grpc)[1] if self.grpc else 0


def on_this_host_only(settings: MeshSettings) -> bool:
    """Whether no other host reaches any of the doors."""
    return all(is_loopback(listen) for listen in (settings.http.listen, settings.grpc.listen) if listen)


@contextlib.asynccontextmanager
async def listening(dataplane: Dataplane, settings: MeshSettings) -> AsyncIterator[Listening]:
    """Raises ``ConfigError`` where an address is taken."""
    http, grace_s = settings.http, settings.http.grace_s
    door = HttpServer(HttpDoor(dataplane), http.listen, max_body_bytes=http.max_body_bytes, grace_s=grace_s)
    async with door:
        if not settings.grpc.listen:
            yield Listening(door.address)
            return
        from mesh.grpc_server import GrpcServer  # whoever opens no gRPC door does not pay for the library

        async with GrpcServer(dataplane, settings.grpc, grace_s) as server:
            log.info("gRPC at %s", server.address)
            yield Listening(door.address, server.address)
