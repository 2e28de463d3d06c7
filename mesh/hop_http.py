"""Another door over HTTP/1.1 keep-alive: the LAN hop, the probe, and the plain calls that the SDK and the CLI make.

The only importer of aiohttp. Not here: which door to ask (``router``, ``neighbours``), what headers mean (``hop``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from mesh import hop
from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    MeshError,
    NodeLost,
    NodeUnreachable,
    ProtocolError,
    from_wire,
)
from mesh.hop import Context, OwnLoad, Question, Reply, Target, no_load
from mesh.messages import MAX_REPORT_BYTES, decode_report
from mesh.neighbours import Answer
from mesh.oip.documents import decode_error
from mesh.oip.parts import CONTENT_TYPE, Frames
from mesh.oip.request import InferRequest
from mesh.oip.wire import WireBody
from mesh.values import ModelIdentity, ModelRef


class _Body(Payload):
    """A body in parts, written one after the other without joining them."""

    def __init__(self, body: WireBody) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._parts = body.parts
        self._size = body.nbytes

    async def write(self, writer: AbstractStreamWriter) -> None:
        for part in self._parts:
            await writer.write(part)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("tensors are not text")


class HttpClient:
    """A pool of keep-alive connections to other doors; an async context manager.

    With every hop goes the ``load`` of this node.
    """

    def __init__(
        self,
        node: str,
        *,
        load: OwnLoad = no_load,
        connect_timeout_s: float = 1.0,
        user_agent: str = "inference-mesh",
    ) -> None:
        self._node = node
        self._load = load
        self._connect_s = connect_timeout_s
        self._agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._reading: set[aiohttp.ClientResponse] = set()

    async def __aenter__(self) -> HttpClient:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s)
        headers = {"User-Agent": self._agent, "Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers, auto_decompress=False, trust_env=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for answer in self._reading:  # aiohttp forgets them when it closes, and whoever reads would wait on
            answer.content.set_exception(aiohttp.ClientConnectionError("closed"))
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        """The LAN hop (``mesh.hop.Hop``)."""
        headers = hop.request_headers(request, identity, context, self._node, up_ms, self._load(identity))
        headers[hop.TOKEN] = target.token
        path = model_path(ModelRef(identity.name, identity.version)) + "/infer"
        status, answered, body = await self.call(
            "POST", target.address, path, headers=headers, body=request.body(), deadline=context.deadline
        )
        if status != 200:
            raise read_error(status, answered, body)
        reply = hop.read_reply(body, answered, target.route)
        if reply.hops <= context.hops:  # our token is for the process before it: it chose the bytes by itself
            raise NodeLost(f"the door at {target.address} is another process's by now, and did not take this as a hop")
        return reply

    async def stream(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> AsyncGenerator[Reply, None]:
        headers = hop.request_headers(request, identity, context, self._node, up_ms, self._load(identity))
        headers[hop.TOKEN] = target.token
        async with contextlib.aclosing(
            self.stream_of(target.address, identity, headers, request.body(), context.deadline)
        ) as answers:
            async for answered, body in answers:
                reply = hop.stream_reply(body, answered, target.route)
                if reply.hops <= context.hops:  # as in infer
                    raise NodeLost(f"the door at {target.address} is another process's by now, and took it as its own")
                yield reply

    async def stream_of(
        self, address: str, identity: ModelIdentity, headers: dict[str, str], body: WireBody, deadline: Deadline
    ) -> AsyncGenerator[tuple[dict[str, str], WireBody], None]:
        """Each answer of a stream with the headers it began with, the load only beside the first.

        Raises as :meth:`call`, and what the stream says. Whoever does not read on stops the door from sending.
        """
        path = model_path(ModelRef(identity.name, identity.version)) + "/infer_stream"
        headers = headers | {"Accept": CONTENT_TYPE}
        async with self._exchange("POST", address, path, headers, deadline, body) as (answer, answered):
            if answer.status != 200:
                raise read_error(answer.status, answered, await answer.read())
            frames = Frames()
            async for chunk in answer.content.iter_any():
                for whole in frames.feed(chunk):
                    yield answered, whole
                    answered.pop(hop.LOAD, None)
                if frames.error is not None:
                    raise hop.theirs(frames.error)
            if not frames.ended:
                raise NodeLost(f"the door at {address} broke off a stream")

    async def ask(self, target: Target, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        method, path = question_path(what, ref)
        headers = {hop.TOKEN: target.token, hop.HOPS: "1"}
        wire = WireBody((body,), None) if body else None
        status, answered, payload = await self.call(
            method, target.address, path, headers=headers, body=wire, deadline=deadline
        )
        if status != 200:
            raise read_error(status, answered, payload)
        return payload

    async def probe(self, address: str, challenge: str, timeout_s: float) -> Answer:
        """Ask a door who it is (``mesh.neighbours.Prober``)."""
        started = time.monotonic()
        asked, deadline = {hop.CHALLENGE: challenge}, Deadline(started + timeout_s)
        status, headers, body = await self.call(
            "GET", address, "/mesh/v1/report", headers=asked, deadline=deadline, max_bytes=MAX_REPORT_BYTES
        )
        if status != 200:
            raise ProtocolError(f"the door at {address} answers a report with status {status}")
        rtt_ms = (time.monotonic() - started) * 1e3
        site, bus = headers.get(hop.PROOF_SITE, ""), headers.get(hop.PROOF_BUS, "")
        return Answer(decode_report(body), site, bus, rtt_ms)

    async def get_json(self, address: str, path: str, deadline: Deadline) -> bytes:
        """Body of a plain GET; raises the error that the door answered."""
        status, headers, body = await self.call("GET", address, path, headers={}, deadline=deadline)
        if status != 200:
            raise read_error(status, headers, body)
        return body

    async def call(
        self,
        method: str,
        address: str,
        path: str,
        *,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: WireBody | None = None,
        max_bytes: int | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One exchange; header names of the answer are lower case.

        Raises ``NodeUnreachable`` (not sent), ``NodeLost`` (broken after sending), ``DeadlineExceeded``, and
        ``ProtocolError`` for an answer over ``max_bytes``, which strangers must be asked with.
        """
        async with self._exchange(method, address, path, headers, deadline, body) as (answer, answered):
            payload = await (answer.read() if max_bytes is None else _read_at_most(answer, max_bytes))
            return answer.status, answered, payload

    @contextlib.asynccontextmanager
    async def _exchange(
        self,
        method: str,
        address: str,
        path: str,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: WireBody | None,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, dict[str, str]]]:
        """An answer of which the head was read, and its headers; whatever breaks inside is named."""
        if self._session is None:
            raise NodeUnreachable("the HTTP client is closed")
        left_s = deadline.left_s()
        if left_s <= 0:
            deadline.check()
        # aiohttp's own timer: asyncio.wait_for would cost a task for each exchange.
        timeout = aiohttp.ClientTimeout(total=left_s, sock_connect=self._connect_s)
        data = _Body(body) if body is not None else None
        try:
            async with self._session.request(
                method, f"http://{address}{path}", headers=headers, data=data, timeout=timeout, allow_redirects=False
            ) as answer:
                self._reading.add(answer)
                try:
                    yield answer, {k.lower(): v for k, v in answer.headers.items()}
                finally:
                    self._reading.discard(answer)
        except aiohttp.ConnectionTimeoutError:
            raise NodeUnreachable(f"the door at {address} does not take the connection") from None
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"the door at {address} did not answer within the deadline") from None
        except aiohttp.ClientConnectorError as error:
            raise NodeUnreachable(f"the door at {address} cannot be reached: {_reason(error.os_error)}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise NodeLost(f"the connection to the door at {address} broke ({type(error).__name__})") from None


def _reason(error: OSError) -> str:
    """In the system's words; asyncio's own say "Connect call failed" and repeat the address."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or "no reason given"  # of name resolution, whose numbers are its own


async def _read_at_most(answer: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > most:
            raise ProtocolError(f"the door at {answer.url.host}:{answer.url.port} answers more than {most} bytes")
    return bytes(body)


def model_path(ref: ModelRef) -> str:
    version = f"/versions/{quote(ref.version)}" if ref.version else ""
    return f"/v2/models/{quote(ref.name)}{version}"


def question_path(what: Question, ref: ModelRef) -> tuple[str, str]:
    """Method and path of the page that answers it."""
    if what == "index":
        return "POST", "/v2/repository/index"
    if what in hop.CHANGES:
        return "POST", f"/v2/repository/models/{quote(ref.name)}/{what}"
    if what == "statistics":
        return "GET", (model_path(ref) if ref.name else "/v2/models") + "/stats"
    return "GET", model_path(ref) + ("/config" if what == "config" else "")


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> MeshError:
    """The error a door answered, rebuilt from its code or, at a plain OIP server, from its status."""
    retry_after = headers.get("retry-after")
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    text = decode_error(body) or f"the door answered with status {status}"
    return hop.answered(from_wire(headers.get(hop.ERROR, ""), text, status, seconds), headers)
