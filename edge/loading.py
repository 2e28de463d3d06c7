"""One version on its way to READY in a runtime: each backend of its chain in turn, a warm-up, then the requests.

READY means that an inference succeeded (DESIGN D9), and says so where it was not the backend that was asked for
(DESIGN D8). An engine that comes later is loaded beside what serves and takes over when it is warm. Not here: the
runtime's own life (``host``), when a version is loaded at all (``instances``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable

from edge.engines import Build, Engines, engine_options
from edge.executor import Executor
from edge.footprints import Footprints
from edge.instance import Instance, is_backend
from edge.measure import Measure
from edge.settings import Backend, ModelsSettings
from edge.warmup import warm_up
from hardware.backend import EngineOptions, LoadOptions
from hardware.errors import BackendUnavailable, DeviceFault, EngineNotBuilt, HardwareError, ModelRefused, WorkerDied
from hardware.runtime import Runtime
from mesh.lifecycle import within
from mesh.values import InstanceState

log = logging.getLogger(__name__)


class Fatal(Exception):
    """The runtime is at its end: it died, its device is lost, or a warm-up does not end and only that end frees the
    device."""

    def __init__(self, backend: Backend, error: Exception, limit_s: float) -> None:
        self.backend = backend
        self.hangs = isinstance(error, asyncio.TimeoutError)
        self.died = isinstance(error, WorkerDied)
        self.text = f"its warm-up did not end within {limit_s:g} s (models.warmup_s)"
        if isinstance(error, HardwareError):
            self.text = error.text
        super().__init__(self.text)


class _Later(Exception):
    """An engine is being built, or will be when another backend has shown what shapes the model takes."""


class Loading:
    """Loads into the runtimes that are given to it; one call at a time for each of them."""

    def __init__(
        self,
        settings: ModelsSettings,
        executor: Executor,
        engines: Engines,
        footprints: Footprints,
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._engines = engines
        self._measure = Measure(settings, footprints)
        self._on_change = on_change

    async def bring_up(self, instance: Instance, runtime: Runtime) -> None:
        """To READY, BUILDING or FAILED. Raises ``Fatal``, whose cause it may be or not: see :meth:`blame`."""
        started = time.monotonic()
        self._becomes(instance, "LOADING")
        refused: list[str] = []
        late = False
        for backend in instance.chain:
            if backend in instance.struck:
                refused.append(instance.struck[backend])
                continue
            try:
                await self._try(instance, runtime, backend)
            except _Later:
                late = True
            except (WorkerDied, DeviceFault, asyncio.TimeoutError) as error:
                raise Fatal(backend, error, self._settings.warmup_s) from None
            except HardwareError as error:
                log.warning("model %s cannot run on %s: %s", instance.name, backend, error.text)
                instance.served.tally.backend_failures[backend] += 1
                refused.append(error.text)
            else:
                instance.load_ms = (time.monotonic() - started) * 1e3
                await self._measure.take(instance)
                self._ready(instance, refused)
                if late and instance.build is None:
                    await self._build_with_shapes(instance, refused)
                    self._ready(instance, refused)
                return
        if _is_building(instance):
            self._becomes(instance, "BUILDING", _all(refused))
        else:
            reason = _all(refused) or "declare [warmup] or [[profiles]] in model.toml: its engine has free dimensions"
            self._fail(instance, reason)

    async def _build_with_shapes(self, instance: Instance, refused: list[str]) -> None:
        """Begin the build that waited for the shapes of a warm-up; one that ends at once is seen to as any other."""
        try:
            await self._begin(instance)
        except HardwareError as error:
            instance.served.tally.backend_failures["tensorrt"] += 1
            refused.append(error.text)

    async def engine_came(self, instance: Instance, runtime: Runtime) -> None:
        """The build it waited for ended: take the engine over, or stay as it is and say why. Raises as above."""
        build = instance.build
        if build is None or instance.state != "READY":
            await self.bring_up(instance, runtime)
            return
        build.seen = True
        refused = [build.failed] if build.failed else []
        if build.engine is not None:
            try:
                await self._try(instance, runtime, "tensorrt")
            except (WorkerDied, DeviceFault, asyncio.TimeoutError) as error:
                raise Fatal("tensorrt", error, self._settings.warmup_s) from None
            except HardwareError as error:
                log.warning("model %s stays on %s: %s", instance.name, _effective(instance), error.text)
                instance.served.tally.backend_failures["tensorrt"] += 1
                refused.append(error.text)
            else:
                await self._measure.take(instance)
        self._ready(instance, refused)

    async def _try(self, instance: Instance, runtime: Runtime, backend: Backend) -> None:
        """Load, warm up, take over. Raises what the runtime or the build says, and ``_Later``."""
        await _check_unchanged(instance)
        options = await self._options(instance, backend)
        key = instance.new_key()
        load = runtime.load(key, os.fspath(instance.stored.path), options)
        loaded = await (within(self._settings.warmup_s, load) if backend == "python" else load)  # code may hang
        instance.spare = key
        try:
            await _check_unchanged(instance)
            if instance.state != "READY":
                self._becomes(instance, "WARMING")
            config = instance.stored.config
            limit_s = self._settings.warmup_s
            warmed = await within(limit_s, warm_up(runtime, key, loaded, config, limit_s))
        except (DeviceFault, asyncio.TimeoutError, WorkerDied, asyncio.CancelledError):
            raise  # the runtime ends, or who cancelled this unloads what is ``spare``
        except BaseException:
            with contextlib.suppress(HardwareError):  # the runtime's end frees it as well
                await runtime.unload(key)
            instance.spare = ""
            raise
        instance.loaded, instance.warmed = loaded, warmed
        instance.served.warmed(warmed)
        if instance.state == "READY":  # on something else, which it now says no more
            self._ready(instance, [])
        await self._take_over(instance, key, runtime)

    async def _take_over(self, instance: Instance, key: str, runtime: Runtime) -> None:
        served = instance.served
        before = instance.spare = served.key if served.runtime is runtime else ""
        await self._executor.swap(served, key, runtime)
        if before:
            with contextlib.suppress(HardwareError):  # a runtime that dies now does so of something else
                await runtime.unload(before)
            instance.spare = ""

    async def _options(self, instance: Instance, backend: Backend) -> LoadOptions:
        settings, config = self._settings, instance.stored.config
        if backend == "python" and not settings.python:
            raise BackendUnavailable("it is a step in Python, and models.python is false: none are run here")
        entry = await self._entry(instance) if backend == "tensorrt" else ""
        cache_dir, engine = "", None
        if backend == "onnxruntime-tensorrt":
            cache_dir = await asyncio.to_thread(self._engines.cache_dir, instance.identity.digest)
            engine = await asyncio.to_thread(engine_options, instance.stored, None, settings.max_file_bytes)
        return LoadOptions(
            backend=backend,
            threads=settings.run_threads(),
            instances=config.instances,
            device=settings.device,
            allow_cpu=settings.allow_cpu and backend == instance.chain[-1],
            max_model_bytes=settings.max_file_bytes,
            engine=engine or EngineOptions(precision=config.precision, profiles=config.engine_profiles()),
            engine_entry=entry,
            engine_key_file=self._engines.key_file if entry else "",
            cache_dir=cache_dir,
            cuda_graphs=config.cuda_graphs,
            digest=instance.identity.digest if backend == "python" else "",
        )

    async def _entry(self, instance: Instance) -> str:
        """Where the engine is. Raises ``_Later`` while there is none, ``EngineNotBuilt`` where there will be none."""
        build = await self._begin(instance)
        if build is None:
            raise _Later
        if not build.ended:
            if instance.state != "READY":
                self._becomes(instance, "BUILDING")
            raise _Later
        build.seen = True
        if build.engine is None:
            raise EngineNotBuilt(build.failed)
        return build.engine.entry

    async def _begin(self, instance: Instance) -> Build | None:
        """Its build, which begins now if there was none; None while it is not known for which shapes."""
        if instance.build is None:
            warmed = None if instance.warmed is None else {t.name: t.shape for t in instance.warmed.inputs}
            instance.build = await self._engines.start(instance.stored, warmed)
        return instance.build

    def _ready(self, instance: Instance, refused: list[str]) -> None:
        asked, effective = instance.chain[0], _effective(instance)
        if not instance.degraded:
            self._becomes(instance, "READY")
            return
        reasons = ["its engine is being built"] if _is_building(instance) else refused
        if instance.loaded is not None and not is_backend(instance.loaded.effective, instance.loaded.requested):
            reasons = [*reasons, instance.loaded.detail]
        why = _all(reasons)
        text = f"degraded: runs on {effective}, {asked} was asked for"
        self._becomes(instance, "READY", f"{text}: {why}" if why else text)

    def blame(self, instance: Instance, fatal: Fatal) -> bool:
        """``instance`` was the cause of it. What ended the runtime is not tried again where something else can be; the
        answer is whether there is."""
        instance.served.tally.backend_failures[fatal.backend] += 1
        if fatal.backend != instance.chain[-1] or _is_building(instance):
            instance.struck[fatal.backend] = f"{fatal.backend} took its worker down: {fatal.text}"
            return True
        if fatal.hangs:
            self._fail(instance, fatal.text)
        return False

    def _fail(self, instance: Instance, reason: str) -> None:
        log.error("model %s cannot be served: %s", instance.name, reason)
        self._becomes(instance, "FAILED", reason)

    def _becomes(self, instance: Instance, state: InstanceState, reason: str = "") -> None:
        instance.becomes(state, reason)
        self._on_change()


async def _check_unchanged(instance: Instance) -> None:
    """The digest stands for the bytes that run (DESIGN D15)."""
    if not await asyncio.to_thread(instance.stored.unchanged):
        raise ModelRefused("its file on disk is not the one that was read; load it again")


def _effective(instance: Instance) -> str:
    return instance.loaded.effective if instance.loaded is not None else "nothing"


def _all(refused: list[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, refused)))


def _is_building(instance: Instance) -> bool:
    return instance.build is not None and not instance.build.ended
