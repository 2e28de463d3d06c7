"""Which node a sequence of requests stays on: stateful models keep what came before (Triton's sequence extension).

Pure: ``now`` (seconds of a monotonic clock) is an argument. Not here: what becomes of a sequence whose node is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from mesh.errors import InvalidRequest

IDLE_S = 60.0
"""A sequence of which nothing was heard for so long is over."""
MOST = 4096
"""Sequences remembered; the longest idle goes first."""
MAX_ID_BYTES = 128
"""Of a ``sequence_id`` that is a string, as in Triton."""


class Affinity:
    """Of one router. Sequences are told apart by model and ``sequence_id``; 0 and "" are none."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[tuple[str, int | str], tuple[str, float]] = OrderedDict()

    def node_of(self, parameters: Mapping[str, object], model: str, now: float) -> str | None:
        """Where the request's sequence is; None for one that is in none, or starts and so forgets where it was.

        Raises ``InvalidRequest``.
        """
        key = _key(parameters, model)
        if key is None or (known := self._nodes.get(key)) is None:
            return None
        node, used = known
        if parameters.get("sequence_start") is True or now - used >= IDLE_S:
            del self._nodes[key]
            return None
        return node

    def ran(self, parameters: Mapping[str, object], model: str, node: str, now: float) -> None:
        """The request was answered by ``node``. Raises as :meth:`node_of`, which is asked before."""
        key = _key(parameters, model)
        if key is None:
            return
        self._nodes.pop(key, None)
        if parameters.get("sequence_end") is not True:
            self._nodes[key] = node, now
            if len(self._nodes) > MOST:
                self._nodes.popitem(last=False)


def _key(parameters: Mapping[str, object], model: str) -> tuple[str, int | str] | None:
    sequence = parameters.get("sequence_id") if parameters else None
    if not sequence:
        return None
    if isinstance(sequence, bool) or not isinstance(sequence, (int, str)):
        raise InvalidRequest("parameter 'sequence_id' is neither an integer nor a string")
    if isinstance(sequence, str) and len(sequence.encode("utf-8", "replace")) > MAX_ID_BYTES:
        raise InvalidRequest(f"parameter 'sequence_id' has more than {MAX_ID_BYTES} bytes")
    return model, sequence
