"""Resident memory and out-of-memory kills, and how the end of a worker is told."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hardware.frames import DEVICE_FAULT_STATUS
from hardware.process_memory import oom_kills, resident_bytes
from hardware.worker_process import how_it_ended

MIB = 1024**2


def test_own_memory_counts_and_shared_memory_does_not() -> None:
    before = resident_bytes(os.getpid())
    assert before is not None
    own = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, 64 * MIB)
    for mapping in (own, shared):
        mapping.write(bytes(64 * MIB))
    grown = (resident_bytes(os.getpid()) or 0) - before
    assert 56 * MIB < grown < 120 * MIB
    own.close()
    shared.close()


def test_a_process_that_is_gone_has_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert resident_bytes(process.pid) is None  # a zombie
    process.wait()
    assert resident_bytes(process.pid) is None


def files(root: Path, **content: str) -> str:
    for name, text in content.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


EVENTS = "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("groups", "path", "content"),
    [
        ("0::/system.slice/agent\n", "system.slice/agent/memory.events", EVENTS),
        ("0::/\n", "memory.events", EVENTS),
        ("0::/docker/abc\n", "memory.events", EVENTS),  # the host's path, seen from inside
        (
            "4:memory:/a\n1:cpu:/\n0::/\n",
            "memory/a/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
    ],
)
def test_kills_are_counted_in_both_versions(tmp_path: Path, groups: str, path: str, content: str) -> None:
    root = files(tmp_path, **{"proc__self__cgroup": groups, f"sys__fs__cgroup__{path.replace('/', '__')}": content})
    assert oom_kills(root) == 2


@pytest.mark.parametrize("groups", ["", "0::/x\n", "4:memory:/\n"])
def test_kills_are_unknown_where_nothing_tells(tmp_path: Path, groups: str) -> None:
    assert oom_kills(files(tmp_path, proc__self__cgroup=groups)) is None
    assert oom_kills(str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    ("status", "out_of_memory", "text"),
    [
        (1, False, "the worker process exited with status 1"),
        (1, True, "the worker process exited with status 1"),
        (-signal.SIGKILL, False, "the worker process was ended by SIGKILL"),
        (-signal.SIGKILL, True, "the worker process was ended by SIGKILL, probably because memory ran out"),
        (-signal.SIGSEGV, True, "the worker process was ended by SIGSEGV"),
        (-40, False, "the worker process was ended by signal 40"),
    ],
)
def test_the_end_is_told(status: int, out_of_memory: bool, text: str) -> None:
    death = how_it_ended(status, out_of_memory=out_of_memory)
    assert death.text == text
    assert (death.exit_code, death.signal) == ((status, None) if status >= 0 else (None, -status))


def test_a_device_fault_is_told_by_its_status() -> None:
    death = how_it_ended(DEVICE_FAULT_STATUS, out_of_memory=False)
    assert death.exit_code == DEVICE_FAULT_STATUS
    assert "device fault" in death.text
