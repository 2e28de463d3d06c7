"""One worker process seen from its parent: spawn it with its pipes and arenas, notice its end, kill it.

A plain ``subprocess`` with inherited descriptors and a pidfd to watch, so that it costs the loop no thread. Not here:
what is said over the pipes (``worker_runtime``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass

from hardware.arena import Arena
from hardware.confinement import environment
from hardware.errors import WorkerDied
from hardware.frames import DEVICE_FAULT_STATUS
from hardware.process_memory import oom_kills, resident_bytes

MIB = 1024**2

_STDERR = 2


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    slots: int = 8
    """Runs the worker may hold at once; more wait in the parent."""
    slot_bytes: int = 64 * MIB
    """Most bytes the inputs of one run, and its outputs, may have. Virtual: only what was written is resident."""
    address_space_bytes: int | None = None
    """Limit on the worker's address space (RLIMIT_AS), arenas included; not for CUDA, which reserves far more."""
    close_grace_s: float = 2.0
    """How long closing waits for the run in progress before it kills."""


class WorkerProcess:
    """``exit_fd`` is readable once the process has ended; ``pipes`` (requests, replies, control) are the caller's to
    close."""

    def __init__(self, options: WorkerOptions) -> None:
        """Start a worker; raises ``OSError``.

        Blocks for the few milliseconds that fork and exec take. The worker is killed when the thread that calls this
        ends (PR_SET_PDEATHSIG): call it on the loop's.
        """
        with ExitStack() as arenas:
            self.inputs = Arena.create("mesh-inputs", options.slots, options.slot_bytes, peer_reads_only=True)
            arenas.callback(self.inputs.close)
            self.outputs = Arena.create("mesh-outputs", options.slots, options.slot_bytes, peer_reads_only=False)
            arenas.callback(self.outputs.close)
            limits = (self.inputs.slots, self.inputs.slot_bytes, options.address_space_bytes or 0)
            self._killed = False
            self._oom_kills = oom_kills()
            self._process, self.pipes = _spawn((self.inputs.fd, self.outputs.fd), limits)
            try:
                self.exit_fd = os.pidfd_open(self._process.pid)
            except OSError:
                for fd in self.pipes:
                    os.close(fd)
                self._process.kill()
                self._process.wait()
                raise
            self._arenas = arenas.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self, *, hung_up: bool = False) -> None:
        """SIGKILL; harmless once the process has ended. One that hung up has met another end, which it keeps."""
        if self.exit_fd >= 0:
            self._killed |= not hung_up
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.exit_fd, signal.SIGKILL)

    def resident_bytes(self) -> int | None:
        """Resident memory without the arenas, which the parent has mapped too; None once the process has ended."""
        return resident_bytes(self.pid) if self.exit_fd >= 0 else None

    def reap(self) -> WorkerDied:
        """Collect the ended process, release its arenas and say how it ended. Blocks unless ``exit_fd`` is readable."""
        status = self._process.wait()
        os.close(self.exit_fd)
        self.exit_fd = -1
        self._arenas.close()
        before, after = self._oom_kills, oom_kills()
        out_of_memory = not self._killed and before is not None and after is not None and after > before
        return how_it_ended(status, out_of_memory=out_of_memory)


def how_it_ended(status: int, *, out_of_memory: bool) -> WorkerDied:
    """``status`` as subprocess gives it; ``out_of_memory``: its SIGKILL is not ours, and the kernel did kill."""
    if status == DEVICE_FAULT_STATUS:
        return WorkerDied(f"the worker process ended itself (status {status}) after a device fault", exit_code=status)
    if status >= 0:
        return WorkerDied(f"the worker process exited with status {status}", exit_code=status)
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-status}"
    why = ", probably because memory ran out" if out_of_memory and -status == signal.SIGKILL else ""
    return WorkerDied(f"the worker process was ended by {name}{why}", signal=-status)


def _spawn(arena_fds: tuple[int, int], limits: tuple[int, ...]) -> tuple[subprocess.Popen[bytes], tuple[int, int, int]]:
    """The process, and our ends of its pipes: requests, replies, control."""
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    control_read, control_write = os.pipe()
    theirs = (request_read, reply_write, control_read, *arena_fds)
    ours = (request_write, reply_read, control_write)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own module and numbers
            [sys.executable, "-m", "hardware.worker", *map(str, (os.getpid(), *theirs, *limits))],
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,  # backends print; what they print must reach nothing that is parsed
            env=environment(),
            pass_fds=theirs,
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in (request_read, reply_write, control_read):
            os.close(fd)
    for fd in ours:
        os.set_blocking(fd, False)
    return process, ours
