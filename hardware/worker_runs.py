"""Runs inside a worker: which are in progress or called off, the threads of a model with instances, the replies.

Not here: what a run does (``worker``), models (``sessions``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NoReturn

from hardware.arena import Slot
from hardware.backend import Interrupt
from hardware.frames import DEVICE_FAULT_STATUS, Order, Reply, Run, append


class Turn:
    """Where a run that streams waits until its answer was taken."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._taken = threading.Semaphore(0)
        interrupt.on_set(self._taken.release)

    def comes(self) -> bool:
        """Block until the next answer may be written; False where nobody wants it any more."""
        self._taken.acquire()
        return not self._interrupt.is_set

    def give(self) -> None:
        self._taken.release()


class Runs:
    """Matches runs with what is called off, by slot and generation, so that ending one can never end its successor.

    The thread that reads the control pipe calls :meth:`call_off`, threads that run models the rest. There is no lock:
    each side writes before it looks, so one of them sees the other; and an interrupt belongs to one run for good, so
    that to set it too late ends nothing.
    """

    def __init__(self, slots: int) -> None:
        self._called_off = [0] * slots
        """Last generation that was called off in each slot."""
        self._in_progress: list[tuple[int, Interrupt] | None] = [None] * slots
        self._turns: dict[Slot, Turn] = {}
        """Of the runs that stream."""
        self._hung_up = False

    def begin(self, slot: int, generation: int) -> Interrupt | None:
        """None where the run was called off already."""
        interrupt = Interrupt()
        self._in_progress[slot] = generation, interrupt
        return None if self._called_off[slot] == generation else interrupt

    def end(self, slot: int) -> None:
        """To be called before the reply: after it the slot may hold the next run."""
        self._in_progress[slot] = None

    def streams(self, slot: Slot, interrupt: Interrupt) -> Turn:
        """The run that was begun waits for turns from now on, until :meth:`streamed`, which comes before its end."""
        turn = self._turns[slot] = Turn(interrupt)
        if self._hung_up:
            interrupt.set()
        return turn

    def streamed(self, slot: Slot) -> None:
        del self._turns[slot]

    def told(self, order: Order) -> None:
        if not order.goes_on:
            self.call_off(order.slot)
        elif turn := self._turns.get(order.slot):
            turn.give()

    def hang_up(self) -> None:
        """The parent is leaving: nobody would ever give a stream its turn."""
        self._hung_up = True
        for slot in list(self._turns):
            self.call_off(slot)

    def call_off(self, slot: Slot) -> None:
        self._called_off[slot.number] = slot.generation
        run = self._in_progress[slot.number]
        if run is not None and run[0] == slot.generation:
            run[1].set()


class Lane:
    """The threads of one model, as many as it has instances. They take its runs in order and may end them in any."""

    def __init__(self, name: str, threads: int, work: Callable[[Run], None]) -> None:
        self._work = work
        self._queue: SimpleQueue[Run | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, run: Run) -> None:
        self._queue.put(run)

    def close(self) -> None:
        """Return once the runs in it are done."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (run := self._queue.get()) is not None:
            self._work(run)


class Outbox:
    """Replies to the parent, in whole frames whichever thread they come from."""

    def __init__(self, replies_fd: int) -> None:
        self._fd = replies_fd
        self._writing = threading.Lock()
        self._held = bytearray()

    def hold(self, reply: Reply) -> None:
        """Keep a reply for the next flush. For one thread only, as is flushing."""
        append(self._held, reply)

    def flush(self) -> None:
        if self._held:
            with self._writing:
                self._write(self._held)
            self._held.clear()

    def send(self, reply: Reply) -> None:
        """Write a reply at once; from any thread."""
        frame = bytearray()
        append(frame, reply)
        with self._writing:
            self._write(frame)

    def end_with(self, reply: Reply) -> NoReturn:
        """Say which fault it was, and end: nothing can be run in this process any more. From any thread."""
        frame = bytearray()
        append(frame, reply)
        with self._writing:
            self._write(frame)
            os._exit(DEVICE_FAULT_STATUS)  # before the lock is free: it stays the last reply

    def _write(self, frames: bytearray) -> None:
        sent = 0
        try:
            with memoryview(frames) as view:
                while sent < len(view):
                    sent += os.write(self._fd, view[sent:])
        except BrokenPipeError:  # the parent is gone: there is nobody left to tell
            os._exit(0)
