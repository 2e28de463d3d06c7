"""Doors that share a bus: any of them may be given the next step of a sequence, as queue groups and load balancers do.

The door where a sequence begins holds it, and tells the others, which forget what they held under its id. A step that
comes to another one is handed on, whole and once, after asking all doors who holds it. Two that begin the same id at
once agree on which of them did: each beginning bears a stamp above all that its door has heard of. Not here: the
sequences (``sequencer``), taking what was handed on (``bus_door``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator

import msgspec

from mesh import hop, subjects
from mesh.bus import Bus, BusMessage
from mesh.bus_core import BUS_MARGIN, may_answer
from mesh.deadline import Deadline
from mesh.errors import (
    BusUnavailable,
    MeshError,
    NodeLost,
    NodeUnreachable,
    Overloaded,
    PayloadTooLarge,
    SequenceUnknown,
)
from mesh.hop import Context, Reply
from mesh.hop_bus import ask, ask_or_leave, lower
from mesh.lifecycle import within
from mesh.oip.request import InferRequest
from mesh.oip.wire import quoted
from mesh.pins import Pin, Place
from mesh.sequence_steps import Key, Step
from mesh.sequencer import Sequencer
from mesh.under_way import UnderWay
from mesh.values import ModelIdentity
from mesh.view import View

log = logging.getLogger(__name__)

ASK_S = 0.5
"""So long is waited for the door that holds a sequence."""
TELL_S = 0.5
"""At most so long is waited until the bus has heard of a beginning."""
TOGETHER_S = 1.0
"""What two doors begin within it may be begun at once: the later stamp counts, else what is heard later."""
MOST_ASKS = 256
"""At once; a client that asks for what nobody holds waits, and is to keep nothing else from going on."""
MOST_KNOWN = 16_384
"""Sequences of which it is known who began them; the others are asked for."""
MAX_STAMP = 2**63 - 1


class _Begun(msgspec.Struct, array_like=True, frozen=True):
    """Who began a sequence. As a question, its own words are those of the door that asks."""

    site: str
    node: str
    client: str
    model: str
    id: int | str
    run: str = ""
    stamp: int = 0
    region: str = ""

    @property
    def key(self) -> Key:
        return self.client, self.model, self.id, self.run

    @property
    def place(self) -> tuple[str, str, str]:
        return self.node, self.site, self.region

    def is_after(self, other: _Begun) -> bool:
        return (self.stamp, self.site, self.node) > (other.stamp, other.site, other.node)


_decoder = msgspec.json.Decoder(_Begun)


class SequenceDoors:
    """Of the node ``here``: ``bus`` is the connection that its requests come by."""

    def __init__(self, bus: Bus, here: Place, sequencer: Sequencer, view: View) -> None:
        self._bus = bus
        self._here = here
        self._sequencer = sequencer
        sequencer.most_handed = lambda: bus.max_payload - BUS_MARGIN
        self._view = view
        self._under_way = UnderWay()
        view.watcher.on_change(self._under_way.on_change)
        self._stamp = 0
        self._asking = 0
        self._just_begun: OrderedDict[Key, tuple[_Begun, float]] = OrderedDict()
        """What began here within ``TOGETHER_S``, and at which monotonic second."""
        self._began: OrderedDict[Key, _Begun] = OrderedDict()
        """Who did last, of sequences that began here and of those that were asked for."""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear who begins what, and say what is held here."""
        begun = await self._bus.subscribe(subjects.sequence_begun(), self._on_begun)
        held = await self._bus.subscribe(subjects.sequence_held(), self._on_held)
        remove = self._bus.on_state(lambda connected: None if connected else self._forget_others())
        try:
            yield
        finally:
            remove()
            await begun.unsubscribe()
            await held.unsubscribe()

    async def infer(self, request: InferRequest, identity: ModelIdentity, context: Context, step: Step) -> Reply:
        """One step, taken here or by the door that holds its sequence.

        Raises ``SequenceUnknown``, ``PayloadTooLarge`` for one that the bus cannot carry there, ``Overloaded``, or what
        the door that takes it raises.
        """
        key = step.key(identity.name)
        if step.begins and not context.handed:
            return await self._begin(request, identity, context, step)
        if not context.handed and not self._sequencer.holds(key):
            holder = await self._holder(key, context.deadline)
            if holder is not None and not self._sequencer.holds(key):
                self._check_stay(holder, key, request, identity)
                return await self._hand_on(holder, key, request, context)
        return await self._sequencer.infer(request, identity, context, step)

    async def _begin(self, request: InferRequest, identity: ModelIdentity, context: Context, step: Step) -> Reply:
        """Told before it is answered, so that every door hears of it before the step that follows."""
        begun = self._ours(step.key(identity.name), self._next_stamp())
        self._learn(begun)
        self._note(begun, time.monotonic())
        telling = asyncio.ensure_future(self._tell(begun))
        try:
            reply = await self._sequencer.infer(request, identity, context, step)
            await telling
            return reply
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell(self, begun: _Begun) -> None:
        async def tell() -> None:
            await self._bus.publish(subjects.sequence_begun(), msgspec.json.encode(begun))
            await self._bus.flush()

        with contextlib.suppress(BusUnavailable, asyncio.TimeoutError):  # who cannot be told cannot be asked either
            await within(TELL_S, tell())

    async def _holder(self, key: Key, deadline: Deadline) -> _Begun | None:
        """The other door that holds it, as far as that is known; None for none."""
        known = self._began.get(key)
        if known is None or self._is_ours(known):  # it is not held here, whoever began it
            known = await self._ask(key, deadline)
        return None if known is None or self._is_ours(known) else known

    async def _ask(self, key: Key, deadline: Deadline) -> _Begun | None:
        if self._asking >= MOST_ASKS:
            raise Overloaded(f"{self._asking} steps wait for the doors that hold their sequences", retry_after_s=ASK_S)
        within_it = deadline.at_most_ms(ASK_S * 1e3)
        self._asking += 1
        try:
            asked = msgspec.json.encode(self._ours(key, 0))
            answer = await ask(self._bus, subjects.sequence_held(), asked, {}, within_it)
        except MeshError:  # nobody holds it, or nobody can be asked: then it is as without a bus
            deadline.check()
            return None
        finally:
            self._asking -= 1
        begun = _read(answer)
        if begun is None or begun.key != key:
            return None
        self._learn(begun)
        return self._began[key]

    def _check_stay(self, holder: _Begun, key: Key, request: InferRequest, identity: ModelIdentity) -> None:
        """Raises ``SequenceUnknown`` for a step that may not leave for the door that holds its sequence."""
        pin, there = Pin.of(request.parameters, self._view.stay(identity)), Place(*holder.place, self._here.tier)
        if pin is not None and not Pin(pin.stay).allows(self._here, there):
            raise SequenceUnknown(f"{_held(holder, key)}, and this step may not leave its {pin.stay}: begin it anew")

    async def _hand_on(self, holder: _Begun, key: Key, request: InferRequest, context: Context) -> Reply:
        body = request.body()
        headers = {
            hop.MODEL: request.model,
            hop.VERSION: request.version,
            hop.DEADLINE: f"{hop.at_arrival_ms(context.deadline, 0.0):.1f}",
        }
        if body.header_length is not None:
            headers[hop.HEADER_LENGTH] = str(body.header_length)
        subject, cancel = subjects.step(holder.site, holder.node), subjects.cancel(holder.site, holder.node)
        try:
            with self._under_way.to(holder.node):
                answer = await ask_or_leave(self._bus, subject, body.joined(), headers, context.deadline, cancel)
        except PayloadTooLarge as error:
            raise PayloadTooLarge(f"{_held(holder, key)}, and this step cannot go there: {error.text}") from None
        except (NodeUnreachable, NodeLost):
            self._began.pop(key, None)
            raise SequenceUnknown(f"{_held(holder, key)}, which is gone: begin the sequence anew") from None
        except SequenceUnknown:
            self._began.pop(key, None)
            raise
        return self._handed_back(answer)

    def _handed_back(self, answer: BusMessage) -> Reply:
        answered = lower(answer.headers)
        reply = hop.read_reply(answer.payload, answered, "peer")
        reply.sequence = answered.get(hop.SEQUENCE, "")
        reply.hops += 1
        if reply.node == self._here.node:
            reply.route = "local"
        return reply

    def _ours(self, key: Key, stamp: int) -> _Begun:
        return _Begun(self._here.site, self._here.node, *key, stamp, self._here.region)

    def _is_ours(self, begun: _Begun) -> bool:
        return (begun.site, begun.node) == (self._here.site, self._here.node)

    def _next_stamp(self) -> int:
        """Above all that was heard of; by the clock against those of which nothing was."""
        self._stamp = min(max(self._stamp + 1, time.time_ns()), MAX_STAMP)
        return self._stamp

    def _learn(self, begun: _Begun) -> None:
        known = self._began.get(begun.key)
        if known is None or begun.is_after(known):
            self._began[begun.key] = begun
        self._began.move_to_end(begun.key)
        while len(self._began) > MOST_KNOWN:
            self._began.popitem(last=False)

    def _note(self, begun: _Begun, now: float) -> None:
        self._just_begun[begun.key] = begun, now
        self._just_begun.move_to_end(begun.key)
        while now - next(iter(self._just_begun.values()))[1] >= TOGETHER_S:
            self._just_begun.popitem(last=False)

    def _forget_others(self) -> None:
        """What they begin is not heard for a while."""
        for key in [key for key, begun in self._began.items() if not self._is_ours(begun)]:
            del self._began[key]

    async def _on_begun(self, message: BusMessage) -> None:
        begun = _read(message)
        if begun is None or self._is_ours(begun):
            return
        self._stamp = max(self._stamp, begun.stamp)
        ours, at = self._just_begun.get(begun.key, (begun, 0.0))
        if ours.is_after(begun) and time.monotonic() - at < TOGETHER_S:
            return  # the other door gives way
        if begun.key in self._began:
            self._began[begun.key] = begun
        self._sequencer.forget(begun.key)

    async def _on_held(self, message: BusMessage) -> None:
        asked = _read(message)
        if asked is None or self._is_ours(asked) or not may_answer(message.reply):
            return
        if self._sequencer.holds(asked.key):
            known = self._began.get(asked.key)
            stamp = known.stamp if known is not None and self._is_ours(known) else 0
            await self._bus.publish(message.reply, msgspec.json.encode(self._ours(asked.key, stamp)))


def _held(holder: _Begun, key: Key) -> str:
    return f"sequence {quoted(key[2])} is held by the door {quoted(holder.node)}"


def _read(message: BusMessage) -> _Begun | None:
    """None for what says nothing."""
    try:
        begun = _decoder.decode(message.payload)
    except msgspec.MsgspecError:
        log.debug("ignored a message on %s that says nothing", message.subject)
        return None
    return begun if begun.site and begun.node and 0 <= begun.stamp <= MAX_STAMP else None
