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

from edge.engines import Engines
from edge.executor import Executor
from edge.footprints import Footprints
from edge.instance import Instance
from edge.preflight import Footprint
from edge.settings import Backend, ModelsSettings
from edge.warmup import warm_up
from hardware.backend import EngineOptions, LoadOptions
from hardware.errors import BackendUnavailable, DeviceFault, EngineNotBuilt, HardwareError, ModelRefused, WorkerDied
from hardware.process_memory import resident_bytes
from hardware.runtime import Runtime
from mesh.lifecycle import within
from mesh.values import InstanceState

log = logging.getLogger(__name__)


class Hangs(Exception):
    """The warm-up does not end: only the death of the runtime frees the device."""


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
        self._footprints = footprints
        self._on_change = on_change

    async def bring_up(self, instance: Instance, runtime: Runtime) -> None:
        """To READY, BUILDING or FAILED. Raises ``WorkerDied`` and ``Hangs``, which are the end of the runtime."""
        started = time.monotonic()
        self._becomes(instance, "LOADING")
        refused: list[str] = []
        late = False
        for backend in instance.chain:
            try:
                await self._try(instance, runtime, backend)
            except _Later:  # noqa: PERF203 - a chain has a handful
                late = True
            except (WorkerDied, DeviceFault, asyncio.TimeoutError) as error:
                self._fatal(instance, backend, error)
            except HardwareError as error:
                log.warning("model %s cannot run on %s: %s", instance.name, backend, error.text)
                instance.served.tally.backend_failures[backend] += 1
                refused.append(error.text)
            else:
                instance.load_ms = (time.monotonic() - started) * 1e3
                await self._measure(instance)
                self._ready(instance, refused)
                if late and instance.build is None:
                    await self._build_with_shapes(instance, refused)
                    self._ready(instance, refused)
                return
        if instance.build is not None and not instance.build.ended:
            self._becomes(instance, "BUILDING", _all(refused))
        else:
            reason = _all(refused) or "declare [warmup] or [[profiles]] in model.toml: its engine has free dimensions"
            self._fail(instance, reason)

    async def _build_with_shapes(self, instance: Instance, refused: list[str]) -> None:
        """Begin the build that waited for the shapes of a warm-up."""
        try:
            await self._entry(instance)
        except _Later:
            pass
        except HardwareError as error:
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
                self._fatal(instance, "tensorrt", error)
            except HardwareError as error:
                log.warning("model %s stays on %s: %s", instance.name, _effective(instance), error.text)
                instance.served.tally.backend_failures["tensorrt"] += 1
                refused.append(error.text)
            else:
                await self._measure(instance)
        self._ready(instance, refused)

    async def _try(self, instance: Instance, runtime: Runtime, backend: Backend) -> None:
        """Load, warm up, take over. Raises what the runtime or the build says, and ``_Later``."""
        if backend in instance.struck:
            raise BackendUnavailable(instance.struck[backend])
        await _check_unchanged(instance)
        options = await self._options(instance, backend)
        key = instance.new_key()
        loaded = await runtime.load(key, os.fspath(instance.stored.path), options)
        try:
            await _check_unchanged(instance)
            if instance.state != "READY":
                self._becomes(instance, "WARMING")
            config = instance.stored.config
            warmed = await within(self._settings.warmup_s, warm_up(runtime, key, loaded, config))
        except (DeviceFault, asyncio.TimeoutError, WorkerDied):
            raise
        except BaseException:
            with contextlib.suppress(HardwareError):  # the runtime's end frees it as well
                await runtime.unload(key)
            raise
        instance.loaded, instance.warmed = loaded, warmed
        instance.served.warmed(warmed)
        await self._take_over(instance, key, runtime)

    async def _take_over(self, instance: Instance, key: str, runtime: Runtime) -> None:
        served = instance.served
        before = served.key if served.runtime is runtime else ""
        await self._executor.swap(served, key, runtime)
        if before:
            await runtime.unload(before)

    async def _options(self, instance: Instance, backend: Backend) -> LoadOptions:
        settings, config = self._settings, instance.stored.config
        entry = await self._entry(instance) if backend == "tensorrt" else ""
        cache_dir = ""
        if backend == "onnxruntime-tensorrt":
            cache_dir = await asyncio.to_thread(self._engines.cache_dir, instance.identity.digest)
        return LoadOptions(
            backend=backend,
            threads=settings.run_threads(),
            instances=config.instances,
            device=settings.device,
            allow_cpu=settings.allow_cpu and backend == instance.chain[-1],
            max_model_bytes=settings.max_file_bytes,
            engine=EngineOptions(precision=config.precision, profiles=config.engine_profiles()),
            engine_entry=entry,
            engine_key_file=self._engines.key_file if entry else "",
            cache_dir=cache_dir,
            cuda_graphs=config.cuda_graphs,
        )

    async def _entry(self, instance: Instance) -> str:
        """Where the engine is. Raises ``_Later`` while there is none, ``EngineNotBuilt`` where there will be none."""
        if instance.build is None:
            warmed = None if instance.warmed is None else {t.name: t.shape for t in instance.warmed.inputs}
            instance.build = await self._engines.start(instance.stored, warmed)
        build = instance.build
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

    def _ready(self, instance: Instance, refused: list[str]) -> None:
        asked, effective = instance.chain[0], _effective(instance)
        if not instance.degraded:
            self._becomes(instance, "READY")
            return
        building = instance.build is not None and not instance.build.ended
        why = "its engine is being built" if building else _all(refused)
        text = f"degraded: runs on {effective}, {asked} was asked for"
        self._becomes(instance, "READY", f"{text}: {why}" if why else text)

    async def _measure(self, instance: Instance) -> None:
        """A worker of its own is what the version takes; of a shared one it is what the load added."""
        runtime, loaded = instance.served.runtime, instance.loaded
        if runtime is None or loaded is None:
            return  # the worker died right after
        own = self._settings.isolation == "model"
        box = await asyncio.to_thread(resident_bytes, runtime.pid) if own else loaded.memory_bytes
        if box is None:
            return
        instance.footprint = Footprint(box, loaded.device_bytes or 0)
        await asyncio.to_thread(
            self._footprints.remember, instance.identity.digest, instance.chain[0], instance.footprint
        )

    def _fatal(self, instance: Instance, backend: Backend, error: Exception) -> None:
        """What ended the runtime is not tried again where something else can be; always raises."""
        instance.served.tally.backend_failures[backend] += 1
        hangs = isinstance(error, asyncio.TimeoutError)
        text = f"its warm-up inference did not end within {self._settings.warmup_s:g} s"
        if isinstance(error, HardwareError):
            text = error.text
        if backend != instance.chain[-1]:
            instance.struck[backend] = f"{backend} took its worker down: {text}"
        elif hangs:
            self._fail(instance, text)
        if isinstance(error, WorkerDied):
            raise error
        raise Hangs(text) from None

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
    return "; ".join(dict.fromkeys(refused))
