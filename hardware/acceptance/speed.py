"""How fast a model is: by rows, against ONNX Runtime on the CPU, with and without CUDA graphs and worker.

Nothing here fails for being slow: the numbers are for people. Not here: steady load (``soak``).
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from hardware.acceptance.finding import CheckFailed, Found
from hardware.acceptance.place import Opened, Place
from hardware.acceptance.subjects import Subject
from hardware.backend import LoadOptions
from hardware.confinement import environment
from hardware.errors import InvalidInput, RunFailed

ROWS = (1, 2, 4, 8, 16)
MOST_S = 1.0
"""Of measuring for each number of rows in a run of a minute."""
WARM = 3
LEAST, MOST = 5, 2000

CpuMs = dict[tuple[str, int], float]
"""Milliseconds per row on ONNX Runtime's CPU, by model and rows: what others are compared with."""


async def by_rows(opened: Opened, place: Place, cpu_ms: CpuMs) -> Found:
    """Milliseconds per row, the middle of all runs, worker included."""
    subject, found = opened.subject, {}
    for rows in ROWS if subject.takes_rows else (1,):
        if rows > subject.most_rows():
            break
        try:
            found[rows] = await _middle_ms(opened, place, rows) / rows
        except (InvalidInput, RunFailed):
            if rows == 1:
                raise
            break  # so many do not fit, fewer do
    if place.backend == "onnxruntime-cpu":
        cpu_ms.update({(subject.name, rows): ms for rows, ms in found.items()})
    ratios = {n: cpu_ms[subject.name, n] / ms for n, ms in found.items() if (subject.name, n) in cpu_ms and ms > 0}
    numbers = {
        "ms_per_row": {str(rows): ms for rows, ms in found.items()},
        "times_as_fast_as_onnxruntime_cpu": {str(rows): ratio for rows, ratio in ratios.items()},
    }
    text = ", ".join(f"{rows}: {ms:.3g}" for rows, ms in found.items())
    most = max(ratios, default=0)
    against = (
        f"; {ratios[most]:.1f} times the CPU's speed at {most}" if most and place.backend != "onnxruntime-cpu" else ""
    )
    return Found(f"ms per row by rows {text}{against}", numbers)


async def graphs(place: Place, subject: Subject) -> Found:
    """The same engine with CUDA graphs on and off: the same answers, and the time of both."""
    options = await place.options(subject)
    took, answers = {}, {}
    for on in (False, True):
        opened = await place.load(subject, replace(options, cuda_graphs=on))
        took[on] = await _middle_ms(opened, place, 1)
        answers[on] = [await opened.run(1, seed) for seed in range(6)]
        await opened.runtime.unload(opened.key)
    for right, given in zip(answers[False], answers[True], strict=True):
        place.demand(right, given, "an answer with CUDA graphs")
    text = f"{took[True]:.3g} ms with, {took[False]:.3g} ms without; the answers are the same"
    return Found(text, {"on_ms": took[True], "off_ms": took[False]})


async def overhead(place: Place, subject: Subject) -> Found:
    """What the worker costs: the same runs in a worker and in the process that asks, which is one to throw away."""
    options = await place.options(subject)
    opened = await place.load(subject, options)
    worker_ms = await _middle_ms(opened, place, 1)
    await opened.runtime.unload(opened.key)
    inline_ms = await _inline_ms(place, subject, options)
    numbers = {"worker_ms": worker_ms, "in_process_ms": inline_ms, "overhead_ms": worker_ms - inline_ms}
    text = f"{worker_ms:.3g} ms in a worker, {inline_ms:.3g} ms in process"
    return Found(text, numbers)


async def _middle_ms(opened: Opened, place: Place, rows: int) -> float:
    request = opened.subject.request(rows)
    return await middle_ms(lambda: opened.runtime.run(opened.key, request, ()), place.desk.share(MOST_S, 0.02))


async def middle_ms(run: Callable[[], Awaitable[Any]], seconds: float) -> float:
    """The median of the runs that fit into ``seconds``."""
    for _ in range(WARM):
        await run()
    took: list[float] = []
    until = time.perf_counter() + seconds
    while len(took) < LEAST or (time.perf_counter() < until and len(took) < MOST):
        started = time.perf_counter()
        await run()
        took.append((time.perf_counter() - started) * 1e3)
    return statistics.median(took)


async def _inline_ms(place: Place, subject: Subject, options: LoadOptions) -> float:
    inputs = [(t.name, t.datatype, t.shape, base64.b64encode(t.whole).decode()) for t in subject.request()]
    asked = {"path": subject.path, "options": options, "inputs": inputs, "seconds": place.desk.share(MOST_S, 0.02)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hardware.acceptance.inline",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        out, _ = await process.communicate(msgspec.json.encode(asked))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not out.strip():
        raise CheckFailed(f"the process that runs it itself ended with status {process.returncode}")
    return float(json.loads(out.splitlines()[-1])["ms"])
