"""The first door of a sequence: numbers its turns, remembers which node holds it, and moves it when that node is gone.

Between two checkpoints the door keeps the inputs. When the node that holds the state is lost, drains, or holds it no
longer, the last checkpoint and those inputs make the same state on another one, and the answer says so. A request that
is answered with an error was no step: the state that it may have left somewhere is never built upon, because the next
turn says which turn it follows. In the SDK the same class holds sequences whose door may die. Not here: the state
itself (``edge.sequences``), the form of a step (``sequence_steps``), what is kept of one sequence
(``sequence_record``), choosing a node (``router``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from math import inf

import msgspec

from mesh.errors import (
    DeadlineExceeded,
    DigestMismatch,
    MeshError,
    NoReadyInstance,
    Overloaded,
    PayloadTooLarge,
    SequenceUnknown,
)
from mesh.hop import Context, Reply
from mesh.lifecycle import Tasks
from mesh.oip.request import InferRequest
from mesh.oip.wire import quoted
from mesh.sequence_record import Record, answered, in_turn
from mesh.sequence_steps import STAY, Key, Step, Turn, crowding, nbytes, passed_on, state, strictest
from mesh.settings import SequencesSettings
from mesh.values import ModelIdentity

log = logging.getLogger(__name__)

Infer = Callable[[InferRequest, ModelIdentity, Context], Awaitable[Reply]]

MAX_MOVES = 4
"""How often one step may be begun on another node."""
MAX_LOG_BYTES = 4 << 20
"""Of inputs kept for one sequence; beyond it a checkpoint is asked for at each step."""
SWEEP_S = 1.0
"""Between two looks for sequences that idled too long."""


def _no_idle(_: ModelIdentity) -> float:
    return 0.0


class Sequencer:
    """Belongs to one door. ``infer`` is the router's, ``idle_s`` tells of a model's own idle time, 0 for none."""

    def __init__(
        self,
        infer: Infer,
        settings: SequencesSettings | None = None,
        *,
        idle_s: Callable[[ModelIdentity], float] = _no_idle,
    ) -> None:
        self._infer = infer
        self._settings = settings or SequencesSettings()
        self._idle_s = idle_s
        self._run = secrets.token_hex(8)
        self._turns = 0
        self._records: dict[Key, Record] = {}
        self._bytes = 0
        self.most_handed: Callable[[], float] = lambda: inf
        """Bytes that an answer may have that goes back by way of another door."""
        self.moves = 0
        """Sequences that were made anew somewhere."""

    def __len__(self) -> int:
        return sum([not record.over for record in self._records.values()])

    @property
    def nbytes(self) -> int:
        """Bytes of inputs, answers and states that are kept."""
        return self._bytes

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forgets what idles too long while entered; without it that waits for the next sequence to begin."""
        async with Tasks("sequencer") as tasks:
            tasks.start(self._sweep(), "sweep")
            yield

    async def infer(self, request: InferRequest, identity: ModelIdentity, context: Context, step: Step) -> Reply:
        """One step, in its turn. Raises ``SequenceUnknown``, ``Overloaded``, or what the router raises."""
        key, now = step.key(identity.name), time.monotonic()
        while True:
            record = self._find(key, step, identity, now)
            async with in_turn(record.lock, context.deadline):
                if self._records.get(key) is not record:
                    continue  # it was forgotten while this one waited
                try:
                    return await self._in_turn(record, request, identity, context, step)
                finally:
                    record.used = time.monotonic()
                    if self._records.get(key) is record:  # else it was forgotten meanwhile, and is weighed no more
                        self._bytes += record.weigh()

    def _find(self, key: Key, step: Step, identity: ModelIdentity, now: float) -> Record:
        record = self._records.get(key)
        if record is not None and not record.idle(now):
            return record
        if record is not None:
            self._forget([key])
        if not step.begins:
            raise unknown(step, identity.name)
        self._make_room(step.client, now)
        record = self._records[key] = Record(identity, now)
        return record

    async def _in_turn(
        self, record: Record, request: InferRequest, identity: ModelIdentity, context: Context, step: Step
    ) -> Reply:
        verdict = record.verdict(request, step, identity.name)
        if verdict == "again":
            return record.last_answer(request, step)
        if verdict == "begins":
            record.begin(identity, step, state(request.inputs), self._idle_s(identity) or self._settings.idle_s)
        try:
            return await self._step(record, request, context, step)
        except BaseException as error:
            if verdict == "begins":
                record.end()  # it did not
            if isinstance(error, (NoReadyInstance, DigestMismatch)) and identity != record.identity:
                raise _replaced(step, record.identity) from None
            raise

    async def _step(self, record: Record, request: InferRequest, context: Context, step: Step) -> Reply:
        record.stay = strictest(record.stay, str(request.parameters.get(STAY, "")))
        wanted = step.checkpoint or (self._is_due(record, request) and not step.end)
        reply = await self._advance(record, request, context, step, wanted=wanted)
        moved = record.moved
        try:
            reply.body, checkpoint = answered(reply.body, request, step, record.step + 1, moved, wanted=wanted)
            self._check_way_back(reply, context)
        except BaseException:
            record.lose()  # it went on there, and not here
            raise
        if moved:
            self.moves += 1
            log.info("sequence %s of %s is %s", quoted(step.id), record.identity.name, moved)
        reply.sequence = moved or reply.sequence
        record.went_on(request, step, reply, checkpoint)
        return reply

    def _check_way_back(self, reply: Reply, context: Context) -> None:
        """Raises ``PayloadTooLarge``."""
        if context.handed and reply.body.nbytes > self.most_handed():
            raise PayloadTooLarge(f"the answer has {reply.body.nbytes} bytes, which the bus does not carry back")

    def _is_due(self, record: Record, request: InferRequest) -> bool:
        too_much = record.log_bytes + nbytes(request.inputs) > MAX_LOG_BYTES
        too_much = too_much or 2 * self._bytes > self._settings.max_bytes
        return too_much or record.step + 1 - record.base >= self._settings.checkpoint_steps

    async def _advance(
        self, record: Record, request: InferRequest, context: Context, step: Step, *, wanted: bool
    ) -> Reply:
        """Have the step taken by whoever holds the sequence, or else by another that is given the state first."""
        avoid: tuple[str, ...] = ()
        moves = 0
        while True:
            try:
                at = msgspec.structs.replace(context, avoid=avoid)
                for number, logged, its_step in record.missing():
                    await self._send(record, logged, its_step, at, number)
                return await self._send(record, request, step, at, record.step + 1, end=step.end, wanted=wanted)
            except MeshError as error:  # noqa: PERF203 - a round is a request
                if not _moves(error):
                    raise
                moves += 1
                if record.node and moves <= MAX_MOVES:
                    avoid += () if isinstance(error, SequenceUnknown) else (record.node,)
                elif avoid and isinstance(error, NoReadyInstance):
                    avoid = ()  # nowhere else: one that was lost for a moment may be back
                else:
                    raise _final(error) from None
                context.deadline.check()
                record.lose()

    async def _send(
        self,
        record: Record,
        request: InferRequest,
        step: Step,
        context: Context,
        number: int,
        *,
        end: bool = False,
        wanted: bool = False,
    ) -> Reply:
        self._turns += 1
        turn = Turn(self._run, self._turns, record.turn, number, end, wanted, record.brought(), record.stay)
        context = msgspec.structs.replace(context, keep=record.node)
        reply = await self._infer(passed_on(request, step, turn), record.identity, context)
        record.held_by(reply.via or reply.node, turn.turn, number)
        return reply

    def _make_room(self, client: str, now: float) -> None:
        """Raises ``Overloaded``."""
        if self._is_full():
            self.forget_idle(now)
            self._forget([key for key, record in self._records.items() if record.over and not record.lock.locked()])
        if self._is_full() and (greatest := crowding([key[0] for key in self._records], client)) is not None:
            theirs = {key: r.used for key, r in self._records.items() if key[0] == greatest and not r.lock.locked()}
            self._forget(sorted(theirs, key=theirs.__getitem__)[:1])
        if len(self._records) >= self._settings.most:
            raise Overloaded(f"this door holds {len(self._records)} sequences, as many as it may", retry_after_s=1.0)
        if self._bytes >= self._settings.max_bytes:
            raise Overloaded(f"this door keeps {self._bytes} bytes of sequences, as many as it may", retry_after_s=1.0)

    def _is_full(self) -> bool:
        return len(self._records) >= self._settings.most or self._bytes >= self._settings.max_bytes

    def holds(self, key: Key) -> bool:
        """Whether a step of it is for this door, and be it the last one again."""
        record = self._records.get(key)
        return record is not None and not record.idle(time.monotonic())

    def forget(self, key: Key) -> None:
        """It began at another door."""
        if key in self._records:
            self._forget([key])

    def forget_idle(self, now: float) -> None:
        """Forget sequences of which nothing was heard for too long at the monotonic second ``now``."""
        self._forget([key for key, record in self._records.items() if record.idle(now)])

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._bytes -= self._records.pop(key).nbytes

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.forget_idle(time.monotonic())


def unknown(step: Step, model: str) -> SequenceUnknown:
    """Of a request that follows on nothing that is known here."""
    return SequenceUnknown(
        f"sequence {quoted(step.id)} is not known to this door: a client must specify the START flag on the first "
        f"request of the sequence to model {quoted(model)}"
    )


def _replaced(step: Step, began_with: ModelIdentity) -> SequenceUnknown:
    """Of a sequence whose model is gone, while another one answers to the name."""
    return SequenceUnknown(
        f"sequence {quoted(step.id)} began with a model {quoted(f'{began_with.name}/{began_with.version}')} that no "
        "node can run any more, and another took its place: begin it anew"
    )


def _final(error: MeshError) -> MeshError:
    """What the caller is told where nothing is left to try: not that the sequence is unknown, for here it is not."""
    if isinstance(error, SequenceUnknown):
        return NoReadyInstance(f"no node can go on with the sequence: {error.text}")
    return error


def _moves(error: MeshError) -> bool:
    """Whether the step may be taken elsewhere: the node is gone, or will not, or does not hold the sequence.

    Not from one that is busy: the state would have to be made anew, which is more work than there was.
    """
    if isinstance(error, (Overloaded, DeadlineExceeded)):
        return False
    return error.retryable or isinstance(error, SequenceUnknown)
