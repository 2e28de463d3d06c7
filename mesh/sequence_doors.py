"""Doors any of which may be given the next step, as queue groups do: where a sequence begins, the others forget what
they held under its id.

Else a step that comes to the wrong door could meet an older sequence there, and be taken. Told before the first step
is answered, on the connection that requests come by, so that every door hears of it before the step that follows. Not
here: the sequences (``sequencer``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from mesh import subjects
from mesh.bus import Bus, BusMessage
from mesh.oip.request import InferRequest
from mesh.sequence_steps import Step
from mesh.sequencer import Sequencer

log = logging.getLogger(__name__)


class _Begun(msgspec.Struct, array_like=True):
    node: str
    client: str
    model: str
    id: int | str


_decoder = msgspec.json.Decoder(_Begun)


class SequenceDoors:
    """Of one node: ``bus`` is the connection that its requests come by."""

    def __init__(self, bus: Bus, node: str, sequencer: Sequencer) -> None:
        self._bus = bus
        self._node = node
        self._sequencer = sequencer

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        subscription = await self._bus.subscribe(subjects.sequence_begun(), self._on_begun)
        try:
            yield
        finally:
            await subscription.unsubscribe()

    async def begins(self, request: InferRequest) -> None:
        """Tell the others, if the request is the first step of a sequence. Raises ``InvalidRequest``."""
        step = Step.of(request.parameters)
        if step is not None and step.start:
            begun = _Begun(self._node, step.client, request.model, step.id)
            await self._bus.publish(subjects.sequence_begun(), msgspec.json.encode(begun))

    async def _on_begun(self, message: BusMessage) -> None:
        try:
            begun = _decoder.decode(message.payload)
        except msgspec.MsgspecError:
            log.debug("ignored a message on %s that says nothing", message.subject)
            return
        if begun.node != self._node:
            self._sequencer.forget(begun.client, begun.model, begun.id)
