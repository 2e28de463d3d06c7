"""The worker process: ``python -m hardware.worker``, started by ``worker_runtime`` and by nobody else.

One thread reads requests. While no model has more than one instance it also runs them; else each model has threads of
its own (``worker_runs``). Runs read the input arena and copy results into the output arena. A second thread reads the
control pipe, and so can end a run that is inside a backend. The process ends when its parent does: the kernel kills it,
and a closed pipe ends its loop. Not here: anything about models (``sessions``), starting and watching workers
(``worker_runtime``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from hardware.arena import Arena, Placed, Slot, put
from hardware.backend import RawTensor
from hardware.confinement import confine
from hardware.errors import DeviceFault, DeviceOutOfMemory, HardwareError, RunFailed
from hardware.frames import (
    Closed,
    Done,
    Failed,
    Load,
    Opened,
    Part,
    Reader,
    Ready,
    Refused,
    Reply,
    Run,
    Unload,
    decode_orders,
    decode_request,
)
from hardware.sessions import Sessions
from hardware.worker_runs import Lane, Outbox, Runs

_READ_BYTES = 65536
_HOLD_REPLIES_S = 0.0002
"""Replies are gathered while more requests wait, but an answer is never held back longer than this and one run.

Waking the parent costs more than a small run: with none held back, eight small runs at once took twice as long each.
"""


class Worker:
    def __init__(self, requests_fd: int, replies_fd: int, control_fd: int, inputs: Arena, outputs: Arena) -> None:
        self._requests_fd = requests_fd
        self._control_fd = control_fd
        self._inputs = inputs
        self._outputs = outputs
        self._outbox = Outbox(replies_fd)
        self._runs = Runs(inputs.slots)
        self._sessions = Sessions()
        self._instances: dict[str, int] = {}
        self._lanes: dict[str, Lane] = {}
        """One for every model as soon as one has several instances; empty until then."""

    def serve(self) -> None:
        """Answer requests until the parent closes its end."""
        threading.Thread(target=self._control, name="control", daemon=True).start()
        outbox = self._outbox
        outbox.send(Ready(os.getpid()))
        reader = Reader()
        while chunk := os.read(self._requests_fd, _READ_BYTES):
            held_since = time.monotonic()
            for frame in reader.feed(chunk):
                request = decode_request(frame)
                if not isinstance(request, Run):
                    outbox.hold(self._open_or_close(request))
                elif self._lanes and (lane := self._lanes.get(request.key)):
                    lane.put(request)
                else:
                    outbox.hold(self._answer(request))
                if time.monotonic() - held_since > _HOLD_REPLIES_S:
                    outbox.flush()
                    held_since = time.monotonic()
            outbox.flush()

    def _control(self) -> None:
        rest = b""
        while chunk := os.read(self._control_fd, _READ_BYTES):
            orders, rest = decode_orders(rest + chunk)
            for order in orders:
                self._runs.told(order)
        self._runs.hang_up()

    def _answer(self, run: Run) -> Done | Failed:
        try:
            return Done(run.slot, run.generation, self._stream(run) if run.streams else self._run(run))
        except DeviceFault as error:
            if not self._lanes:  # then this is the thread that holds replies
                self._outbox.flush()
            self._outbox.end_with(Failed(run.slot, run.generation, error.code, error.text))
        except HardwareError as error:
            return Failed(run.slot, run.generation, error.code, error.text)
        except MemoryError:
            return Failed(run.slot, run.generation, DeviceOutOfMemory.code, "the worker found no memory")

    def _run(self, run: Run) -> list[Placed]:
        interrupt = self._runs.begin(run.slot, run.generation)
        if interrupt is None:
            raise RunFailed("the run was abandoned before it began")
        try:
            results = self._sessions.run(run.key, self._given(run), run.outputs, interrupt)
        finally:
            self._runs.end(run.slot)
        return put(self._outputs.slot(run.slot), results)

    def _given(self, run: Run) -> list[RawTensor]:
        slot = self._inputs.slot(run.slot)
        return [RawTensor(at.name, at.datatype, at.shape, slot[at.offset : at.offset + at.nbytes]) for at in run.inputs]

    def _stream(self, run: Run) -> list[Placed]:
        """Each answer is written and announced; the model goes on once it was taken."""
        interrupt = self._runs.begin(run.slot, run.generation)
        try:
            if interrupt is None:
                raise RunFailed("the run was abandoned before it began")
            if not self._lanes:
                self._outbox.flush()  # it may take long until this thread comes by again
            slot = Slot(run.slot, run.generation)
            turn = self._runs.streams(slot, interrupt)
            try:
                with contextlib.closing(self._sessions.stream(run.key, self._given(run), run.outputs)) as answers:
                    for answer in answers:
                        self._outbox.send(Part(*slot, put(self._outputs.slot(run.slot), answer)))
                        if not turn.comes():
                            raise RunFailed("the run was abandoned")
            finally:
                self._runs.streamed(slot)
        finally:
            self._runs.end(run.slot)
        return []

    def _open_or_close(self, request: Load | Unload) -> Reply:
        try:
            if isinstance(request, Load):
                return self._load(request)
            self._unload(request.key)
            return Closed(request.ticket)
        except DeviceFault as error:
            self._outbox.end_with(Refused(request.ticket, error.code, error.text))
        except HardwareError as error:
            return Refused(request.ticket, error.code, error.text)
        except MemoryError:
            return Refused(request.ticket, DeviceOutOfMemory.code, "the worker found no memory")

    def _load(self, request: Load) -> Opened:
        loaded = self._sessions.load(request.key, request.path, request.options)
        self._instances[request.key] = request.options.instances
        if max(self._instances.values()) > 1:
            for key in self._instances.keys() - self._lanes.keys():
                self._lanes[key] = Lane(key, self._instances[key], lambda run: self._outbox.send(self._answer(run)))
        return Opened(request.ticket, loaded)

    def _unload(self, key: str) -> None:
        """The parent has had the answers to all its runs: a lane that closes is empty."""
        if lane := self._lanes.pop(key, None):
            lane.close()
        self._sessions.unload(key)
        del self._instances[key]
        if max(self._instances.values(), default=1) == 1:
            for lane in self._lanes.values():
                lane.close()
            self._lanes.clear()


def main() -> None:
    parent, requests_fd, replies_fd, control_fd, input_fd, output_fd, slots, slot_bytes, address_space = map(
        int, sys.argv[1:]
    )
    for fd in (requests_fd, replies_fd, control_fd, input_fd, output_fd):
        os.set_inheritable(fd, False)  # what a step starts may outlive this process
    confine(parent, address_space)
    threading.excepthook = _end
    inputs = Arena.attach(input_fd, slots, slot_bytes, writable=False)
    outputs = Arena.attach(output_fd, slots, slot_bytes, writable=True)
    Worker(requests_fd, replies_fd, control_fd, inputs, outputs).serve()
    os._exit(0)  # skips the destructors of backends, which have been seen to crash and have nothing to save


def _end(args: threading.ExceptHookArgs) -> None:
    """A thread that failed is missing for good: a new process is the better answer."""
    sys.__excepthook__(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    os._exit(1)


if __name__ == "__main__":
    main()
