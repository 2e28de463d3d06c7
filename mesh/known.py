"""Metadata of the mesh's models, asked for now and then, and what can be made with it: requests that are bare values.

Not here: asking (``inquiry``).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from mesh.deadline import Deadline
from mesh.errors import MeshError
from mesh.hop import Context
from mesh.inquiry import Inquiry
from mesh.lifecycle import Tasks
from mesh.oip.classification import as_classes, values_only
from mesh.oip.raw import raw_request
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest
from mesh.oip.wire import Buffer, WireBody
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import View

log = logging.getLogger(__name__)

DEADLINE_MS = 2_000.0
MOST = 256
FRESH_S = 10.0
"""A version's tensors never change, what is declared beside them may: labels have no part in the digest."""

Named = Callable[[WireBody], Awaitable[WireBody]]


class Known:
    """Of one node. A body is made a request inside ``refusing``; ``clock`` tells monotonic seconds."""

    def __init__(
        self,
        inquiry: Inquiry,
        view: View,
        refusing: Callable[[], AbstractContextManager[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inquiry = inquiry
        self._view = view
        self._refusing = refusing
        self._clock = clock
        self._metadata: Recent[ModelIdentity, tuple[float, ModelMetadata]] = Recent(MOST)

    async def metadata(self, identity: ModelIdentity, until: Deadline | None = None) -> ModelMetadata:
        """Asked for no longer than ``DEADLINE_MS``, and not beyond ``until``."""
        known, now = self._metadata.get(identity), self._clock()
        if known is not None and now < known[0] + FRESH_S:
            return known[1]
        deadline = Deadline.after_ms(DEADLINE_MS) if until is None else until.at_most_ms(DEADLINE_MS)
        found = await self._inquiry.metadata(identity, Context(deadline))
        self._metadata.put(identity, (now, found))
        return found

    async def raw(self, ref: ModelRef, body: Buffer, *, binary: bool) -> InferRequest:
        """A request of a body that is nothing but the value of the model's one input (:mod:`mesh.oip.raw`)."""
        with self._refusing():
            return raw_request(ref, await self.metadata(self._view.resolve(ref)), body, binary=binary)

    @contextlib.asynccontextmanager
    async def classes(
        self, request: InferRequest, identity: ModelIdentity, deadline: Deadline
    ) -> AsyncIterator[tuple[InferRequest, Named]]:
        """What to ask for in place of ``request``, and what makes its answer of an answer to that: with classes where
        it wants them (:mod:`mesh.oip.classification`). Their labels are asked for beside the run.
        """
        values = values_only(request)
        if values is request:
            yield request, _as_it_is
            return
        async with Tasks("labels") as beside:
            labels = beside.start(self._labels(identity, deadline), identity.name)

            async def named(body: WireBody) -> WireBody:
                return as_classes(body, request, await labels)

            yield values, named

    async def _labels(self, identity: ModelIdentity, deadline: Deadline) -> Mapping[str, Sequence[str]]:
        """Where nobody tells them they are those of before, or none: classes without names are still an answer."""
        try:
            return (await self.metadata(identity, deadline)).labels
        except MeshError as error:
            log.warning("nobody tells what the classes of %s are called: %s", identity.name, error.text)
            known = self._metadata.get(identity)
            return known[1].labels if known is not None else {}


async def _as_it_is(body: WireBody) -> WireBody:
    return body
