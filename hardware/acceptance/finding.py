"""What a check comes to, and how it is run so that it takes nothing else down.

Not here: the checks, the order they come in (``plan``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hardware.errors import HardwareError

State = Literal["ok", "failed", "skipped"]
Numbers = dict[str, Any]

NOT_EVIDENCE = "not evidence: the device is simulated"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    backend: str
    """Where it really ran; empty for checks of the whole box."""
    model: str
    state: State
    found: str
    numbers: Numbers = field(default_factory=dict)
    """Units are in the names."""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A check that went well."""

    text: str
    numbers: Numbers = field(default_factory=dict)
    advice: str = ""


class CheckFailed(Exception):
    """What should hold does not."""

    def __init__(self, text: str, numbers: Numbers | None = None, advice: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.numbers = numbers or {}
        self.advice = advice


class Skipped(Exception):
    """It cannot be told here, and why."""


Check = Callable[[], Awaitable[Found]]


async def judge(
    check: str, backend: str, model: str, work: Check, limit_s: float, end: Callable[[], None] | None = None
) -> Finding:
    """Run one check to its finding; nothing but a cancellation gets out of it.

    ``end`` is called after ``limit_s``, to kill what hangs: else the check could not even be given up.
    """
    try:
        found = await _within(limit_s, work, end)
    except Skipped as why:
        return Finding(check, backend, model, "skipped", str(why))
    except CheckFailed as error:
        return Finding(check, backend, model, "failed", error.text, error.numbers, error.advice)
    except HardwareError as error:
        return Finding(check, backend, model, "failed", f"{error.code}: {error.text}")
    except asyncio.TimeoutError:
        return Finding(check, backend, model, "failed", f"did not end within {limit_s:g} s")
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding too, and the others still count
        return Finding(check, backend, model, "failed", f"the check broke: {type(error).__name__}: {error}")
    return Finding(check, backend, model, "ok", found.text, found.numbers, found.advice)


async def _within(limit_s: float, work: Check, end: Callable[[], None] | None) -> Found:
    task = asyncio.ensure_future(work())
    try:
        await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            if end is not None:
                end()
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
