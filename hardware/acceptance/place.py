"""A backend at a precision, and models loaded there: in a worker, from an engine where it takes one.

Not here: what is asked of them (the checks), the order (``plan``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hardware.acceptance.compare import TOLERANCE, Array, Difference, difference, values
from hardware.acceptance.finding import CheckFailed, Skipped
from hardware.acceptance.subjects import Subject
from hardware.backend import EngineOptions, Loaded, LoadOptions, Profile, RawTensor
from hardware.engine_build import BuildLimits, Engine, EngineRequest, build_engine
from hardware.errors import BackendUnavailable, EngineNotBuilt
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime

BACKENDS = ("onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
_STANDS_FOR = {"tensorrt-fake": "tensorrt", "tensorrt-rtx": "tensorrt"}
"""What TensorRT's adapter reports when another module is in its place."""

Precision = Literal["fp32", "fp16"]


@dataclass
class Desk:
    """What all checks of a run share."""

    folder: Path
    """Of this run alone: made models, engines, keys. Removed afterwards."""
    seconds: float = 60.0
    """Length of the soak; the other measurements are as thorough as this share of a minute."""
    device: int = 0
    build_limits: BuildLimits = field(default_factory=BuildLimits)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def share(self, most: float, least: float = 0.0) -> float:
        """``most`` in a run of a minute or longer, less in a shorter one."""
        return max(least, most * min(1.0, self.seconds / 60))

    def new_key(self) -> str:
        return f"acceptance-{next(self._numbers)}"

    def engine_request(self, subject: Subject, options: EngineOptions, cache: str = "engines") -> EngineRequest:
        return EngineRequest(
            model_path=subject.path,
            model_digest=subject.digest,
            options=options,
            device=self.device,
            cache_dir=str(self.folder / cache),
            key_file=str(self.folder / f"{cache}.key"),
        )


@dataclass
class Told:
    """How a build went on."""

    shares: list[float] = field(default_factory=list)

    @property
    def rises(self) -> bool:
        return self.shares == sorted(self.shares) and self.shares[-1:] == [1.0]


@dataclass(frozen=True, slots=True)
class Opened:
    """A model loaded in a worker."""

    runtime: WorkerRuntime
    key: str
    loaded: Loaded
    subject: Subject

    async def run(self, rows: int = 1, seed: int = 0) -> list[Array]:
        return await self.ask(self.subject.request(rows, seed))

    async def ask(self, request: Sequence[RawTensor]) -> list[Array]:
        return values(await self.runtime.run(self.key, request, ()))


class Place:
    """One backend at one precision. Enter it to use it: its worker ends with it."""

    def __init__(self, desk: Desk, backend: str, precision: Precision = "fp32", name: str = "") -> None:
        self.desk = desk
        self.backend = backend
        self.precision: Precision = precision
        self.name = name or backend
        """What it really is: "tensorrt-rtx", or one that ends with "-fake"."""
        self._runtime: WorkerRuntime | None = None
        self._engines: dict[EngineRequest, Engine] = {}

    async def __aenter__(self) -> Place:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runtime is not None:
            await self._runtime.close()

    @property
    def is_simulated(self) -> bool:
        return self.name.endswith("-fake")

    @property
    def tolerance(self) -> float:
        return TOLERANCE["cpu" if self.backend == "onnxruntime-cpu" else self.precision]

    async def worker(self) -> WorkerRuntime:
        """The worker of this place, started again if it died."""
        if self._runtime is not None and not self._runtime.alive:
            await self._runtime.close()
            self._runtime = None
        if self._runtime is None:
            self._runtime = WorkerRuntime()
            await self._runtime.start()
        return self._runtime

    def kill(self) -> None:
        """End the worker of this place, which hangs."""
        if self._runtime is not None:
            self._runtime.kill()

    async def build(self, subject: Subject, rows: int = 0, told: Told | None = None) -> Engine:
        """The engine of a model for up to ``rows`` rows, built once. Raises what ``build_engine`` raises."""
        request = self.desk.engine_request(subject, self.engine_options(subject, rows))
        if request not in self._engines:
            shares = (told or Told()).shares
            self._engines[request] = await build_engine(request, shares.append, self.desk.build_limits)
        return self._engines[request]

    def engine_options(self, subject: Subject, rows: int = 0) -> EngineOptions:
        profiles: tuple[Profile, ...] = subject.engine_profiles(rows) if rows else subject.engine_profiles()
        return EngineOptions(precision=self.precision, profiles=profiles)

    async def options(self, subject: Subject, rows: int = 0) -> LoadOptions:
        """How a model is opened here; builds what that needs."""
        options = LoadOptions(
            backend=self.backend,
            threads=len(os.sched_getaffinity(0)),
            device=self.desk.device,
            allow_cpu=False,
            engine=self.engine_options(subject, rows),
        )
        if self.backend == "onnxruntime-tensorrt":
            folder = f"{subject.name}-{self.precision}-{rows}"
            return replace(options, cache_dir=str(self.desk.folder / "onnxruntime" / folder))
        if self.backend != "tensorrt":
            return options
        engine = await self.build(subject, rows)
        return replace(options, engine_entry=engine.entry, engine_key_file=str(self.desk.folder / "engines.key"))

    async def load(self, subject: Subject, options: LoadOptions, runtime: WorkerRuntime | None = None) -> Opened:
        """Load it and see that it runs where it was asked to (DESIGN D8)."""
        runtime = runtime or await self.worker()
        key = self.desk.new_key()
        try:
            loaded = await runtime.load(key, subject.path, options)
        except BackendUnavailable as error:
            if subject.must_run:
                raise
            raise Skipped(f"{self.backend} takes none of this model: {error.text}") from None
        try:
            self._look(loaded, subject)
        except Exception:
            await runtime.unload(key)
            raise
        return Opened(runtime, key, loaded, subject)

    @asynccontextmanager
    async def opened(self, subject: Subject, rows: int = 0, instances: int = 1) -> AsyncIterator[Opened]:
        """Loaded in this place's worker, and unloaded again if that still lives."""
        options = replace(await self.options(subject, rows), instances=instances)
        opened = await self.load(subject, options)
        try:
            yield opened
        finally:
            if opened.runtime.alive:
                await opened.runtime.unload(opened.key)

    @asynccontextmanager
    async def alone(
        self, subject: Subject, worker: WorkerOptions | None = None, *, instances: int = 1, threads: int = 0
    ) -> AsyncIterator[Opened]:
        """Loaded in a worker of its own, which may be killed."""
        options = replace(await self.options(subject), instances=instances)
        options = replace(options, threads=threads or options.threads)
        async with WorkerRuntime(worker) as runtime:
            yield await self.load(subject, options, runtime)

    def compare(self, right: Sequence[Array], given: Sequence[Array]) -> Difference:
        return difference(right, given, self.tolerance)

    def demand(self, right: Sequence[Array], given: Sequence[Array], what: str) -> Difference:
        """Raises ``CheckFailed`` if the answers differ by more than this place's arithmetic explains."""
        apart = self.compare(right, given)
        if not apart.within(self.tolerance):
            advice = "do not serve this model here; send us this report"
            raise CheckFailed(f"{what} is wrong", {**apart.numbers, "tolerance_share": self.tolerance}, advice)
        return apart

    def _look(self, loaded: Loaded, subject: Subject) -> None:
        effective = _STANDS_FOR.get(loaded.effective, loaded.effective)
        if loaded.requested != self.backend or effective != self.backend:
            if not subject.must_run:
                raise Skipped(f"{loaded.effective} runs this model: {loaded.detail}")
            advice = f"{self.backend} does not work in this installation: {loaded.detail or 'no reason was given'}"
            raise CheckFailed(f"{self.backend} was asked for, {loaded.effective} runs it", advice=advice)
        if loaded.effective.endswith("-fake") and not self.is_simulated:
            raise CheckFailed(f"{loaded.effective} stands in for {self.name}")


def refused_by_design(subject: Subject, error: EngineNotBuilt) -> Exception:
    """A model TensorRT has no implementation for is no fault of the box, unless it is one that it must take."""
    if subject.must_run:
        return CheckFailed(f"not built: {error.text}", advice="TensorRT does not work here: see its versions above")
    return Skipped(f"TensorRT does not take this model, ONNX Runtime serves it: {error.text}")
