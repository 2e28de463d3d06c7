"""The runs a worker was asked for, as its parent holds them: in a slot of the arenas, or waiting for one in order.

Not here: the life of the process, models (``worker_runtime``); the other side of a run (``worker``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from hardware.arena import Slot, SlotTable, copy_out, put
from hardware.backend import RawTensor
from hardware.channel import Channel
from hardware.errors import HardwareError, RunFailed, from_code
from hardware.frames import Done, Failed, Part, Run
from hardware.parts import Parts
from hardware.worker_process import WorkerProcess

Results = list[RawTensor]


class Call(NamedTuple):
    """A run as it was asked for."""

    future: asyncio.Future[Results]
    key: str
    inputs: Sequence[RawTensor]
    outputs: Sequence[str]
    parts: Parts | None = None
    """Of one that streams."""


class Calls:
    """``connected`` before the first call."""

    def __init__(self, slots: int) -> None:
        self.slots = SlotTable(slots)
        self._running: dict[Slot, tuple[asyncio.Future[Results], str]] = {}
        """Future and key of the run in each slot; its inputs are copied, and let go."""
        self._streams: dict[Slot, Parts] = {}
        """Those of the runs that stream."""
        self._waiting: deque[Call] = deque()
        self._process: WorkerProcess
        self._channel: Channel

    def connected(self, process: WorkerProcess, channel: Channel) -> None:
        self._process, self._channel = process, channel

    def begin(self, call: Call) -> None:
        """Raises the ``HardwareError`` that keeps it from being handed over."""
        slot = self.slots.take()
        if slot is None:
            self._waiting.append(call)
        else:
            self._dispatch(slot, call)

    def begin_waiting(self) -> None:
        """Hand over as many of those that wait as there are slots."""
        while self._waiting:
            if self._waiting[0].future.done():  # given up while it waited
                self._waiting.popleft()
                continue
            slot = self.slots.take()
            if slot is None:
                return
            call = self._waiting.popleft()
            try:
                self._dispatch(slot, call)
            except HardwareError as error:
                call.future.set_exception(error)

    def abandon(self, run: asyncio.Future[Results]) -> bool:
        """Whether it waited, and is none any more."""
        for slot, (future, _) in self._running.items():
            if future is run:
                self._channel.abandon(slot)
                return False
        for call in self._waiting:
            if call.future is run:
                self._waiting.remove(call)
                if not run.done():
                    run.set_exception(RunFailed("the run was abandoned before it began"))
                return True
        return False

    def busy(self) -> set[str]:
        """Keys with runs, given up ones included."""
        return {key for _, key in self._running.values()} | {call.key for call in self._waiting}

    def ended(self, reply: Done | Failed) -> HardwareError | None:
        """A run's last reply; the error it brought. Raises ``ValueError`` where there is no such run, or it lies."""
        slot = Slot(reply.slot, reply.generation)
        future, _ = self._running.get(slot, (None, ""))
        if future is None:
            raise ValueError(f"slot {slot.number} is not in use")
        error = None
        if isinstance(reply, Failed):
            error = from_code(reply.code, reply.text)
            if not future.done():
                future.set_exception(error)
        elif not future.done():
            future.set_result(copy_out(self._process.outputs.slot(slot.number), reply.outputs))
        del self._running[slot]
        if self._streams:
            self._streams.pop(slot, None)
        self.slots.release(slot)
        return error

    def part(self, reply: Part) -> None:
        """Raises as :meth:`ended` does."""
        slot = Slot(reply.slot, reply.generation)
        parts = self._streams.get(slot)
        if parts is None:
            raise ValueError(f"slot {slot.number} streams nothing")
        part = copy_out(self._process.outputs.slot(slot.number), reply.outputs)
        if not parts.ended.done():
            parts.put(part, partial(self._channel.go_on, slot))

    def fail(self, make: Callable[[], HardwareError]) -> None:
        """Fail them all; slots stay taken until their replies are read."""
        pending = [future for future, _ in self._running.values()] + [call.future for call in self._waiting]
        self._waiting.clear()
        for future in pending:
            if not future.done():
                future.set_exception(make())

    def _dispatch(self, slot: Slot, call: Call) -> None:
        """Hand ``call`` to the worker in ``slot``, which is given back where that fails."""
        streams = call.parts is not None
        try:
            placed = put(self._process.inputs.slot(slot.number), call.inputs)
            request = Run(slot.number, slot.generation, call.key, placed, list(call.outputs), streams)
            self._channel.send(request, at_once=not self._running)
        except BaseException:
            self.slots.release(slot)
            raise
        self._running[slot] = call.future, call.key
        if call.parts is not None:
            self._streams[slot] = call.parts
