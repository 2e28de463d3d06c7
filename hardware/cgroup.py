"""Limits of this process's control groups, versions 1 and 2: memory, and processor quota.

A limit may lie on any group above; the tightest counts. Not here: the box's own size (``gauges``).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hardware.sysfs import Unknown, known, number, text

_INACTIVE = ("total_inactive_file ", "inactive_file ")
"""Page cache that the kernel gives back under pressure; version 1 counts the groups below in its own line."""


class Memory(NamedTuple):
    used_bytes: int
    limit_bytes: int
    group: Path


class Quota(NamedTuple):
    """A group that may use so many processors' time, and the time it has used since it was made."""

    group: Path
    cores: float
    used_s: float


class ControlGroups:
    def __init__(self, root: Path) -> None:
        self._base = root / "sys/fs/cgroup"
        self._paths = dict(_memberships(known(root / "proc/self/cgroup")))

    def memory(self, host_bytes: int) -> Memory | None:
        """The tightest limit below what the host has; None where there is none."""
        tightest = None
        for group in self._groups(""):
            tightest = _tighter(tightest, _memory(group, "memory.max", "memory.current"), host_bytes)
        for group in self._groups("memory"):
            memory = _memory(group, "memory.limit_in_bytes", "memory.usage_in_bytes")
            tightest = _tighter(tightest, memory, host_bytes)
        return tightest

    def quotas(self) -> list[Quota]:
        """Every group above this process with a quota."""
        found = [_quota_v2(group) for group in self._groups("")]
        accounts = self._groups("cpuacct")
        found += [_quota_v1(cpu, account) for cpu, account in zip(self._groups("cpu"), accounts, strict=False)]
        return [quota for quota in found if quota is not None]

    def _groups(self, controller: str) -> list[Path]:
        """The group of this process and those above it, as far as they are visible: in a container often only one."""
        own = self._paths.get(controller)
        if own is None:
            return []
        base = self._base / controller if controller else self._base
        group = base if ".." in own.split("/") else base / own.lstrip("/")
        return [group, *(parent for parent in group.parents if parent.is_relative_to(base))]


def _memberships(lines: str) -> list[tuple[str, str]]:
    """(controller, path) of each line of /proc/self/cgroup; the controller of version 2 is empty."""
    found = []
    for line in lines.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            found += [(controller, fields[2]) for controller in fields[1].split(",")]
    return found


def _memory(group: Path, limit: str, usage: str) -> Memory | None:
    try:
        most, used = number(group / limit), number(group / usage)
    except Unknown:  # no limit: the file is missing or says "max"
        return None
    lines = known(group / "memory.stat").splitlines()
    given = next((int(line.split()[1]) for name in _INACTIVE for line in lines if line.startswith(name)), 0)
    return Memory(max(0, used - given), most, group)


def _tighter(tightest: Memory | None, memory: Memory | None, host_bytes: int) -> Memory | None:
    if memory is None or memory.limit_bytes >= (tightest.limit_bytes if tightest else host_bytes):
        return tightest
    return memory


def _quota_v2(group: Path) -> Quota | None:
    try:
        quota, period = text(group / "cpu.max").split()
        used = next(int(line.split()[1]) for line in text(group / "cpu.stat").splitlines() if "usage_usec" in line)
        return Quota(group, int(quota) / int(period), used / 1e6)
    except (Unknown, ValueError, StopIteration):  # the root group has none; "max 100000"
        return None


def _quota_v1(cpu: Path, account: Path) -> Quota | None:
    try:
        quota, period = number(cpu / "cpu.cfs_quota_us"), number(cpu / "cpu.cfs_period_us")
        used = number(account / "cpuacct.usage")
    except Unknown:
        return None
    return Quota(cpu, quota / period, used / 1e9) if quota > 0 and period > 0 else None
