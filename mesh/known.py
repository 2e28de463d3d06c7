"""Metadata of the models of the mesh, asked for once each, and what can be made with it: requests that are bare values.

Not here: asking (``inquiry``).
"""

from __future__ import annotations

from mesh.deadline import Deadline
from mesh.hop import Context
from mesh.inquiry import Inquiry
from mesh.oip.raw import raw_request
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest
from mesh.oip.wire import Buffer
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import View

DEADLINE_MS = 2_000.0
MOST = 256


class Known:
    """Of one node. A version never changes: its digest is part of what it is known by."""

    def __init__(self, inquiry: Inquiry, view: View) -> None:
        self._inquiry = inquiry
        self._view = view
        self._metadata: Recent[ModelIdentity, ModelMetadata] = Recent(MOST)

    async def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        found = self._metadata.get(identity)
        if found is None:
            found = await self._inquiry.metadata(identity, Context(Deadline.after_ms(DEADLINE_MS)))
            self._metadata.put(identity, found)
        return found

    async def raw(self, ref: ModelRef, body: Buffer, *, binary: bool) -> InferRequest:
        """A request of a body that is nothing but the value of the model's one input (:mod:`mesh.oip.raw`)."""
        return raw_request(ref, await self.metadata(self._view.resolve(ref)), body, binary=binary)
