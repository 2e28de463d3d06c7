"""Engine builds seen from the agent: start the build process, follow its progress, end it when nobody wants it.

Imports no TensorRT. A build that crashes, hangs or is killed is an ``EngineNotBuilt`` like one that TensorRT refuses,
so that the caller falls back in one way. Not here: when to build, whose turn it is on a device, what serves meanwhile
(the agent's), the process's own side (``engine_process``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import msgspec

from hardware import confinement
from hardware.engine_messages import (
    MAX_LINE_BYTES,
    Built,
    Engine,
    EngineRequest,
    NotBuilt,
    decode_reply,
    line,
)
from hardware.errors import BY_CODE, BackendUnavailable, EngineNotBuilt

__all__ = ["BuildLimits", "Engine", "EngineRequest", "build_engine"]

OnProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class BuildLimits:
    stall_s: float = 900.0
    """Longest silence of a build that is not taken for a hang. Single steps of large models take minutes, and
    TensorRT tells nothing while it parses."""
    grace_s: float = 3.0
    """How long a build that is given up may take to notice before it is killed; it notices between steps."""


async def build_engine(request: EngineRequest, on_progress: OnProgress, limits: BuildLimits | None = None) -> Engine:
    """Build the engine, or find it in the cache.

    ``on_progress`` is told a share from 0 to 1 that never falls: first when TensorRT begins, 1 when it is there,
    which is all that is told of one in the cache.

    Raises ``EngineNotBuilt``, ``ModelRefused``, ``BackendUnavailable`` or ``DeviceOutOfMemory``. Cancelling this task
    cancels the build; in every case the process is gone, and nothing of it left, when this returns. Call it on a loop
    whose thread lives as long: the process is killed when that thread ends.
    """
    limits = limits or BuildLimits()
    build = _Build(await _spawn(), limits)
    try:
        return await build.run(request, on_progress)
    finally:
        await build.end()


async def _spawn() -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hardware.engine_process",
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            env=confinement.environment(),
            limit=2 * MAX_LINE_BYTES,
        )
    except OSError as error:
        raise BackendUnavailable(f"a build process cannot be started: {error.strerror}") from error


class _Build:
    def __init__(self, process: Process, limits: BuildLimits) -> None:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the process was started with both pipes")
        self._process = process
        self._requests = process.stdin
        self._replies = process.stdout
        self._limits = limits
        self._share = 0.0
        self._phase = ""

    async def run(self, request: EngineRequest, on_progress: OnProgress) -> Engine:
        self._requests.write(line(request))
        while data := await self._next_line():
            try:
                reply = decode_reply(data)
            except msgspec.MsgspecError:
                raise EngineNotBuilt("the build process answered what is no answer") from None
            if isinstance(reply, Built):
                on_progress(1.0)
                return reply.engine
            if isinstance(reply, NotBuilt):
                raise BY_CODE.get(reply.code, EngineNotBuilt)(reply.text)
            self._share, self._phase = max(self._share, reply.share), reply.phase
            on_progress(self._share)
        raise self._death(await self._process.wait())

    async def _next_line(self) -> bytes:
        """One line, empty at the end; raises ``EngineNotBuilt`` after too long a silence."""
        reading = asyncio.ensure_future(self._replies.readline())
        try:
            await asyncio.wait({reading}, timeout=self._limits.stall_s)
            if not reading.done():
                raise EngineNotBuilt(f"the build hung for {self._limits.stall_s:g} s{self._where()} and was ended")
            return reading.result()
        except ValueError:  # a line without end
            raise EngineNotBuilt("the build process answered what is no answer") from None
        finally:
            reading.cancel()

    async def end(self) -> None:
        """Ask the process to end by closing its request, kill it if it does not, and wait for it, come what may."""
        ending = asyncio.ensure_future(self._end())
        cancelled = False
        with anyio.CancelScope(shield=True):  # else a cancelled task group would ask again in every turn of the loop
            while not ending.done():
                try:
                    await asyncio.shield(ending)
                except asyncio.CancelledError:  # noqa: PERF203 - goes round once for each cancellation
                    cancelled = True
        ending.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _end(self) -> None:
        self._requests.close()
        gone = asyncio.ensure_future(self._process.wait())
        await asyncio.wait({gone}, timeout=self._limits.grace_s)
        if not gone.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await gone

    def _death(self, status: int) -> EngineNotBuilt:
        if status >= 0:
            return EngineNotBuilt(f"the build process exited with status {status}{self._where()}")
        try:
            name = signal.Signals(-status).name
        except ValueError:  # a real-time signal has no name
            name = f"signal {-status}"
        why = ", most likely for want of memory" if -status == signal.SIGKILL else ""
        return EngineNotBuilt(f"the build process was ended by {name}{self._where()}{why}")

    def _where(self) -> str:
        return f" in '{self._phase}' at {self._share:.0%}" if self._phase else ""
