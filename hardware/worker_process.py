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
from hardware.errors import WorkerDied

MIB = 1024**2

_ENVIRONMENT = frozenset({"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_ENVIRONMENT_PREFIXES = ("CUDA_", "LC_", "NVIDIA_", "ORT_")
"""What a worker inherits. It runs models of strangers: tokens and keys in the agent's environment stay there."""

_STDERR = 2
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    slots: int = 8
    """Runs the worker may hold at once; more wait in the parent. It runs one at a time."""
    slot_bytes: int = 64 * MIB
    """Most bytes the inputs of one run, and its outputs, may have. Virtual: only what was written is resident."""
    address_space_bytes: int | None = None
    """Limit on the worker's address space (RLIMIT_AS), arenas included; not for CUDA, which reserves far more."""
    close_grace_s: float = 2.0
    """How long closing waits for the run in progress before it kills."""


class WorkerProcess:
    """``exit_fd`` is readable once the process has ended; the pipes are the caller's to close."""

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
            self._process, self.requests_fd, self.replies_fd = _spawn((self.inputs.fd, self.outputs.fd), limits)
            try:
                self.exit_fd = os.pidfd_open(self._process.pid)
            except OSError:
                os.close(self.requests_fd)
                os.close(self.replies_fd)
                self._process.kill()
                self._process.wait()
                raise
            self._arenas = arenas.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; harmless once the process has ended."""
        if self.exit_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.exit_fd, signal.SIGKILL)

    def reap(self) -> WorkerDied:
        """Collect the ended process, release its arenas and say how it ended. Blocks unless ``exit_fd`` is readable."""
        status = self._process.wait()
        os.close(self.exit_fd)
        self.exit_fd = -1
        self._arenas.close()
        if status >= 0:
            return WorkerDied(f"the worker process exited with status {status}", exit_code=status)
        try:
            name = signal.Signals(-status).name
        except ValueError:  # a real-time signal has no name
            name = f"signal {-status}"
        return WorkerDied(f"the worker process was ended by {name}", signal=-status)


def _spawn(arena_fds: tuple[int, int], limits: tuple[int, ...]) -> tuple[subprocess.Popen[bytes], int, int]:
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    theirs = (request_read, reply_write, *arena_fds)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own module and numbers
            [sys.executable, "-m", "hardware.worker", *map(str, (os.getpid(), *theirs, *limits))],
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,  # backends print; what they print must reach nothing that is parsed
            env=_environment(),
            pass_fds=theirs,
        )
    except BaseException:
        os.close(request_write)
        os.close(reply_read)
        raise
    finally:
        os.close(request_read)
        os.close(reply_write)
    os.set_blocking(request_write, False)
    os.set_blocking(reply_read, False)
    return process, request_write, reply_read


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    path = os.pathsep.join(filter(None, (_PACKAGE_ROOT, kept.get("PYTHONPATH"))))
    return kept | {
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",  # numpy only carries bytes here
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",  # keeps the working directory off the module path, from Python 3.11 on
    }
