"""What goes wrong on purpose: a killed worker, a run without end, a frozen worker, no memory.

A sticky CUDA fault is not provoked: on a desktop it may take the driver, and with it the screen, along. Not here: who
restarts workers in the product (the agent's).
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

from hardware.acceptance import made
from hardware.acceptance.finding import CheckFailed, Found, Skipped
from hardware.acceptance.onnx_file import write_hollow
from hardware.acceptance.place import Opened, Place
from hardware.acceptance.subjects import Subject, of_file
from hardware.acceptance.together import Checked
from hardware.backend import LoadOptions, RawTensor
from hardware.errors import DeviceOutOfMemory, HardwareError, RunFailed, WorkerDied
from hardware.worker_process import WorkerOptions

PENDING = 64
"""Runs in the worker when it is killed: more than it has slots, so that some are never begun."""
NOTICED_S = 30.0
"""A death is seen after milliseconds; more than this is no seeing."""
ENDS_S = 30.0
WITHOUT_END = 2**62
LIMIT_BYTES = 4 << 30
"""Address space of the worker that runs out of memory: so much is not taken from the box."""
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
HOLLOW_BYTES = 256 << 20
TOO_MUCH = (1 << 20, 1 << 18)
"""1 TiB of FP32."""


async def killed(place: Place, subject: Subject, neighbour: Subject) -> Found:
    """SIGKILL in the middle of runs: all of them fail by name, a neighbour does not notice, a new worker takes over."""
    async with place.alone(neighbour) as other:
        checked = Checked(place, other)
        await checked.learn()
        beside = asyncio.ensure_future(checked.run(0, sys.maxsize, float("inf")))
        try:
            noticed_s = await _kill_one(place, subject)
            started = time.monotonic()
            async with place.alone(subject) as again:
                await again.run()
                back_s = time.monotonic() - started
            checked.ran.clear()
            more = asyncio.ensure_future(checked.ran.wait())
            await asyncio.wait({beside, more}, return_when=asyncio.FIRST_COMPLETED)
            more.cancel()
        finally:
            beside.cancel()
            await asyncio.wait({beside})
        if not beside.cancelled() and (harm := beside.exception()) is not None:
            raise CheckFailed(f"the neighbour was harmed: {harm}")
    numbers = {"noticed_ms": noticed_s * 1e3, "back_ms": back_s * 1e3, "neighbour_runs": checked.runs}
    text = f"noticed after {noticed_s * 1e3:.0f} ms, a new worker answers after {back_s * 1e3:.0f} ms"
    return Found(f"{text}; its neighbour's {checked.runs} answers are right", numbers)


async def _kill_one(place: Place, subject: Subject) -> float:
    async with place.alone(subject) as opened:
        await opened.run()
        request = subject.request(subject.most_rows(), 3)
        runs = [opened.runtime.run(opened.key, request, ()) for _ in range(PENDING)]
        os.kill(opened.runtime.pid, signal.SIGKILL)
        started = time.monotonic()
        await asyncio.wait(runs, timeout=NOTICED_S)
        noticed_s = time.monotonic() - started
        await _see_dead(opened, runs, "SIGKILL")
    return noticed_s


async def _see_dead(opened: Opened, runs: list[asyncio.Future[list[RawTensor]]], what: str) -> None:
    if not all(run.done() for run in runs):
        raise CheckFailed(f"runs of a worker that was ended by {what} were left without an answer")
    errors = [run.exception() for run in runs]
    if odd := [error for error in errors if error is not None and not isinstance(error, WorkerDied)]:
        raise CheckFailed(f"a run of a worker that was ended by {what} failed as {odd[0]!r}")
    if not any(errors) or opened.runtime.alive:
        raise CheckFailed(f"the worker lived through {what}")


async def frozen(place: Place, subject: Subject) -> Found:
    """A worker that is stopped in the middle of a run, as one in a hanging driver: killing it frees whoever waits."""
    async with place.alone(subject) as opened:
        await opened.run()
        os.kill(opened.runtime.pid, signal.SIGSTOP)
        run = opened.runtime.run(opened.key, subject.request(), ())
        await asyncio.wait({run}, timeout=0.2)
        if run.done():
            raise CheckFailed("a stopped worker answered")
        started = time.monotonic()
        opened.runtime.kill()
        await asyncio.wait({run}, timeout=NOTICED_S)
        took_s = time.monotonic() - started
        await _see_dead(opened, [run], "kill")
    async with place.alone(subject) as opened:
        await opened.run()
    return Found(f"its run was freed {took_s * 1e3:.0f} ms after the kill; a new worker answers", {"ms": took_s * 1e3})


async def endless(place: Place, subject: Subject) -> Found:
    """A run without end is given up: it ends early, or its worker is killed; then the place works as before."""
    if place.backend == "tensorrt":
        raise Skipped("TensorRT cannot end a run; a frozen worker shows what is done about it")
    model = _write(place, "made-counter", made.counter())
    options = await place.options(subject)
    async with place.alone(subject) as opened:
        endless = await place.load(model, options, opened.runtime)
        number = RawTensor("N", "INT64", (), WITHOUT_END.to_bytes(8, "little"))
        run = opened.runtime.run(endless.key, [number], ())
        await asyncio.wait({run}, timeout=0.2)
        if run.done():
            raise CheckFailed("the run without end ended", {"error": str(run.exception())})
        started = time.monotonic()
        opened.runtime.abandon(run)
        await asyncio.wait({run}, timeout=ENDS_S)
        took_s = time.monotonic() - started
        how = "ended early"
        if not run.done():
            how = "did not end early; its worker was killed"
            opened.runtime.kill()
            await asyncio.wait({run}, timeout=NOTICED_S)
        _see_ended(run)
        if opened.runtime.alive:
            await opened.run()
    return Found(f"{how} after {took_s * 1e3:.0f} ms", {"ms": took_s * 1e3, "ended_early": how == "ended early"})


def _see_ended(run: asyncio.Future[list[RawTensor]]) -> None:
    if not run.done() or not isinstance(run.exception(), (RunFailed, WorkerDied)):
        raise CheckFailed("a run that was given up was left without an answer")


async def no_memory(place: Place, subject: Subject, *, integrated: bool | None) -> Found:
    """A run that cannot have its memory fails by name, and its worker goes on.

    On the CPU the worker is held to a limit; on a GPU with memory of its own one allocation is larger than all of it,
    which fails without taking any. Elsewhere the box itself would run out.
    """
    if place.backend in ("tensorrt", "onnxruntime-tensorrt"):
        raise Skipped("TensorRT would take the device's memory piece by piece; other programs may need it")
    on_cpu = place.backend == "onnxruntime-cpu"
    if not on_cpu and integrated is not False:
        raise Skipped("this GPU works in the box's own memory: the kernel would kill somebody")
    if not on_cpu and _promises_any_memory():
        raise Skipped("this kernel promises any memory: what came to the CPU would take the box's")
    model = _write(place, "made-greedy", made.greedy())
    options = replace(await place.options(subject), threads=1)
    limit = WorkerOptions(address_space_bytes=LIMIT_BYTES if on_cpu else None)
    async with place.alone(subject, limit, threads=1) as opened:
        greedy = await place.load(model, options, opened.runtime)
        if not on_cpu and greedy.loaded.detail:
            raise Skipped(f"it would not run on the GPU alone: {greedy.loaded.detail}")
        small, large = (
            RawTensor("N", "INT64", (2,), b"".join(dim.to_bytes(8, "little") for dim in dims))
            for dims in ((2, 2), TOO_MUCH)
        )
        await greedy.ask([small])
        said = await _refused(greedy.ask([large]))
        await greedy.ask([small])
        await opened.run()
    return Found(f"a run is refused by name, and the worker goes on: {said}")


async def no_memory_to_load(place: Place, subject: Subject) -> Found:
    """A model that does not fit beside what is loaded is refused by name, and what is loaded goes on."""
    if place.backend != "onnxruntime-cpu":
        raise Skipped("provoked on the CPU alone, where a worker can be held to a limit")
    path = place.desk.folder / "made-hollow.onnx"
    write_hollow(path, HOLLOW_BYTES // 4096)
    async with place.alone(subject, threads=1) as opened:
        await opened.run()
        limit = _virtual_bytes(opened.runtime.pid) + HOLLOW_BYTES * 3 // 2
        resource.prlimit(opened.runtime.pid, resource.RLIMIT_AS, (limit, limit))
        said = await _refused(opened.runtime.load("hollow", str(path), LoadOptions()))
        await opened.run()
    return Found(f"a load is refused by name, and the worker goes on: {said}")


async def _refused(work: Awaitable[object]) -> str:
    try:
        await work
    except DeviceOutOfMemory as error:
        return error.text[:120]
    except HardwareError as error:
        raise CheckFailed(f"failed as {error.code} instead of out_of_memory: {error.text}") from None
    raise CheckFailed("memory was found that is not there")


def _promises_any_memory() -> bool:
    return _OVERCOMMIT.read_text(encoding="ascii").strip() == "1"


def _virtual_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * resource.getpagesize()


def _write(place: Place, name: str, data: bytes) -> Subject:
    path = Path(place.desk.folder) / f"{name}.onnx"
    path.write_bytes(data)
    return of_file(name, path)
