"""The pages of Triton's extensions but inference: statistics, configuration, repository, shared memory.

Not here: OIP's own pages (``http_pages``), what is answered (``questions``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh import hop
from mesh.dataplane import Dataplane
from mesh.errors import InvalidRequest, NotFound, Unsupported
from mesh.oip.wire import quoted
from mesh.questions import answer, json_object
from mesh.repository import ModelRepository
from mesh.values import ModelRef

Page = Callable[[Request], Awaitable[Response]]
NO_CUDA = "CUDA shared memory is not supported; system shared memory is"


def triton_routes(dataplane: Dataplane) -> list[Route]:
    """To stand before the pages of models: ``/v2/models/stats`` is no model's."""
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    statistics, config = question(dataplane, "statistics"), question(dataplane, "config")
    index, load, unload = (question(dataplane, what) for what in ("index", "load", "unload"))
    return [
        Route("/v2/models/stats", statistics),
        Route(model + "/stats", statistics),
        Route(version + "/stats", statistics),
        Route(model + "/config", config),
        Route(version + "/config", config),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", unload, methods=["POST"]),
        *_shared_memory(dataplane),
        *_cuda_shared_memory(),
    ]


def question(dataplane: Dataplane, what: hop.Question) -> Page:
    """The page that answers one (``questions``)."""

    async def page(request: Request) -> Response:
        token = request.headers.get(hop.TOKEN, "")
        caller = dataplane.trust.verify_token(token)

        def repository(change: bool) -> ModelRepository:
            if caller is not None:
                return dataplane.repositories.for_node(caller, dataplane.trust.kind(token), change=change)
            if change and "origin" in request.headers:  # a browser on this host reaches its loopback too, and says so
                raise Unsupported("models are not loaded and unloaded from web pages")
            return dataplane.repository(change=change)

        ref, body = ref_of(request), await request.body()
        hops = 0 if caller is None else 1
        return as_json(await answer(dataplane, what, ref, body, hops=hops, repository=repository))

    return page


def _shared_memory(dataplane: Dataplane) -> list[Route]:
    memory, path = dataplane.shared_memory, "/v2/systemsharedmemory"

    async def status(request: Request) -> Response:
        return as_json(msgspec.json.encode(memory.status(_region(request))))

    async def register(request: Request) -> Response:
        asked = json_object(await request.body())
        key, offset, size = asked.get("key"), asked.get("offset", 0), asked.get("byte_size")
        if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
            raise InvalidRequest("a shared memory region needs 'key', a text, and 'byte_size' and 'offset', integers")
        _refuse_pages(request)
        memory.register(_region(request), key, offset, size)
        return as_json(b"")

    async def unregister(request: Request) -> Response:
        _refuse_pages(request)
        memory.unregister(_region(request))
        return as_json(b"")

    return [
        Route(path + "/status", status),
        Route(path + "/region/{region}/status", status),
        Route(path + "/region/{region}/register", register, methods=["POST"]),
        Route(path + "/unregister", unregister, methods=["POST"]),
        Route(path + "/region/{region}/unregister", unregister, methods=["POST"]),
    ]


def _cuda_shared_memory() -> list[Route]:
    """There never are regions: nothing to list or to unregister, and nothing is registered."""
    path = "/v2/cudasharedmemory"

    async def status(request: Request) -> Response:
        if region := _region(request):
            raise NotFound(f"Unable to find cuda shared memory region: {quoted(region)}")
        return as_json(b"[]")

    async def register(_: Request) -> Response:
        raise Unsupported(NO_CUDA)

    async def unregister(_: Request) -> Response:
        return as_json(b"")

    return [
        Route(path + "/status", status),
        Route(path + "/region/{region}/status", status),
        Route(path + "/region/{region}/register", register, methods=["POST"]),
        Route(path + "/unregister", unregister, methods=["POST"]),
        Route(path + "/region/{region}/unregister", unregister, methods=["POST"]),
    ]


def _refuse_pages(request: Request) -> None:
    if "origin" in request.headers:
        raise Unsupported("shared memory is not for web pages")


def _region(request: Request) -> str:
    return str(request.path_params.get("region", ""))


def ref_of(request: Request) -> ModelRef:
    """The model that a path names, of an empty name where it names none."""
    return ModelRef(request.path_params.get("name", ""), request.path_params.get("version", ""))


def as_json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer; one without a body has no type."""
    return Response(body, status, headers, media_type="application/json" if body else None)
