"""TensorRT engines for the versions that ask for them: out of the cache, or built beside what serves meanwhile.

An agent builds one at a time, for a build takes all of its device; other agents on the same device do not know of it. A
build belongs to one version and goes with it. Not here: the build itself (``hardware.engine_build``), loading an engine
(``loading``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.profiles import Shape, engine_profiles
from edge.repository import StoredModel
from edge.settings import ModelsSettings
from hardware.backend import EngineOptions
from hardware.engine_messages import Engine, EngineRequest
from hardware.errors import EngineNotBuilt, HardwareError, ModelRefused
from hardware.onnx_graph import read_graph
from hardware.protobuf import Malformed
from hardware.validate import check_model
from mesh.lifecycle import Tasks
from mesh.values import ModelIdentity

log = logging.getLogger(__name__)

BuildEngine = Callable[[EngineRequest, Callable[[float], None]], Awaitable[Engine]]

FOLDER = "engines"
KEY_FILE = "engine.key"


@dataclass(slots=True, eq=False)
class Build:
    """One engine on its way to one version."""

    progress: float | None = None
    """Share that is done, 0 to 1; None until TensorRT began."""
    engine: Engine | None = None
    failed: str = ""
    """Why there is no engine."""
    seen: bool = False
    """Whether its end was acted on."""
    task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self.engine is not None or bool(self.failed)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Engines:
    """``folder`` keeps the cache and its key between runs; None where nothing can be kept, and nothing is built."""

    def __init__(
        self, build: BuildEngine, settings: ModelsSettings, folder: Path | None, on_change: Callable[[], None]
    ) -> None:
        self._build = build
        self._settings = settings
        self._folder = folder
        self._on_change = on_change
        self.builds: Counter[tuple[str, str, str]] = Counter()
        """Builds that ended, by model, version and outcome: "built", "cached", "failed" or "cancelled"."""
        self.build_s: dict[tuple[str, str], float] = {}
        """Seconds that the last build took, by model and version."""
        self._device = asyncio.Lock()
        self._tasks = Tasks("engines")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Engines]:
        """Leaving cancels what is being built."""
        async with self._tasks:
            yield self

    @property
    def ended(self) -> int | None:
        """Builds that ended so far; None while one is going on."""
        return None if self._device.locked() else sum(self.builds.values())

    @property
    def key_file(self) -> str:
        return "" if self._folder is None else str(self._folder / KEY_FILE)

    def cache_dir(self, digest: str) -> str:
        """Where ONNX Runtime's own TensorRT may keep engines of one model; empty where nothing can be kept."""
        if self._folder is None:
            return ""
        folder = self._folder / "onnxruntime-engines" / digest
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("engines of ONNX Runtime cannot be kept: %s", error.strerror)
            return ""
        return str(folder)

    async def start(self, stored: StoredModel, warmed: Mapping[str, Shape] | None) -> Build | None:
        """Begin to get an engine, and wait until it is there or TensorRT began to build; None if only the shapes of a
        warm-up on another backend can tell what to build for.

        Raises ``EngineNotBuilt`` or ``ModelRefused`` where it cannot even begin.
        """
        options = await asyncio.to_thread(engine_options, stored, warmed, self._settings.max_file_bytes)
        if options is None:
            return None
        if self._folder is None:
            raise EngineNotBuilt("this node has no state folder to keep engines in")
        request = EngineRequest(
            model_path=str(stored.path),
            model_digest=stored.identity.digest,
            options=options,
            device=self._settings.device,
            cache_dir=str(self._folder / FOLDER),
            key_file=self.key_file,
            max_model_bytes=self._settings.max_file_bytes,
        )
        build, begun = Build(), asyncio.Event()
        build.task = self._tasks.start(self._run(build, request, begun, stored.identity), stored.identity.name)
        if not self._device.locked():  # else another's build goes first, which may take minutes
            build.task.add_done_callback(lambda _: begun.set())
            try:
                await begun.wait()
            except BaseException:  # nobody would know of it
                build.cancel()
                raise
        return build

    async def _run(self, build: Build, request: EngineRequest, begun: asyncio.Event, of: ModelIdentity) -> None:
        def on_progress(share: float) -> None:
            build.progress = share
            if share < 1.0:  # an engine out of the cache is all done at once
                begun.set()
            self._on_change()

        outcome = "failed"
        try:
            async with self._device:
                build.engine = await self._build(request, on_progress)
            outcome = "cached" if build.engine.cached else "built"
            if not build.engine.cached:
                self.build_s[of.name, of.version] = build.engine.build_s
            log.info(
                "the engine of model %s %s", of.name,
                "was in the cache" if build.engine.cached else f"took {build.engine.build_s:.1f} s to build",
            )  # fmt: skip
        except asyncio.CancelledError:
            build.failed, outcome = "its build was cancelled", "cancelled"
            raise
        except HardwareError as error:
            log.warning("model %s gets no engine: %s", of.name, error.text)
            build.failed = error.text
        finally:
            if not build.ended:
                build.failed = "its build ended with an unexpected error, see the log of this node"
            self.builds[of.name, of.version, outcome] += 1
            begun.set()
            self._on_change()


def engine_options(
    stored: StoredModel, warmed: Mapping[str, Shape] | None, max_file_bytes: int
) -> EngineOptions | None:
    """What the engine of a version is built for; None if its shapes are not known yet. Blocking.

    Raises ``ModelRefused``.
    """
    check_model(str(stored.path), max_file_bytes)
    try:
        with stored.path.open("rb") as file:
            # Unmapped with the last view of it.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        inputs = read_graph(data).inputs
    except Malformed as error:
        raise ModelRefused(f"the file is not a well-formed ONNX model: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: it is empty by now
        raise ModelRefused("the model file cannot be read") from error
    profiles = engine_profiles(inputs, stored.config, warmed)
    return None if profiles is None else EngineOptions(precision=stored.config.precision, profiles=profiles)
