"""The worker process: ``python -m hardware.worker``, started by ``worker_runtime`` and by nobody else.

One thread reads requests, runs them on read-only views of the input arena, copies results into the output arena and
answers. It ends when its parent does: the kernel kills it, and a closed pipe ends its loop. Not here: anything about
models (``sessions``), starting and watching workers (``worker_runtime``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

from hardware.arena import Arena, put
from hardware.backend import RawTensor
from hardware.errors import DeviceOutOfMemory, HardwareError
from hardware.frames import (
    Closed,
    Done,
    Failed,
    Load,
    Opened,
    Reader,
    Ready,
    Refused,
    Reply,
    Request,
    Run,
    append,
    decode_request,
)
from hardware.sessions import Sessions

_PR_SET_PDEATHSIG = 1
_READ_BYTES = 65536
_HOLD_REPLIES_S = 0.0002
"""Replies are gathered while more requests wait, but an answer is never held back longer than this and one run.

Waking the parent costs more than a small run: with none held back, eight small runs at once took twice as long each.
"""


class Worker:
    def __init__(self, requests_fd: int, replies_fd: int, inputs: Arena, outputs: Arena) -> None:
        self._requests_fd = requests_fd
        self._replies_fd = replies_fd
        self._inputs = inputs
        self._outputs = outputs
        self._sessions = Sessions()
        self._replies = bytearray()

    def serve(self) -> None:
        """Answer requests until the parent closes its end."""
        append(self._replies, Ready(os.getpid()))
        self._flush()
        reader = Reader()
        while chunk := os.read(self._requests_fd, _READ_BYTES):
            held_since = time.monotonic()
            for frame in reader.feed(chunk):
                append(self._replies, self._answer(decode_request(frame)))
                if time.monotonic() - held_since > _HOLD_REPLIES_S:
                    self._flush()
                    held_since = time.monotonic()
            self._flush()

    def _flush(self) -> None:
        view = memoryview(self._replies)
        sent = 0
        while sent < len(view):
            sent += os.write(self._replies_fd, view[sent:])
        view.release()
        self._replies.clear()

    def _answer(self, request: Request) -> Reply:
        if isinstance(request, Run):
            try:
                return self._run(request)
            except HardwareError as error:
                return Failed(request.slot, request.generation, error.code, error.text)
            except MemoryError:
                return Failed(request.slot, request.generation, DeviceOutOfMemory.code, "the worker found no memory")
        try:
            if isinstance(request, Load):
                return self._load(request)
            self._sessions.unload(request.key)
            return Closed(request.ticket)
        except HardwareError as error:
            return Refused(request.ticket, error.code, error.text)
        except MemoryError:
            return Refused(request.ticket, DeviceOutOfMemory.code, "the worker found no memory")

    def _load(self, request: Load) -> Opened:
        return Opened(request.ticket, self._sessions.load(request.key, request.path, request.options))

    def _run(self, request: Run) -> Done:
        slot = self._inputs.slot(request.slot)
        tensors = [
            RawTensor(placed.name, placed.datatype, placed.shape, slot[placed.offset : placed.offset + placed.nbytes])
            for placed in request.inputs
        ]
        results = self._sessions.run(request.key, tensors, request.outputs)
        return Done(request.slot, request.generation, put(self._outputs.slot(request.slot), results))


def main() -> None:
    parent, requests_fd, replies_fd, input_fd, output_fd, slots, slot_bytes, address_space = map(int, sys.argv[1:])
    _confine(parent, address_space)
    inputs = Arena.attach(input_fd, slots, slot_bytes, writable=False)
    outputs = Arena.attach(output_fd, slots, slot_bytes, writable=True)
    # The parent may be gone between two writes: there is nobody left to tell.
    with contextlib.suppress(BrokenPipeError):
        Worker(requests_fd, replies_fd, inputs, outputs).serve()
    os._exit(0)  # skips the destructors of backends, which have been seen to crash and have nothing to save


def _confine(parent: int, address_space: int) -> None:
    """Die with the parent, leave no core dump, be the first to go when memory runs out, stay in the memory limit."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach whole process groups; the parent drains, then closes us
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if address_space:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")  # some containers forbid it


if __name__ == "__main__":
    main()
