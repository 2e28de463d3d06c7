"""Every HTTP path but inference: OIP health and metadata, the mesh's report, node list and metrics.

On Starlette. Not here: the inference path (``http_door``), Triton's extensions (``triton_pages``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh import fleet, hop, openapi
from mesh.dataplane import Dataplane
from mesh.messages import encode_report
from mesh.metrics import CONTENT_TYPE, Snapshot
from mesh.oip.documents import (
    encode_error,
    encode_model_ready,
    encode_server_metadata,
)
from mesh.triton_pages import as_json, question, ref_of, triton_routes

MAX_CHALLENGE = 128

Page = Callable[[Request], Awaitable[Response]]


def pages(dataplane: Dataplane) -> Starlette:
    """The application behind the door's fast path, which answers for the errors that its pages raise."""
    return Starlette(
        routes=[*triton_routes(dataplane), *_protocol(dataplane), *_mesh(dataplane)],
        exception_handlers={HTTPException: _on_http_error},
    )


def _protocol(dataplane: Dataplane) -> list[Route]:
    """The pages of OIP v2."""

    async def live(_: Request) -> Response:
        return as_json(b'{"live":true}')

    async def ready(_: Request) -> Response:
        is_ready = dataplane.ready()  # the status is what counts; KServe's client reads the body too
        return as_json(b'{"ready":true}' if is_ready else b'{"ready":false}', 200 if is_ready else 503)

    async def server(_: Request) -> Response:
        who = dataplane.identity
        return as_json(encode_server_metadata(who.server_name, who.version, dataplane.extensions))

    async def model_ready(request: Request) -> Response:
        ref = ref_of(request)
        is_ready = dataplane.model_ready(ref)
        return as_json(encode_model_ready(ref.name, is_ready), 200 if is_ready else 503)

    version, model = "/v2/models/{name}/versions/{version}", question(dataplane, "metadata")
    return [
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2", server),
        Route("/v2/models/{name}", model),
        Route(version, model),
        Route("/v2/models/{name}/ready", model_ready),
        Route(version + "/ready", model_ready),
    ]


def _mesh(dataplane: Dataplane) -> list[Route]:
    """What neighbours and the CLI ask."""

    async def models(_: Request) -> Response:
        return as_json(msgspec.json.encode({"models": dataplane.models()}))

    async def report(request: Request) -> Response:
        own = dataplane.report()
        challenge = request.headers.get(hop.CHALLENGE, "")[:MAX_CHALLENGE]
        headers = {}
        if challenge:
            headers[hop.PROOF_SITE] = dataplane.trust.answer(challenge, "site")
            headers[hop.PROOF_BUS] = dataplane.trust.answer(challenge, "bus")
        return as_json(encode_report(msgspec.structs.replace(own, hop_key="")), headers=headers)

    async def nodes(_: Request) -> Response:
        return as_json(msgspec.json.encode(fleet.nodes(dataplane.report(), dataplane.view.watcher.membership.nodes())))

    async def metrics(_: Request) -> Response:
        text = await asyncio.to_thread(Snapshot(dataplane.metrics()).text)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def described(_: Request) -> Response:
        return as_json(openapi.encoded(dataplane.identity.version))

    return [
        Route("/openapi.json", described),
        Route("/metrics", metrics),
        Route("/mesh/v1/report", report),
        Route("/mesh/v1/nodes", nodes),
        Route("/mesh/v1/models", models),
    ]


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette looks handlers up by class
    text = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    headers = dict(error.headers or {})
    return as_json(encode_error(text.get(error.status_code, error.detail)), error.status_code, headers)
