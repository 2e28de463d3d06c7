"""What a door keeps of one sequence, and what follows from it. No I/O; the clock is an argument.

Everything needed to make the state anew: the last checkpoint, and the inputs of the steps since. Not here: sending
(``sequencer``), the form of a step (``sequence_steps``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, ProtocolError, SequenceUnknown
from mesh.hop import Reply
from mesh.lifecycle import within
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody, quoted
from mesh.sequence_steps import (
    CHECKPOINT,
    STATE,
    STEP,
    Step,
    Verdict,
    follows,
    kept,
    nbytes,
    plain,
    same_inputs,
    state,
)
from mesh.values import ModelIdentity

MAX_KEPT_BYTES = 1 << 20
"""Of the last answer, which is kept to be given again."""
PARAMETER = "mesh_sequence"
"""Of an answer: how the sequence came to go on elsewhere."""

Logged = tuple[int, InferRequest, Step]
Checkpoint = tuple[int, tuple[Tensor, ...]]
"""The state as it was after the step of that number."""


@dataclass(slots=True, eq=False)
class Record:
    """``step`` is the last that was answered; the node may hold the state of an earlier one, while it is made anew."""

    identity: ModelIdentity
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    idle_s: float = 0.0
    over: bool = True
    """It did not begin, or ended."""
    step: int = 0
    theirs: int = 0
    """The application's turn that was answered last, where it numbers them."""
    checkpoint: Checkpoint | None = None
    log: list[Logged] = field(default_factory=list)
    """Steps answered since the checkpoint."""
    log_bytes: int = 0
    node: str = ""
    """Who holds it; empty where it has to be made anew."""
    turn: int = 0
    """The turn whose state the node holds."""
    held: int = 0
    """The step of that turn; while nobody holds it, the one of the checkpoint."""
    moved: str = ""
    """To be said with the next answer."""
    stay: str = ""
    """Where its state may go: the strictest that was said so far."""
    asked: InferRequest | None = None
    last: Reply | None = None
    """The last request and its answer."""
    nbytes: int = 0

    @property
    def base(self) -> int:
        """The step behind which the kept inputs begin."""
        return self.checkpoint[0] if self.checkpoint is not None else 0

    def idle(self, now: float) -> bool:
        return now - self.used > self.idle_s and not self.lock.locked()

    def verdict(self, request: InferRequest, step: Step, model: str) -> Verdict:
        """What to do with a request. Raises ``SequenceUnknown``."""
        if step.turn:
            verdict = follows(step, self.theirs, self.step)
        elif step.restore is None and step.number and step.number == self.step and self.asked is not None:
            verdict = "again" if same_inputs(request, self.asked) else "begins" if step.start else "follows"
        else:
            verdict = "begins" if step.begins else "follows"
        if verdict != "follows":
            return verdict
        if self.over:
            raise SequenceUnknown(
                f"sequence {quoted(step.id)} has ended: a client must specify the START flag on the first request of "
                f"the sequence to model {quoted(model)}"
            )
        if step.number == self.step:
            raise SequenceUnknown(f"step {step.number} of sequence {quoted(step.id)} was answered for other inputs")
        if step.number not in (0, self.step + 1):
            raise SequenceUnknown(
                f"sequence {quoted(step.id)} is at step {self.step}: step {step.number} does not follow"
            )
        return verdict

    def last_answer(self, request: InferRequest, step: Step) -> Reply:
        """Once more, in the form that is asked for now. Raises ``SequenceUnknown`` where it was too large to be kept,
        or lacks what is asked for."""
        if self.last is None or self.asked is None:
            raise SequenceUnknown(f"step {self.step} of sequence {quoted(step.id)} was answered, and is not kept")
        reply = msgspec.structs.replace(self.last)
        if _form(request) == _form(self.asked):
            return reply
        response = decode_response(reply.body.joined(), reply.body.header_length)
        there = {tensor.name for tensor in response.outputs}
        if (step.checkpoint and STEP not in response.parameters) or {o.name for o in request.outputs} - there:
            raise SequenceUnknown(f"step {self.step} of sequence {quoted(step.id)} was answered without what is asked")
        response.id = request.id
        if step.checkpoint:
            request = with_state(request, response.outputs)
        else:
            response.outputs = plain(response.outputs)
            response.parameters.pop(STEP, None)
        reply.body = encode_response(response, request)
        return reply

    def begin(self, identity: ModelIdentity, step: Step, brought: tuple[Tensor, ...], idle_s: float) -> None:
        """From nothing, or from the state that the request brings."""
        self.end()
        self.identity, self.idle_s, self.over = identity, idle_s, False
        self.step = self.held = step.restore or 0
        self.theirs = 0
        self.checkpoint = None if step.restore is None else (step.restore, brought)
        self.moved = self.stay = ""
        self.asked = self.last = None

    def end(self) -> None:
        """What is left are the last request and its answer."""
        self.over = True
        self.checkpoint, self.node, self.turn = None, "", 0
        self.log, self.log_bytes = [], 0

    def lose(self) -> None:
        """Nobody is known to hold it any more."""
        self.node, self.turn, self.held = "", 0, self.base
        self.moved = f"resumed; checkpoint={self.base}; replayed={len(self.log)}"

    def missing(self) -> list[Logged]:
        """The steps that the node has to take again first."""
        return [logged for logged in self.log if logged[0] > self.held]

    def brought(self) -> tuple[Tensor, ...] | None:
        """The state that the next step brings along; None where the node holds it, or it begins from nothing."""
        return self.checkpoint[1] if not self.node and self.checkpoint is not None else None

    def held_by(self, node: str, turn: int, step: int) -> None:
        self.node, self.turn, self.held = node, turn, step

    def went_on(self, request: InferRequest, step: Step, reply: Reply, checkpoint: tuple[Tensor, ...] | None) -> None:
        """The next step was answered."""
        self.step += 1
        self.theirs, self.moved = step.turn, ""
        self.asked = kept(request)
        self.last = msgspec.structs.replace(reply) if reply.body.nbytes <= MAX_KEPT_BYTES else None
        if step.end:
            self.end()
        elif checkpoint is not None:
            self.checkpoint = self.step, checkpoint
            self.log, self.log_bytes = [], 0
        else:
            self.log.append((self.step, self.asked, step))
            self.log_bytes += nbytes(self.asked.inputs)

    def weigh(self) -> int:
        """Bytes by which it grew since it was weighed last."""
        before, self.nbytes = self.nbytes, self.log_bytes
        if self.asked is not None:
            self.nbytes += nbytes(self.asked.inputs)
        if self.last is not None:
            self.nbytes += self.last.body.nbytes
        if self.checkpoint is not None:
            self.nbytes += nbytes(self.checkpoint[1])
        return self.nbytes - before


def _form(request: InferRequest) -> tuple[Any, ...]:
    """All that decides what an answer looks like, its values left out."""
    return request.id, request.outputs, request.binary_default, request.parameters.get(CHECKPOINT, False)


def answered(
    body: WireBody, request: InferRequest, step: Step, number: int, moved: str, *, wanted: bool
) -> tuple[WireBody, tuple[Tensor, ...] | None]:
    """The answer as the caller asked for it, and the state if it was ``wanted``.

    Raises ``ProtocolError`` for an answer that is none, ``InvalidRequest`` for what JSON cannot carry.
    """
    if not wanted and not moved:
        return body, None
    response = decode_response(body.joined(), body.header_length)
    checkpoint = None
    if wanted:
        if response.parameters.pop(STEP, None) != number:
            raise ProtocolError("a checkpoint was asked for, and the answer brings none of this step")
        checkpoint = state(response.outputs)
    if moved:
        response.parameters[PARAMETER] = moved
    if step.checkpoint:
        response.parameters[STEP] = number
        request = with_state(request, response.outputs)
    else:
        response.outputs = plain(response.outputs)
    return encode_response(response, request), checkpoint


def with_state(request: InferRequest, outputs: tuple[Tensor, ...]) -> InferRequest:
    """The request as one that asks for the state among ``outputs`` too, as binary data."""
    wanted = request.outputs
    if not wanted:
        wanted = tuple([RequestedOutput(t.name, request.binary_default, {}) for t in plain(outputs)])
    brought = [RequestedOutput(t.name, True, {}) for t in outputs if t.name.startswith(STATE)]
    return msgspec.structs.replace(request, outputs=(*wanted, *brought))


def with_checkpoint(response: InferResponse, request: InferRequest, number: int, after: tuple[Tensor, ...]) -> WireBody:
    """A node's answer with the state after the step of that number beside it."""
    brought = tuple([msgspec.structs.replace(t, name=STATE + t.name) for t in after])
    outputs = (*response.outputs, *brought)
    parameters = {**response.parameters, STEP: number}
    return encode_response(
        msgspec.structs.replace(response, outputs=outputs, parameters=parameters), with_state(request, outputs)
    )


@contextlib.asynccontextmanager
async def in_turn(lock: asyncio.Lock, deadline: Deadline) -> AsyncIterator[None]:
    """Hold the lock, one after the other as they came. Raises ``DeadlineExceeded``."""
    deadline.check()
    try:
        await within(deadline.left_s(), lock.acquire())
    except asyncio.TimeoutError:
        raise DeadlineExceeded("the deadline passed while the request waited for the step before it") from None
    try:
        yield
    finally:
        lock.release()
