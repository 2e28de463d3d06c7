"""Failures on command: calls that fail by name and count, and what a GPU would leave undefined.

Not here: what is called (``cudart``, ``trt_run``).
"""

from __future__ import annotations

from collections import Counter


class Misuse(AssertionError):
    """What would be undefined behaviour on a GPU."""


class Failed(Exception):
    """A call or an operation ends with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Faults:
    """Failures on command. ``specification`` is "call:nth:code", comma-separated; the nth call of that name
    fails. Count and code are 1 where they are left out."""

    def __init__(self, specification: str = "") -> None:
        self._due: dict[tuple[str, int], int] = {}
        self._count: Counter[str] = Counter()
        for item in filter(None, specification.split(",")):
            name, nth, code = [*item.split(":"), "1", "1"][:3]
            self._due[name, int(nth)] = int(code)

    def on(self, name: str, nth: int = 1, code: int = 1) -> None:
        """The nth call of ``name`` from now on fails with ``code``; of any call, where the name is "*"."""
        self._due[name, self._count[name] + nth] = code

    def clear(self) -> None:
        self._due.clear()

    def enter(self, name: str) -> int:
        """Count a call; its code, 0 if it may go on."""
        for key in (name, "*"):
            self._count[key] += 1
            code = self._due.get((key, self._count[key]), 0)
            if code:
                return code
        return 0
