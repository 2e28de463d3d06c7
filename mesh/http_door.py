"""The HTTP door of agent and router alike: OIP v2, with Starlette for everything but inference.

Translation only: a path and headers to a call of :class:`mesh.dataplane.Dataplane`, its answer or error back. Not here:
what a request means (``dataplane``), connections (``http_connection``), the other pages (``http_pages``).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

from mesh import hop, http_content, http_stream
from mesh.dataplane import Dataplane, unexpected
from mesh.errors import EncodingUnknown, MeshError
from mesh.hop import Reply
from mesh.http_answer import Answer
from mesh.http_asgi import asgi_app
from mesh.http_connection import Request
from mesh.http_head import lines
from mesh.http_pages import pages
from mesh.oip.documents import encode_error
from mesh.oip.parts import CONTENT_TYPE
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest
from mesh.values import ModelRef

INFER_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer(_stream)?")
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
            ref = ModelRef(match[1], match[2] or "")
            return await (self._infer(ref, request) if match[3] is None else self._stream(ref, request))
        except MeshError as error:
            return refusal(error)
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            return refusal(unexpected(head.path))

    async def _infer(self, ref: ModelRef, request: Request) -> Answer:
        arrived = time.monotonic()
        headers = request.head.headers
        want_load = _WANT in headers
        asked = await self._asked(ref, request)
        reply = await self._dataplane.infer(asked, arrived, self._proven(headers), want_load=want_load)
        head, parts = _reply_head(reply, want_load=want_load), reply.body.parts
        if (coding := http_content.wanted(headers.get(b"accept-encoding", b""))) and not want_load:
            packed = await http_content.compressed(parts, coding)
            if packed is not None:
                said = b"content-encoding: %b\r\nvary: accept-encoding\r\n" % coding.encode()
                head, parts = head + said, (packed,)
        return Answer(200, head, parts)

    async def _asked(self, ref: ModelRef, request: Request) -> InferRequest:
        """The body as a request: plain or compressed, with a head or as the bare value of the one input."""
        headers, limit = request.head.headers, self._dataplane.limits.max_body_bytes
        body = request.body
        if (encoding := headers.get(b"content-encoding")) is not None:
            with self._dataplane.requests.refusing():
                body = await http_content.plain(body, encoding.decode("latin-1").strip().lower(), limit)
        if headers.get(_HEADER_LENGTH) == b"0":
            return await self._dataplane.known.raw(ref, body, binary=True)
        return self._dataplane.decode(ref, body, headers.get(_HEADER_LENGTH))

    async def _stream(self, ref: ModelRef, request: Request) -> Answer:
        arrived = time.monotonic()
        headers = request.head.headers
        framed = CONTENT_TYPE in headers.get(b"accept", b"").decode("latin-1")
        asked = await self._asked(ref, request)
        if not framed:
            http_stream.as_json(asked)
        replies = self._dataplane.stream(asked, arrived, self._proven(headers), want_load=_WANT in headers)
        first: Reply | None
        if framed:
            first, answers = await http_stream.begun(replies)
            pieces = http_stream.frames(answers)
        else:
            first, coming = await http_stream.begun(http_stream.kept_alive(replies))
            pieces = http_stream.events(coming)
        said = {"content-type": CONTENT_TYPE if framed else http_stream.EVENTS, "cache-control": "no-store"}
        if first is not None:
            said |= hop.reply_headers(first, want_load=_WANT in headers) | hop.cascade_headers(first)
            said.pop(hop.HEADER_LENGTH, None)
        return Answer(200, _lines(said), (), pieces)

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
    if reply.cascade or reply.sequence:
        head += _lines(hop.cascade_headers(reply))
    return head + _lines(hop.load_headers(reply)) if want_load else head


def _lines(headers: Mapping[str, str]) -> bytes:
    return lines((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())


def refusal(error: MeshError) -> Answer:
    """The one error table: status of the class, text in the OIP error document."""
    headers = {hop.ERROR: error.code}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(math.ceil(error.retry_after_s), 1))
    if isinstance(error, EncodingUnknown):
        headers["accept-encoding"] = ", ".join(http_content.WINDOW_BITS)
    if error.load is not None:
        headers[hop.LOAD] = error.load.header()
    return Answer(error.status, _JSON + _lines(headers), (encode_error(error.text),))


def _not_post(request: Request) -> Answer:
    text = f"{request.head.method} is not for {request.head.path}, which takes POST"
    return Answer(405, _JSON + b"allow: POST\r\n", (encode_error(text),))
