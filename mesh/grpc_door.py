"""The gRPC door of agent and router alike: OIP's calls with Triton's extensions, health and reflection.

Translation only, as at the HTTP door: a message to a call of :class:`mesh.dataplane.Dataplane`, its answer or error
back. Not here: inference messages (``grpc_codec``, ``grpc_reply``), streams of requests (``grpc_stream``), listening
(``grpc_server``).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import msgspec

from mesh import hop
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import MeshError, ModelNotFound, Unsupported
from mesh.grpc_codec import read_parameters, read_request
from mesh.grpc_errors import code_of, trailers
from mesh.grpc_protocol import INFERENCE, Method, methods
from mesh.grpc_reply import encode_reply
from mesh.hop import Reply
from mesh.oip.request import InferRequest
from mesh.oip.wire import Limits
from mesh.values import ModelRef

Answer = Callable[[Any, Any], Awaitable[bytes | dict[str, Any]]]
"""A message and the call's context to the answer: serialized, or as a JSON-able document."""

CALLS = methods(INFERENCE)
NO_CUDA = "CUDA shared memory is not supported; system shared memory is"
NOT_HERE = {
    "CudaSharedMemoryStatus": NO_CUDA,
    "CudaSharedMemoryRegister": NO_CUDA,
    "TraceSetting": "tracing is not set by requests",
    "LogSettings": "logging is not set by requests: its level is a setting of the process",
}
"""Calls of Triton's that are answered with ``Unsupported``."""


class GrpcDoor:
    """Handlers by the name of the call."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self.answers: dict[str, Answer] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server,
            "ModelMetadata": self._model,
            "ModelInfer": self._infer,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "SystemSharedMemoryStatus": self._regions,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryUnregister": self._unregister_cuda,
        } | {name: _refused(text) for name, text in NOT_HERE.items()}

    async def _live(self, _: Any, context: Any) -> Any:
        return {"live": True}

    async def _ready(self, _: Any, context: Any) -> Any:
        return {"ready": self._dataplane.ready()}

    async def _model_ready(self, asked: Any, context: Any) -> Any:
        """False for a model that is nowhere, as Triton's clients expect after they had it unloaded."""
        try:
            return {"ready": self._dataplane.model_ready(_ref(asked))}
        except ModelNotFound:
            return {"ready": False}

    async def _server(self, _: Any, context: Any) -> Any:
        who = self._dataplane.identity
        return {"name": who.server_name, "version": who.version, "extensions": list(self._dataplane.extensions)}

    async def _model(self, asked: Any, context: Any) -> Any:
        return msgspec.to_builtins(await self._dataplane.metadata(_ref(asked)))

    async def _config(self, asked: Any, context: Any) -> Any:
        return {"config": await self._dataplane.config(_ref(asked))}

    async def _statistics(self, asked: Any, context: Any) -> Any:
        found = await self._dataplane.statistics(_ref(asked) if asked.name else None)
        return {"model_stats": msgspec.to_builtins(found)}

    async def _index(self, asked: Any, context: Any) -> Any:
        entries = await self._dataplane.repository(change=False).index()
        return {"models": [msgspec.to_builtins(e) for e in entries if e.state == "READY" or not asked.ready]}

    async def _load(self, asked: Any, context: Any) -> Any:
        parameters = read_parameters(asked.parameters)
        await self._dataplane.repository(change=True).load(asked.model_name, parameters)
        return {}

    async def _unload(self, asked: Any, context: Any) -> Any:
        await self._dataplane.repository(change=True).unload(asked.model_name)
        return {}

    async def _regions(self, asked: Any, context: Any) -> Any:
        regions = self._dataplane.shared_memory.status(asked.name)
        return {"regions": {region.name: msgspec.to_builtins(region) for region in regions}}

    async def _register(self, asked: Any, context: Any) -> Any:
        self._dataplane.shared_memory.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return {}

    async def _unregister(self, asked: Any, context: Any) -> Any:
        self._dataplane.shared_memory.unregister(asked.name)
        return {}

    async def _unregister_cuda(self, asked: Any, context: Any) -> Any:
        """All of them: there is none. Clients that only make sure of a clean start ask for it."""
        if asked.name:
            raise Unsupported(NO_CUDA)
        return {}

    async def _infer(self, message: Any, context: Any) -> Any:
        arrived = time.monotonic()
        request = self.read(message, context)
        reply = await self._dataplane.infer(request, arrived, None, want_load=False)
        context.set_trailing_metadata(where(reply))
        return encode_reply(reply)

    def read(self, message: Any, context: Any) -> InferRequest:
        """Of the deadline of the call and the ``timeout`` of the request the nearer one counts."""
        try:
            request = read_request(message, self._dataplane.limits)
        except Exception as error:
            self._dataplane.requests.failure(None, "application", error)
            raise
        left_s = context.time_remaining()
        if left_s is not None:
            left_us = max(int(left_s * 1e6), 1)
            request.parameters["timeout"] = min(request.timeout_us or left_us, left_us)
        return request


def unary(method: Method, answer: Answer, limits: Limits) -> grpc.RpcMethodHandler:
    """The handler of one call. Messages are parsed here, so that one that is none is a clear error too."""

    async def handle(data: bytes, context: Any) -> bytes:
        try:
            said = await answer(method.parse(data, limits), context)
            return said if isinstance(said, bytes) else method.serialized(said)
        except MeshError as error:
            failed = error
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            failed = unexpected(method.name)
        return await context.abort(code_of(failed), failed.text, trailers(failed))  # type: ignore[no-any-return]

    return grpc.unary_unary_rpc_method_handler(handle)


def _refused(text: str) -> Answer:
    async def refuse(asked: Any, context: Any) -> Any:
        raise Unsupported(text)

    return refuse


def where(reply: Reply) -> tuple[tuple[str, str], ...]:
    """Where it ran, as metadata beside the answer."""
    said = {hop.NODE: reply.node, hop.ROUTE: reply.route, hop.HOPS: str(reply.hops)}
    return tuple((said | hop.cascade_headers(reply)).items())


def _ref(asked: Any) -> ModelRef:
    return ModelRef(asked.name, asked.version)
