"""The one seam behind every door, whatever its protocol: health, metadata, infer. It knows no HTTP and no bus.

A door translates its protocol to these calls and their errors back by the table in ``mesh.errors``; everything that a
request means is decided from here on. Not here: protocol framing (``http_door``, ``bus_door``), routing (``router``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mesh import hop
from mesh.cascade import Cascades
from mesh.deadline import MAX_MS, Deadline
from mesh.errors import Draining, Internal, InvalidRequest, MeshError, Unsupported
from mesh.heartbeat import Reporter
from mesh.hop import Context, Reply
from mesh.lifecycle import within
from mesh.messages import Load, Report
from mesh.metrics import Measured
from mesh.oip.request import InferRequest, decode_request
from mesh.oip.wire import Limits, quoted
from mesh.repository import ModelRepository
from mesh.router import Router
from mesh.tally import Caller, Requests
from mesh.trust import Trust
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import View

log = logging.getLogger(__name__)

EXTENSIONS = ("binary_tensor_data",)
METADATA_DEADLINE_MS = 2_000.0


@dataclass(frozen=True, slots=True)
class Identity:
    """How this process names itself at its doors."""

    node: str
    server_name: str
    version: str


class Dataplane:
    """What a door offers. ``still_coming`` names the models that are on their way."""

    def __init__(
        self,
        *,
        identity: Identity,
        router: Router,
        view: View,
        trust: Trust,
        reporter: Reporter,
        still_coming: Callable[[], tuple[str, ...]],
        deadline_ms: float,
        limits: Limits,
        repository: ModelRepository | None = None,
        repository_open: bool = False,
        metrics: Callable[[], Iterable[Measured]] = tuple,
    ) -> None:
        self.identity = identity
        self.view = view
        self.trust = trust
        self._reporter = reporter
        self.limits = limits
        self.metrics = metrics
        """Everything that is measured on this node, as of now."""
        self.requests = Requests(view.held)
        self._repository = repository
        self._repository_open = repository_open
        self._router = router
        self.cascades = Cascades(router.infer, view)
        self._still_coming = still_coming
        self._deadline_ms = deadline_ms
        self.serving = True
        """False once the door drains."""
        self.in_flight = 0
        self._idle = asyncio.Event()

    def report(self) -> Report:
        """This node's own report as of now."""
        return self._reporter.report()

    def ready(self) -> bool:
        """The door serves, and no model it was told to load is still on its way."""
        return self.serving and not self._still_coming()

    def models(self) -> list[str]:
        """Names of the models that are held anywhere this node can see."""
        views = self.view.watcher.membership.nodes()
        seen = {m.name for v in views if v.state in ("ready", "suspect") for m in v.report.models}
        return sorted(seen | {m.name for m in self.report().models})

    async def metadata(self, ref: ModelRef, hops: int = 0) -> ModelMetadata:
        context = Context(Deadline.after_ms(METADATA_DEADLINE_MS), hops)
        return await self._router.metadata(self.view.resolve(ref), context)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of OIP, as the server metadata lists them."""
        offered = self._repository is not None and self._repository_open
        return (*EXTENSIONS, "model_repository") if offered else EXTENSIONS

    def repository(self, *, change: bool) -> ModelRepository:
        """This node's models by name; raises ``Unsupported`` where there are none, or this door may not ``change``
        them."""
        if self._repository is None:
            raise Unsupported("this node has no model repository; ask an agent")
        if change and not self._repository_open:
            raise Unsupported("models are loaded and unloaded at a loopback door only, or with http.repository = true")
        return self._repository

    def model_ready(self, ref: ModelRef) -> bool:
        return self.view.ready(ref)

    def decode(
        self, ref: ModelRef, body: bytes | bytearray | memoryview, header_length: str | bytes | None
    ) -> InferRequest:
        """Body and ``Inference-Header-Content-Length`` to a request; raises ``InvalidRequest``."""
        try:
            return decode_request(ref.name, ref.version, body, _count(header_length), self.limits)
        except Exception as error:
            self.requests.failure(None, "application", error)
            raise

    async def infer(
        self, request: InferRequest, arrived: float, hop_headers: Mapping[str, str] | None, *, want_load: bool
    ) -> Reply:
        """Route and run a request that arrived at monotonic second ``arrived``.

        ``hop_headers`` are those of a proven caller, None for an application (DESIGN D4). With ``want_load`` the reply,
        or the error, says how busy the node that answers is.
        """
        caller: Caller = "application" if hop_headers is None else "node"
        identity: ModelIdentity | None = None
        try:
            digest = hop_headers.get(hop.DIGEST, "") if hop_headers is not None else ""
            identity = self.view.resolve(ModelRef(request.model, request.version), digest)
            context = self._context(request, identity, arrived, hop_headers)
            if context.load is not None and context.caller:
                self.view.watcher.observe(context.caller, context.load, identity)
            reply = await self._route(request, identity, context)
        except BaseException as error:
            self.requests.failure(identity, caller, error)
            if isinstance(error, MeshError):  # not the load of a node that it was passed on to
                error.load = self.load(identity) if want_load else None
            raise
        seconds = time.monotonic() - arrived
        self.requests.answer(identity, reply.route, caller, seconds)
        if want_load:
            reply.time_ms = seconds * 1e3
            if reply.route == "local":
                reply.load = self.load(identity)
        return reply

    def load(self, identity: ModelIdentity | None) -> Load | None:
        """How busy this node is, seen from a model, None being one that nobody knows; None where it runs no models."""
        local = self.view.local
        if local is None:
            return None
        return self._reporter.load(None if identity is None else local.load(identity))

    async def _route(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        context.deadline.check()
        if not self.serving and context.hops > 0:
            raise Draining(f"node {self.identity.node} is draining")
        self.in_flight += 1
        try:
            return await self.cascades.infer(request, identity, context)
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    def _context(
        self, request: InferRequest, identity: ModelIdentity, arrived: float, headers: Mapping[str, str] | None
    ) -> Context:
        """Deadline and hops: what travelled, else the request's own timeout, the model's, the setting (DESIGN D10)."""
        timeout_us = request.timeout_us
        budget_ms = timeout_us / 1e3 if timeout_us else self.view.default_deadline_ms(identity) or self._deadline_ms
        deadline = Deadline(arrived + min(budget_ms, MAX_MS) / 1e3)
        return Context(deadline) if headers is None else hop.read_context(headers, deadline)

    async def idle(self, timeout_s: float) -> int:
        """Wait until no request is in flight; how many still are after ``timeout_s`` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, self._until_idle())
        return self.in_flight

    async def _until_idle(self) -> None:
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()


def _count(header_length: str | bytes | None) -> int | None:
    """Of bytes, as the header gives it."""
    if header_length is None:
        return None
    if not header_length.isdigit() or not header_length.isascii():
        text = header_length if isinstance(header_length, str) else header_length.decode("latin-1")
        raise InvalidRequest(f"Inference-Header-Content-Length must be a count of bytes, got {quoted(text)}")
    return int(header_length[:20])


def unexpected(what: str) -> Internal:
    """Log the exception being handled under an id, and tell the caller only that id."""
    log_id = secrets.token_hex(4)
    log.exception("unexpected error %s while answering for %s", log_id, what)
    return Internal(f"internal error, see the log of this node under {log_id}")
