"""One step of a sequence as a request: the parameters that number it, and the state that may travel beside it.

``sequence_id``, ``sequence_start`` and ``sequence_end`` are Triton's sequence extension; what begins with ``mesh_`` is
between doors and nodes, and an application's if it numbers its steps itself. Whoever passes steps on gives each *turn*
a number that it never gave before, and says which turn it follows: one that comes late, twice, or after a turn that
nobody answered for is seen to be so, whatever happened in between. Pure. Not here: who keeps what at a door
(``sequencer``) and at a node (``edge.sequences``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from mesh.errors import InvalidRequest, SequenceUnknown
from mesh.oip.request import InferRequest
from mesh.oip.tensor import Tensor
from mesh.oip.wire import quoted
from mesh.pins import STAYS

ID, START, END = "sequence_id", "sequence_start", "sequence_end"
CLIENT = "mesh_client"
"""Tells applications apart whose ids are the same."""
RUN = "mesh_run"
"""Names the process that numbers the turns, anew at each of its starts."""
TURN, AFTER = "mesh_turn", "mesh_after"
"""Number of the turn, and of the one that left the state it takes; 0 for one that brings or begins its state."""
STEP = "mesh_step"
"""Number of the step, from 1."""
CHECKPOINT = "mesh_checkpoint"
"""The state after this step is wanted beside the answer."""
RESTORE = "mesh_restore"
"""The request brings the state as it was after the step of this number."""
STATE = "mesh_state:"
"""Begins the names of state tensors that travel."""
STAY = "mesh_stay"
OURS = frozenset((CLIENT, RUN, TURN, AFTER, STEP, CHECKPOINT, RESTORE, START, END, STAY, "mesh_hedge"))
"""Set by the door for each step anew. A step is never hedged: two nodes would hold the sequence."""

MAX_ID_BYTES = 128
"""Of a ``sequence_id``, a client or a run, as in Triton."""

Key = tuple[str, str, "int | str", str]
"""Client, model, id, and who numbers its turns; that is empty for an application that does not."""


class Step(msgspec.Struct, frozen=True):
    """What a request says of its sequence. ``number`` and ``turn`` are 0 where it does not."""

    client: str
    id: int | str
    start: bool = False
    end: bool = False
    number: int = 0
    run: str = ""
    turn: int = 0
    after: int = 0
    checkpoint: bool = False
    restore: int | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Step | None:
        """None for a request that is in no sequence: without an id, or with 0 or "". Raises ``InvalidRequest``."""
        sequence = parameters.get(ID)
        if isinstance(sequence, bool) or not isinstance(sequence, (int, str, type(None))):
            raise InvalidRequest(f"parameter {ID!r} is neither an integer nor a string")
        if not sequence:
            return None
        if isinstance(sequence, str):
            _check_text(ID, sequence)
        restore = _count(parameters, RESTORE) if RESTORE in parameters else None
        step = cls(
            _text(parameters, CLIENT), sequence, _flag(parameters, START), _flag(parameters, END),
            _count(parameters, STEP), _text(parameters, RUN), _count(parameters, TURN), _count(parameters, AFTER),
            _flag(parameters, CHECKPOINT), restore,
        )  # fmt: skip
        if bool(step.run) != bool(step.turn):
            raise InvalidRequest(f"parameters {RUN!r} and {TURN!r} go together")
        if restore is not None and (step.start or step.number not in (0, restore + 1)):
            raise InvalidRequest(f"{RESTORE!r} brings the state as of the step right before, which a start has not")
        return step

    def key(self, model: str) -> Key:
        return self.client, model, self.id, self.run

    @property
    def begins(self) -> bool:
        """Whether it needs nothing that came before."""
        return self.start or self.restore is not None


def crowding(clients: Iterable[str], client: str) -> str | None:
    """Of the ``clients`` of all sequences held, the one that is to give up room for one more of ``client``: who holds
    most, if that is more than ``client`` would have then. So who begins many and ends none locks nobody else out."""
    held = Counter(clients)
    greatest = max(held, key=held.__getitem__, default="")
    return greatest if held[greatest] > held[client] + 1 else None


Verdict = Literal["begins", "follows", "again"]


def follows(step: Step, held: int, at: int) -> Verdict:
    """What a numbered turn is to a sequence that ``held`` the state of that turn, ``at`` that step; both 0 for none.

    Raises ``SequenceUnknown`` for one that cannot be taken: it was overtaken, or what it follows is not what is held.
    """
    if step.turn == held:
        return "again"
    if step.turn < held:
        raise SequenceUnknown(f"this request of sequence {quoted(step.id)} was overtaken by a later one")
    if step.begins:
        return "begins"
    if not held or step.after != held:
        where = f"is at step {at} here, by another way" if held else "is not held here"
        raise SequenceUnknown(f"sequence {quoted(step.id)} {where}: step {step.number} cannot be taken")
    return "follows"


class Turn(msgspec.Struct, frozen=True):
    """How a step is passed on."""

    run: str
    turn: int
    after: int
    number: int
    end: bool = False
    checkpoint: bool = False
    restore: tuple[Tensor, ...] | None = None
    """The state as of the step before, for whoever does not hold it."""
    stay: str = ""


def passed_on(request: InferRequest, step: Step, turn: Turn) -> InferRequest:
    """The request as whoever holds the sequence is sent it. It shares the tensors of ``request``; with a checkpoint
    wanted all its outputs are binary, and the answer is put together for the caller afterwards."""
    parameters = {name: value for name, value in request.parameters.items() if name not in OURS}
    parameters |= {CLIENT: step.client, RUN: turn.run, TURN: turn.turn, AFTER: turn.after, STEP: turn.number}
    said = ((START, turn.number == 1 and turn.restore is None), (END, turn.end), (CHECKPOINT, turn.checkpoint))
    parameters |= {name: True for name, value in said if value}
    if turn.stay:
        parameters[STAY] = turn.stay
    inputs = plain(request.inputs)
    if turn.restore is not None:
        parameters[RESTORE] = turn.number - 1
        inputs = (*inputs, *[msgspec.structs.replace(t, name=STATE + t.name) for t in turn.restore])
    asked = msgspec.structs.replace(request, parameters=parameters, inputs=inputs, wire=None)
    if turn.checkpoint:
        asked.outputs = tuple([msgspec.structs.replace(output, binary=True) for output in request.outputs])
        asked.binary_default = True
    return asked


def kept(request: InferRequest) -> InferRequest:
    """The request on memory of its own, which nobody else changes, without state."""
    inputs = tuple([msgspec.structs.replace(tensor, data=bytes(tensor.data)) for tensor in plain(request.inputs)])
    return msgspec.structs.replace(request, parameters=dict(request.parameters), inputs=inputs, wire=None)


def same_inputs(one: InferRequest, other: InferRequest) -> bool:
    """Bit for bit, state left out."""
    first, second = ({t.name: t for t in plain(request.inputs)} for request in (one, other))
    return first.keys() == second.keys() and all(
        (tensor.datatype, tensor.shape) == (second[name].datatype, second[name].shape)
        and bytes(tensor.data) == bytes(second[name].data)
        for name, tensor in first.items()
    )


def strictest(*stays: str) -> str:
    """Of what requests of a sequence say of where they may run: what one of them left as state is bound by it too."""
    known = [stay if stay in STAYS else "node" for stay in stays]
    return max(known, key=STAYS.index)


def plain(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Without those that carry state."""
    return tuple([tensor for tensor in tensors if not tensor.name.startswith(STATE)])


def state(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Only those that carry state, by the names of the inputs that take it; on memory of their own."""
    return tuple(
        [
            Tensor(tensor.name.removeprefix(STATE), tensor.datatype, tensor.shape, bytes(tensor.data))
            for tensor in tensors
            if tensor.name.startswith(STATE)
        ]
    )


def nbytes(tensors: Sequence[Tensor]) -> int:
    return sum([tensor.nbytes for tensor in tensors])


def _text(parameters: Mapping[str, Any], name: str) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequest(f"parameter {name!r} is not a string")
    _check_text(name, value)
    return value


def _check_text(name: str, value: str) -> None:
    if len(value.encode("utf-8", "replace")) > MAX_ID_BYTES:
        raise InvalidRequest(f"parameter {name!r} has more than {MAX_ID_BYTES} bytes")


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter {name!r} must be a bool, got {quoted(value)}")
    return value


def _count(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidRequest(f"parameter {name!r} must be an unsigned integer, got {quoted(value)}")
    return value
