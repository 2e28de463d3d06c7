"""Metadata of the mesh's models, asked for now and then, and what can be made with it: requests that are bare values.

Not here: asking (``inquiry``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mesh.deadline import Deadline
from mesh.hop import Context
from mesh.inquiry import Inquiry
from mesh.oip.classification import as_classes
from mesh.oip.raw import raw_request
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest
from mesh.oip.wire import Buffer, WireBody
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import View

DEADLINE_MS = 2_000.0
MOST = 256
FRESH_S = 10.0
"""A version's tensors never change, what is declared beside them may: labels have no part in the digest."""


class Known:
    """Of one node. ``refused`` is told of each body that made no request; ``clock`` tells monotonic seconds."""

    def __init__(
        self,
        inquiry: Inquiry,
        view: View,
        refused: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inquiry = inquiry
        self._view = view
        self._refused = refused
        self._clock = clock
        self._metadata: Recent[ModelIdentity, tuple[float, ModelMetadata]] = Recent(MOST)

    async def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        known, now = self._metadata.get(identity), self._clock()
        if known is not None and now < known[0] + FRESH_S:
            return known[1]
        found = await self._inquiry.metadata(identity, Context(Deadline.after_ms(DEADLINE_MS)))
        self._metadata.put(identity, (now, found))
        return found

    async def raw(self, ref: ModelRef, body: Buffer, *, binary: bool) -> InferRequest:
        """A request of a body that is nothing but the value of the model's one input (:mod:`mesh.oip.raw`)."""
        try:
            return raw_request(ref, await self.metadata(self._view.resolve(ref)), body, binary=binary)
        except Exception as error:
            self._refused(error)
            raise

    async def classes(self, body: WireBody, request: InferRequest, identity: ModelIdentity) -> WireBody:
        """An answer with classes where ``request`` wants them, by their labels (:mod:`mesh.oip.classification`)."""
        return as_classes(body, request, (await self.metadata(identity)).labels)
