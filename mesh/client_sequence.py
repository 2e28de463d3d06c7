"""A sequence of the SDK: one call a step, and it goes on at another door, with its state, when the one it used is gone.

Not here: how that is done (``sequencer``), the client (``client``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mesh.deadline import Deadline
from mesh.hop import Context
from mesh.result import Inputs, Result, make_request, read_result
from mesh.sequence_steps import CLIENT, END, ID, START, Step
from mesh.sequencer import Sequencer
from mesh.values import ModelIdentity

_ids = itertools.count(1)


class ClientSequence:
    """Made by :meth:`mesh.client.Client.sequence`; a context manager only to show where it ends. Steps go one by one.

    Whether it went on elsewhere is in ``parameters["mesh_sequence"]`` of the answer.
    """

    def __init__(
        self, sequencer: Sequencer, client: str, identity: ModelIdentity, sequence_id: int | str, deadline_ms: float
    ) -> None:
        self.id = sequence_id or next(_ids)
        self._sequencer = sequencer
        self._client = client
        self._identity = identity
        self._deadline_ms = deadline_ms
        self._begun = False

    async def __aenter__(self) -> ClientSequence:
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is left of it at its node ends by itself when it idles too long."""

    async def infer(
        self, inputs: Inputs, *, end: bool = False, outputs: Sequence[str] = (), deadline_ms: float | None = None
    ) -> Result:
        """The next step; ``end`` says that it is the last. Raises an error of ``mesh.errors``.

        After an error that leaves open whether the step ran, the next call continues from the last step that was
        answered.
        """
        model, version = self._identity.name, self._identity.version
        parameters = {ID: self.id, CLIENT: self._client, START: not self._begun, END: end}
        request = make_request(model, version, inputs, outputs, parameters)
        deadline = Deadline.after_ms(self._deadline_ms if deadline_ms is None else deadline_ms)
        step = Step.of(parameters)
        assert step is not None  # noqa: S101 - it has an id
        reply = await self._sequencer.infer(request, self._identity, Context(deadline), step)
        self._begun = not end
        return read_result(reply)
