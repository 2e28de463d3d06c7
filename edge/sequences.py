"""Sequences at the node that holds them: the state between the steps of each, and one step at a time.

A step is taken only if it follows the turn whose state is held, and the state moves only when its run succeeded and
its answer could be written: whoever asks again, or late, changes nothing. State are ordinary tensors to the executor,
so that steps of different sequences run together where the model allows. Not here: numbering and moving
(``mesh.sequencer``), what is declared (``sequence_config``), the tensors themselves (``sequence_tensors``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edge import sequence_tensors as tensors
from edge.instance import Instance
from edge.sequence_config import SequenceConfig
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, Overloaded, PayloadTooLarge, SequenceUnknown
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody, quoted
from mesh.sequence_record import MAX_KEPT_BYTES, in_turn, with_checkpoint
from mesh.sequence_steps import Key, Step, crowding, follows
from mesh.settings import SequencesSettings
from mesh.values import ModelIdentity

Run = Callable[[Sequence[RawTensor], Sequence[str]], Awaitable[list[RawTensor]]]
"""Inputs and names of outputs to the outputs."""
At = tuple[ModelIdentity, Key]

MAX_STATE_BYTES = 64 << 20
"""Of one sequence."""


@dataclass(slots=True, eq=False)
class Held:
    """One sequence: its ``state`` after the ``step`` that was turn number ``turn``; 0 before the first."""

    config: SequenceConfig
    """As it was declared when the sequence began: state of another declaration means nothing."""
    idle_s: float
    used: float
    turn: int = 0
    step: int = 0
    state: tuple[RawTensor, ...] = ()
    """By the names of the inputs that take it."""
    last: WireBody | None = None
    """The answer of the turn; None where it is too large to be kept."""
    nbytes: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def idle(self, now: float) -> bool:
        return now - self.used > self.idle_s and not self.lock.locked()


class Sequences:
    """All that this node holds."""

    def __init__(self, settings: SequencesSettings) -> None:
        self._settings = settings
        self._held: dict[At, Held] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of states and answers that are kept."""
        return self._bytes

    async def infer(self, instance: Instance, request: InferRequest, deadline: Deadline, run: Run) -> WireBody:
        """One step. Raises ``InvalidRequest``, ``SequenceUnknown``, ``Overloaded``, or what the run raises."""
        config, step, name = instance.stored.config.sequence, Step.of(request.parameters), instance.identity.name
        assert config is not None  # noqa: S101 - asked before
        if step is None or not step.turn:
            raise InvalidRequest(
                f"inference requests to model {quoted(name)} must specify a non-zero or non-empty correlation ID"
            )
        at = instance.identity, step.key(name)
        while True:
            deadline.check()  # a sequence that does not begin leaves nothing here
            held = self._find(at, step, config)
            async with in_turn(held.lock, deadline):
                if self._held.get(at) is not held or held.config != config:
                    continue  # it was forgotten while this one waited, or is to be
                try:
                    body = await self._turn(held, instance, config, request, step, run)
                finally:
                    held.used = time.monotonic()
                    if not held.turn:
                        self._forget([at])  # it did not begin
                if step.end:
                    self._forget([at])
                return body

    def _find(self, at: At, step: Step, config: SequenceConfig) -> Held:
        now = time.monotonic()
        held = self._held.get(at)
        if held is not None and (held.lock.locked() or (held.config == config and not held.idle(now))):
            return held
        if held is not None:
            self._forget([at])
        if not step.begins:
            follows(step, 0, 0)  # which says so
        self._make_room(at, config, now)
        held = self._held[at] = Held(config, config.idle_s or self._settings.idle_s, now)
        return held

    async def _turn(
        self, held: Held, instance: Instance, config: SequenceConfig, request: InferRequest, step: Step, run: Run
    ) -> WireBody:
        verdict = follows(step, held.turn, held.step)
        if verdict == "again":
            if held.last is None:
                raise SequenceUnknown(f"step {held.step} of sequence {quoted(step.id)} was answered, and is not kept")
            return held.last
        if (verdict == "follows" and step.number != held.step + 1) or (step.start and step.number != 1):
            raise InvalidRequest(f"step {step.number} of sequence {quoted(step.id)} is misnumbered")
        inputs = tensors.given(instance, config, request)
        rows = tensors.rows_of(inputs)
        if verdict == "follows":
            before = held.state
        elif step.restore is not None:
            before = tensors.restored(instance, config, request)
        else:
            before = tensors.initial(instance, config, rows)
        tensors.check_rows(instance, config, before, rows)
        inputs += [*before, *tensors.controls(instance, config, step, rows, first=step.number == 1)]
        names = tensors.visible(instance, config, request)
        ran = {t.name: t for t in await run(inputs, (*names, *config.outputs))}
        after = tuple([_own(ran[s.output], s.input) for s in config.state])
        body = _answer(instance.identity, request, step, [ran[name] for name in names], after)
        self._commit(held, step, after, body)
        return body

    def _commit(self, held: Held, step: Step, after: tuple[RawTensor, ...], body: WireBody) -> None:
        """All of it or nothing. Raises ``PayloadTooLarge`` or ``Overloaded``."""
        state_bytes = sum([t.nbytes for t in after])
        if state_bytes > MAX_STATE_BYTES:
            raise PayloadTooLarge(
                f"the state of sequence {quoted(step.id)} has {state_bytes} bytes, at most {MAX_STATE_BYTES} are kept"
            )
        last = body if body.nbytes <= MAX_KEPT_BYTES else None
        nbytes = state_bytes + (last.nbytes if last is not None else 0)
        if nbytes > held.nbytes and self._bytes - held.nbytes + nbytes > self._settings.max_bytes:
            raise self._full()
        self._bytes += nbytes - held.nbytes
        held.turn, held.step, held.state, held.last, held.nbytes = step.turn, step.number, after, last, nbytes

    def _full(self) -> Overloaded:
        return Overloaded(f"this node keeps {self._bytes} bytes of sequences, as many as it may", retry_after_s=1.0)

    def _make_room(self, at: At, config: SequenceConfig, now: float) -> None:
        """Raises ``Overloaded``."""
        self.forget_idle(now)
        own = [held for held in self._held if held[0] == at[0]] if config.most else []
        of_model = len(own) >= config.most > 0
        full = self._bytes >= self._settings.max_bytes or len(self._held) >= self._settings.most
        if of_model or full:
            self._crowd_out(own if of_model else [*self._held], at[1][0])
        if self._bytes >= self._settings.max_bytes:
            raise self._full()
        own = [held for held in own if held in self._held]
        if len(self._held) >= self._settings.most or len(own) >= config.most > 0:
            of_them = f", {len(own)} of them of this model" if config.most else ""
            raise Overloaded(f"this node holds all the sequences it may: {len(self._held)}{of_them}", retry_after_s=1.0)

    def _crowd_out(self, places: list[At], client: str) -> None:
        """Forget what was not heard of for longest of the application that holds most of ``places``, if ``client`` has
        a right to its room."""
        greatest = crowding([key[0] for _, key in places], client)
        theirs = [at for at in places if at[1][0] == greatest and not self._held[at].lock.locked()]
        self._forget(sorted(theirs, key=lambda at: self._held[at].used)[:1])

    def forget_idle(self, now: float) -> None:
        """Forget what nothing was heard of for too long at the monotonic second ``now``."""
        self._forget([at for at, held in self._held.items() if held.idle(now)])

    def _forget(self, places: Iterable[At]) -> None:
        for at in places:
            self._bytes -= self._held.pop(at).nbytes


def _own(tensor: RawTensor, name: str) -> RawTensor:
    """On memory of its own: a slice of a batch would keep the whole batch."""
    return RawTensor(name, tensor.datatype, tensor.shape, bytes(tensor.whole))


def _answer(
    identity: ModelIdentity, request: InferRequest, step: Step, shown: Sequence[RawTensor], after: Sequence[RawTensor]
) -> WireBody:
    outputs = tuple([Tensor(t.name, t.datatype, t.shape, t.whole) for t in shown])
    response = InferResponse(identity.name, identity.version, request.id, {}, outputs)
    if step.checkpoint:
        state = tuple([Tensor(t.name, t.datatype, t.shape, t.whole) for t in after])
        body = with_checkpoint(response, request, step.number, state)
    else:
        body = encode_response(response, request)
    return WireBody((body.joined(),), body.header_length) if body.nbytes <= MAX_KEPT_BYTES else body
