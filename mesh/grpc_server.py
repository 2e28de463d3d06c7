"""Listening for gRPC: the server of grpc.aio, its limits and its drain.

Not here: what a call means (``grpc_door``, ``grpc_stream``, ``grpc_health``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from mesh.addresses import join, parse
from mesh.dataplane import Dataplane
from mesh.errors import ConfigError
from mesh.grpc_door import CALLS, GrpcDoor, unary
from mesh.grpc_health import Health, reflection
from mesh.grpc_stream import METHOD, Stream
from mesh.settings import GrpcSettings

PING_AFTER_S, PING_S = 15.0, 15.0
"""Seconds without a sign from a caller whose calls go on until it is asked whether it is there, and that it has to
answer: a box that lost its power closes no connection, and a silent stream sends it nothing."""
CLOSE_S = 1.0
"""Longest that what is left after the grace may take to be gone."""


class GrpcServer:
    """Serves while entered; leaving takes no new call, lets running ones finish for ``grace_s`` and cuts the rest."""

    def __init__(self, dataplane: Dataplane, settings: GrpcSettings, grace_s: float) -> None:
        self._dataplane = dataplane
        self._listen = settings.listen
        self._max_message_bytes = settings.max_message_bytes
        self._grace_s = grace_s
        self._leaving = asyncio.Event()
        self.address = ""
        """HOST:PORT as bound, the port real."""

    async def __aenter__(self) -> GrpcServer:
        options = [
            ("grpc.max_receive_message_length", self._max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", int(PING_AFTER_S * 1e3)),
            ("grpc.keepalive_timeout_ms", int(PING_S * 1e3)),
            ("grpc.http2.ping_timeout_ms", int(PING_S * 1e3)),  # which of the two counts depends on its version
            ("grpc.http2.max_pings_without_data", 0),
        ]
        self._server = grpc.aio.server(handlers=[_Calls(self._handlers())], options=options)
        host, _ = parse(self._listen)
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError:
            raise ConfigError(f"cannot listen on {self._listen}: choose another address with --grpc") from None
        await self._server.start()
        self.address = join(host, port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving.set()  # streams without end would last for the whole grace
        await self._server.stop(self._grace_s)
        await self._server.wait_for_termination(CLOSE_S)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        door, limits = GrpcDoor(self._dataplane), self._dataplane.limits
        handlers = {CALLS[name].path: unary(CALLS[name], answer, limits) for name, answer in door.answers.items()}

        async def stream(messages: AsyncIterator[bytes], context: Any) -> None:
            await Stream(door, self._dataplane, context, self._leaving).serve(messages)

        handlers[METHOD.path] = grpc.stream_stream_rpc_method_handler(stream)
        return handlers | Health(self._dataplane.ready, self._leaving).handlers() | reflection(self._leaving)


class _Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handlers by path; bytes in and out."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._handlers = handlers

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(call.method)
