"""The HTTP door of agent and router alike: OIP v2, with Starlette for everything but inference.

Translation only: a path and headers to a call of :class:`mesh.dataplane.Dataplane`, its answer or error back. Not here:
what a request means (``dataplane``), connections (``http_connection``), the other pages (``http_pages``).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

from mesh import hop
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import InvalidRequest, MeshError
from mesh.hop import Reply
from mesh.http_asgi import asgi_app
from mesh.http_connection import Answer, Request
from mesh.http_head import lines
from mesh.http_pages import pages
from mesh.oip.documents import encode_error
from mesh.oip.recent import Recent
from mesh.values import ModelRef

INFER_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_HEADER_LENGTH, _TOKEN, _WANT = hop.HEADER_LENGTH.encode(), hop.TOKEN.encode(), hop.WANT.encode()
_BINARY = b"content-type: application/octet-stream\r\n"
_JSON = b"content-type: application/json\r\n"

Headers = dict[bytes, bytes]

CACHED_HEADS = 1024
_heads: Recent[tuple[str, str, int, int | None], bytes] = Recent(CACHED_HEADS)


class HttpDoor:
    """An :data:`mesh.http_connection.App`."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._pages = asgi_app(pages(dataplane))

    async def __call__(self, request: Request) -> Answer:
        head = request.head
        match = INFER_PATH.fullmatch(head.path)
        try:
            if match is None:
                return await self._pages(request)
            if head.method != "POST":
                return _not_post(request)
            return await self._infer(ModelRef(match[1], match[2] or ""), request)
        except MeshError as error:
            return refusal(error)
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            return refusal(unexpected(head.path))

    async def _infer(self, ref: ModelRef, request: Request) -> Answer:
        arrived = time.monotonic()
        headers = request.head.headers
        want_load = _WANT in headers
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b""):
            raise InvalidRequest(f"Content-Encoding {encoding.decode('latin-1')!r} is not supported; send it plain")
        asked = self._dataplane.decode(ref, request.body, headers.get(_HEADER_LENGTH))
        reply = await self._dataplane.infer(asked, arrived, self._proven(headers), want_load=want_load)
        return Answer(200, _reply_head(reply, want_load=want_load), reply.body.parts)

    def _proven(self, headers: Headers) -> dict[str, str] | None:
        """The headers as text, if their sender proved to be of this mesh; of anybody else hop headers are ignored."""
        token = headers.get(_TOKEN)
        if token is None or self._dataplane.trust.verify_token(token.decode("latin-1")) is None:
            return None
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def _reply_head(reply: Reply, *, want_load: bool) -> bytes:
    body = reply.body
    where = (reply.node, reply.route, reply.hops, body.header_length)
    head = _heads.get(where)
    if head is None:
        head = _lines(hop.reply_headers(reply, want_load=False))
        head += _JSON if body.header_length is None else _BINARY
        _heads.put(where, head)
    if reply.cascade:
        head += _lines(hop.cascade_headers(reply))
    return head + _lines(hop.load_headers(reply)) if want_load else head


def _lines(headers: Mapping[str, str]) -> bytes:
    return lines((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())


def refusal(error: MeshError) -> Answer:
    """The one error table: status of the class, text in the OIP error document."""
    headers = {hop.ERROR: error.code}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(math.ceil(error.retry_after_s), 1))
    if error.load is not None:
        headers[hop.LOAD] = error.load.header()
    return Answer(error.status, _JSON + _lines(headers), (encode_error(error.text),))


def _not_post(request: Request) -> Answer:
    text = f"{request.head.method} is not for {request.head.path}, which takes POST"
    return Answer(405, _JSON + b"allow: POST\r\n", (encode_error(text),))
