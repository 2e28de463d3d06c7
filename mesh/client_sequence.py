"""A sequence of the SDK: one call a step, and it goes on at another door, with its state, when the one it used is gone.

Not here: how that is done (``sequencer``), the client (``client``).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.client_calls import Calls
from mesh.errors import SequenceUnknown
from mesh.hop import Context
from mesh.oip.wire import quoted
from mesh.result import Inputs, Result, deadline_of, make_request, read_result
from mesh.sequence_record import in_turn
from mesh.sequence_steps import CLIENT, END, ID, START, Step
from mesh.sequencer import Sequencer
from mesh.values import ModelIdentity

IDLE_S = 3600.0
"""A sequence that its application left alone for so long, and did not leave, is forgotten."""

_ids = itertools.count(1 << 62)
"""Where no application counts its own."""


class ClientSequence:
    """Made by :meth:`mesh.client.Client.sequence`; a context manager, behind which the client keeps nothing of it.

    Steps go one by one, in the order in which they were called. Whether it went on elsewhere is in
    ``parameters["mesh_sequence"]`` of the answer.
    """

    def __init__(
        self,
        calls: Calls,
        sequencer: Sequencer,
        client: str,
        identity: ModelIdentity,
        sequence_id: int | str,
        deadline_ms: float,
    ) -> None:
        self.id = sequence_id or next(_ids)
        self._calls = calls
        self._sequencer = sequencer
        self._client = client
        self._identity = identity
        self._deadline_ms = deadline_ms
        self._turn = asyncio.Lock()
        self._begun = False
        self._left = False

    async def __aenter__(self) -> ClientSequence:
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is left of it at its node ends by itself when it idles too long."""
        self._left = True
        self._sequencer.forget((self._client, self._identity.name, self.id, ""))

    async def infer(
        self,
        inputs: Inputs,
        *,
        end: bool = False,
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Result:
        """The next step; ``end`` says that it is the last. Raises an error of ``mesh.errors``.

        After an error that leaves open whether the step ran, the next call continues from the last step that was
        answered.
        """
        with self._calls.one():
            deadline = deadline_of(self._deadline_ms if deadline_ms is None else deadline_ms)
            async with in_turn(self._turn, deadline):
                if self._left:
                    raise RuntimeError("the sequence was left: begin another one")
                said = {**(parameters or {}), ID: self.id, CLIENT: self._client, START: not self._begun, END: end}
                request = make_request(self._identity.name, self._identity.version, inputs, outputs, said)
                step = Step.of(said)
                assert step is not None  # noqa: S101 - it has an id
                try:
                    reply = await self._sequencer.infer(request, self._identity, Context(deadline), step)
                except SequenceUnknown:
                    raise SequenceUnknown(f"sequence {quoted(self.id)} idled too long: begin another one") from None
                self._begun = not end
                return read_result(reply)
