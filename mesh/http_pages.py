"""Every HTTP path but inference: OIP health, metadata and model repository, the mesh's report, node list and metrics.

On Starlette. Not here: the inference path (``http_door``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh import fleet, hop
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import InvalidRequest, MeshError, Unsupported
from mesh.messages import encode_report
from mesh.metrics import CONTENT_TYPE, Snapshot
from mesh.oip.documents import (
    encode_error,
    encode_model_metadata,
    encode_model_ready,
    encode_server_metadata,
)
from mesh.repository import ModelRepository
from mesh.values import ModelRef

MAX_CHALLENGE = 128

Page = Callable[[Request], Awaitable[Response]]


def pages(dataplane: Dataplane) -> Starlette:
    """The application behind the door's fast path."""
    handlers: Any = {MeshError: _on_mesh_error, HTTPException: _on_http_error, Exception: _on_unexpected}
    return Starlette(
        routes=[*_protocol(dataplane), *_repository(dataplane), *_mesh(dataplane)], exception_handlers=handlers
    )


def _protocol(dataplane: Dataplane) -> list[Route]:
    """The pages of OIP v2."""

    async def live(_: Request) -> Response:
        return Response(status_code=200)

    async def ready(_: Request) -> Response:
        return Response(status_code=200 if dataplane.ready() else 503)

    async def server(_: Request) -> Response:
        who = dataplane.identity
        return _json(encode_server_metadata(who.server_name, who.version, dataplane.extensions))

    async def model(request: Request) -> Response:
        proven = dataplane.trust.verify_token(request.headers.get(hop.TOKEN, ""))
        return _json(encode_model_metadata(await dataplane.metadata(_ref(request), hops=1 if proven else 0)))

    async def model_ready(request: Request) -> Response:
        ref = _ref(request)
        is_ready = dataplane.model_ready(ref)
        return _json(encode_model_ready(ref.name, is_ready), 200 if is_ready else 503)

    version = "/v2/models/{name}/versions/{version}"
    return [
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2", server),
        Route("/v2/models/{name}", model),
        Route(version, model),
        Route("/v2/models/{name}/ready", model_ready),
        Route(version + "/ready", model_ready),
    ]


def _repository(dataplane: Dataplane) -> list[Route]:
    """Triton's ``model_repository`` extension: what could be loaded, and loading it."""

    async def index(request: Request) -> Response:
        asked = await _object(request)
        entries = await dataplane.repository(change=False).index()
        return _json(msgspec.json.encode([e for e in entries if e.state == "READY" or not asked.get("ready")]))

    async def load(request: Request) -> Response:
        asked = await _object(request)
        if asked.get("parameters"):
            raise Unsupported("a model is loaded as its repository has it; parameters are not taken")
        await _changeable(request, dataplane).load(request.path_params["name"])
        return Response(status_code=200)

    async def unload(request: Request) -> Response:
        await _object(request)
        await _changeable(request, dataplane).unload(request.path_params["name"])
        return Response(status_code=200)

    return [
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", unload, methods=["POST"]),
    ]


def _changeable(request: Request, dataplane: Dataplane) -> ModelRepository:
    """A page in a browser of this host reaches its loopback too, and says where it comes from."""
    if "origin" in request.headers:
        raise Unsupported("models are not loaded and unloaded from web pages")
    return dataplane.repository(change=True)


async def _object(request: Request) -> dict[str, Any]:
    """The JSON object of a body; an empty body is an empty object."""
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from None


def _mesh(dataplane: Dataplane) -> list[Route]:
    """What neighbours and the CLI ask."""

    async def models(_: Request) -> Response:
        return _json(msgspec.json.encode({"models": dataplane.models()}))

    async def report(request: Request) -> Response:
        own = dataplane.report()
        challenge = request.headers.get(hop.CHALLENGE, "")[:MAX_CHALLENGE]
        headers = {}
        if challenge:
            headers[hop.PROOF_SITE] = dataplane.trust.answer(challenge, "site")
            headers[hop.PROOF_BUS] = dataplane.trust.answer(challenge, "bus")
        return _json(encode_report(msgspec.structs.replace(own, hop_key="")), headers=headers)

    async def nodes(_: Request) -> Response:
        return _json(msgspec.json.encode(fleet.nodes(dataplane.report(), dataplane.view.watcher.membership.nodes())))

    async def metrics(_: Request) -> Response:
        text = await asyncio.to_thread(Snapshot(dataplane.metrics()).text)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    return [
        Route("/metrics", metrics),
        Route("/mesh/v1/report", report),
        Route("/mesh/v1/nodes", nodes),
        Route("/mesh/v1/models", models),
    ]


def _ref(request: Request) -> ModelRef:
    return ModelRef(request.path_params["name"], request.path_params.get("version", ""))


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


async def _on_mesh_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)  # noqa: S101 - Starlette looks handlers up by class
    return _json(encode_error(error.text), error.status, {hop.ERROR: error.code})


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette looks handlers up by class
    text = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    headers = dict(error.headers or {})
    return _json(encode_error(text.get(error.status_code, error.detail)), error.status_code, headers)


async def _on_unexpected(request: Request, _: Exception) -> Response:
    return await _on_mesh_error(request, unexpected(request.url.path))
