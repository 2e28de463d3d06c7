"""Child processes that do not outlive us, whatever ends us: the one place that asks the kernel for it.

Only on Linux; elsewhere a child of a killed parent goes on. Not here: starting and stopping them (``cluster``,
``nats_server``), workers of runtimes (``hardware.worker_process``, which are killed, not asked).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# A pre-exec hook is not safe beside threads, so a short-lived interpreter asks for the signal and becomes the command;
# a parent that is already gone is seen by its changed pid.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """``command`` as to be run by this process, so that it gets SIGTERM when the calling thread ends.

    Start it on a thread that lives as long as the process does: the kernel watches the thread.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]
