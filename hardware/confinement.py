"""What binds a process that runs models of strangers, and what it inherits: little, and it dies with its parent.

Not here: starting such processes (``worker_process``, ``engine_build``), what they do (``worker``, ``engine_process``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FAKES = os.path.join(_PACKAGE_ROOT, "hardware", "fakes", "site")

_INHERITED = frozenset({"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_INHERITED_PREFIXES = ("CUDA_", "LC_", "NVIDIA_", "ORT_")
"""Tokens and keys in the agent's environment stay there."""


def confine(parent: int, address_space: int = 0) -> None:
    """Die with the parent, leave no core dump, be the first to go when memory runs out, stay in the memory limit.

    ``parent`` is the process id it must have; ``address_space`` limits RLIMIT_AS in bytes, 0 leaves it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach whole process groups; the parent decides when we end
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if address_space:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    with contextlib.suppress(OSError):  # some containers forbid it
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def environment() -> dict[str, str]:
    """The environment for such a process."""
    prefixes: tuple[str, ...] = _INHERITED_PREFIXES
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(path.startswith(_FAKES) for path in paths):  # only tests put the fakes there
        prefixes += ("FAKE_",)
    kept = {name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(prefixes)}
    path = os.pathsep.join(filter(None, (_PACKAGE_ROOT, kept.get("PYTHONPATH"))))
    return kept | {
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",  # numpy only carries bytes here
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",  # keeps the working directory off the module path, from Python 3.11 on
    }
