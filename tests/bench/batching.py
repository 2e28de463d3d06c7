"""``python -m tests.bench.batching``: goodput of a device's queue against offered load, with and without batching.

Policies: ``none`` runs every request alone, ``window`` as Triton's dynamic batcher does (up to a largest batch, first
come first served, the first of a batch waiting at most a fixed time for company), ``ours`` is what an agent does. They
share executor, worker, expiry by deadline, and the early drop of what would be late even if it ran at once, without
which both others collapse under overload; what differs is the rule for the next run and the refusal at the door.

Requests arrive as a Poisson stream, the same one for each policy; each has a deadline of ``SLO`` times what one
inference alone takes. ``load`` is the offered rate and ``goodput`` the answers inside their deadline, both as a share
of what the device can do at best, in batches as large as pay. Not here: doors, hops, more than one model at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from edge.batching import Batching, Cost, Entry, Plan, Planner, first_feasible, plan
from edge.executor import Executor
from edge.model_config import BatchingConfig, ModelConfig
from edge.served import Served, Warmed
from edge.warmup import warm_up
from hardware.backend import LoadOptions
from hardware.runtime import Runtime
from hardware.worker_runtime import WorkerRuntime
from mesh.deadline import Deadline
from mesh.errors import MeshError
from tests import onnx_models
from tests.bench.report import Row, machine, show

LOADS = (0.3, 0.6, 0.9, 1.2, 2.0, 3.0)
SLO = 6.0
LARGEST_BATCH = 16
WINDOW_SHARE = 0.5
"""The fixed window, as a share of one inference."""
MODELS = Path(__file__).parents[2] / "models"
REAL = ("orientation", "magika", "ocr_rec")


def friendly() -> bytes:
    """A batch-friendly model: one row costs nearly as much as sixteen, since reading the weights is what takes time."""
    width, layers = 4096, 4
    weights = [numpy_helper.from_array((np.eye(width) + 1e-3).astype("f4"), f"W{number}") for number in range(layers)]
    nodes = [helper.make_node("MatMul", [f"X{n}" if n else "X", f"W{n}"], [f"X{n + 1}"]) for n in range(layers)]
    value = onnx_models.value
    inputs, outputs = [value("X", "FP32", [-1, width])], [value(f"X{layers}", "FP32", [-1, width])]
    return onnx_models.build(nodes, inputs, outputs, weights=weights)


def alone(queue: Sequence[Entry], max_rows: int, cost: Cost) -> Plan:
    """First come, first served, one by one."""
    return Plan(min(first_feasible(queue, cost), len(queue) - 1), 1)


def fixed_window(queue: Sequence[Entry], max_rows: int, cost: Cost) -> Plan:
    """As many as there are, up to the largest batch."""
    drop = min(first_feasible(queue, cost), len(queue) - 1)
    return Plan(drop, min(len(queue) - drop, LARGEST_BATCH))


@dataclass(frozen=True)
class Policy:
    name: str
    planner: Planner
    refuse: bool
    batching: Batching | None
    """None is what the warm-up found out."""


@dataclass(frozen=True)
class Subject:
    """One loaded model: what a request is, and what the device can do at best."""

    name: str
    runtime: Runtime
    warmed: Warmed
    declared: Warmed
    """With batching declared, as for a model whose owner turned it on."""

    @property
    def capacity(self) -> float:
        """Rows a second of the run that costs least per row."""
        return max(rows / ms for rows, ms in self.declared.points) * 1e3

    @property
    def slo_ms(self) -> float:
        return SLO * self.declared.service_ms


def policies(subject: Subject) -> tuple[Policy, ...]:
    window = Batching(LARGEST_BATCH, WINDOW_SHARE * subject.declared.service_ms)
    return (
        Policy("none", alone, refuse=False, batching=Batching()),
        Policy("window", fixed_window, refuse=False, batching=window),
        Policy("ours", plan, refuse=True, batching=None),
    )


@contextlib.asynccontextmanager
async def loaded(name: str, folder: Path) -> AsyncIterator[Subject]:
    """A worker with the model, warmed up as an agent does."""
    path = MODELS / name / "1" / "model.onnx" if name in REAL else onnx_models.save(friendly(), folder / "m.onnx")
    async with WorkerRuntime() as runtime:
        model = await runtime.load("m", str(path), LoadOptions(threads=1))
        declared = ModelConfig(batching=BatchingConfig(max_rows=LARGEST_BATCH))
        warmed = await warm_up(runtime, "m", model, ModelConfig())
        yield Subject(name, runtime, warmed, await warm_up(runtime, "m", model, declared))


async def goodput(subject: Subject, policy: Policy, load: float, seconds: float, seed: int) -> float:
    """Answers inside their deadline a second, over the capacity."""
    executor = Executor(
        concurrency=1, queue_limit=4096, hang_s=60.0, on_hang=lambda runtime, served: None, planner=policy.planner,
        refuse=policy.refuse,
    )  # fmt: skip
    served = Served("m", "m", subject.runtime)
    served.warmed(subject.warmed if policy.batching is None else replace(subject.declared, batching=policy.batching))
    rate = load * subject.capacity
    luck = random.Random(seed)
    good = 0

    async def ask(arrival: float) -> None:
        nonlocal good
        deadline = Deadline(arrival + subject.slo_ms / 1e3)
        with contextlib.suppress(MeshError):
            await executor.infer(served, subject.warmed.inputs, (), deadline, 0)
            good += time.monotonic() <= deadline.at

    tasks: set[asyncio.Task[None]] = set()
    begin = time.monotonic()
    arrival, end = begin, begin + seconds
    while (arrival := arrival + luck.expovariate(rate)) < end:
        if (pause := arrival - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(ask(arrival))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    executor.close()
    return good / seconds / subject.capacity


async def measure(names: Sequence[str], seconds: float, rounds: int) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    notes = [machine(), f"deadline {SLO:g} times one inference, {rounds} rounds of {seconds:g} s, medians"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            async with loaded(name, Path(folder)) as subject:
                notes.append(
                    f"{name}: capacity {subject.capacity:.0f}/s, alone {1e3 / subject.declared.service_ms:.0f}/s, "
                    f"requests may run together: {subject.warmed.batching.max_rows}"
                )
                for load in LOADS:
                    got: dict[str, list[float]] = {}
                    for number in range(rounds):
                        turn = policies(subject) if number % 2 == 0 else policies(subject)[::-1]
                        for policy in turn:
                            value = await goodput(subject, policy, load, seconds, seed=number)
                            got.setdefault(policy.name, []).append(value)
                    rows += [
                        {"model": name, "load": load, "policy": p.name, "goodput": statistics.median(got[p.name])}
                        for p in policies(subject)
                    ]
    return rows, notes + verdicts(rows)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Ours beside the better of the others at each load, and at the highest load beside its own peak."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        at = {(row["load"], row["policy"]): float(row["goodput"] or 0) for row in rows if row["model"] == name}
        ratios = [at[load, "ours"] / max(at[load, "none"], at[load, "window"], 1e-9) for load in LOADS]
        ours = [at[load, "ours"] for load in LOADS]
        lines.append(
            f"{name}: ours over the better of the others {', '.join(f'{ratio:.2f}' for ratio in ratios)} at "
            f"{', '.join(f'{load:g}' for load in LOADS)} times capacity; at {LOADS[-1]:g} it keeps "
            f"{ours[-1] / max(ours):.2f} of its peak"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="coarse")
    parser.add_argument("--models", nargs="*", default=["friendly", *(n for n in REAL if (MODELS / n).is_dir())])
    arguments = parser.parse_args()
    seconds, rounds = (1.0, 1) if arguments.quick else (1.5, 3)
    rows, notes = asyncio.run(measure(arguments.models, seconds, rounds))
    show(rows, notes, as_json=arguments.json)


if __name__ == "__main__":
    main()
