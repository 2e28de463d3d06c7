"""The bar of the gRPC rows: a bare grpc.aio server that answers every message with as many bytes as it was told.

Messages stay bytes: nothing is parsed but gRPC itself. ``python -m tests.bench.grpc_echo BYTES``. Not here: load
(``grpc_load``).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import uvloop

from tests.bench.grpc_load import STREAM, UNARY, UNLIMITED


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, sizes: list[int]) -> None:
        self._replies = [bytes(size) for size in sizes]
        """By the size of the request: small ones get the first, large ones the last."""

    def reply(self, message: bytes) -> bytes:
        return self._replies[0 if len(message) < 4096 else -1]

    async def unary(self, message: bytes, context: object) -> bytes:
        return self.reply(message)

    async def stream(self, messages: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for message in messages:
            yield self.reply(message)

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(self.unary)
        if call.method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self.stream)
        return None


async def serve(sizes: list[int]) -> None:
    server = grpc.aio.server(handlers=[Echo(sizes)], options=UNLIMITED)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve([int(size) for size in sys.argv[1:]]))
