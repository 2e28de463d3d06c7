"""The build process: ``python -m hardware.engine_process PARENT``, started by ``engine_build``; one engine, then gone.

It takes minutes and gigabytes and may crash, so that neither agent nor worker is the place for it. One request comes in
on standard input and lines of answers go out on what was standard output; when the input closes the build is given up.
Not here: the calls of TensorRT (``engine_plan``), the cache (``engine_cache``).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hardware import confinement, durable, signing, tensorrt
from hardware.engine_cache import EngineCache, Entry
from hardware.engine_key import Target, ingredients
from hardware.engine_messages import (
    MAX_LINE_BYTES,
    Built,
    Engine,
    EngineRequest,
    NotBuilt,
    Progressed,
    Reply,
    decode_request,
    line,
)
from hardware.engine_plan import Cancelled, Ticker, build_plan
from hardware.engine_progress import Progress
from hardware.errors import BackendUnavailable, DeviceOutOfMemory, HardwareError, ModelRefused
from hardware.timing_cache import TimingCache
from hardware.validate import check_model

TELL_S = 0.1
"""Progress is told no more often than this."""


class Answers:
    """The pipe to the parent. Only the thread that builds writes to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._told = 0.0

    def send(self, reply: Reply) -> None:
        """A parent that is gone is told nothing: the kernel, or its closed pipe, ends this process."""
        view = memoryview(line(reply))
        with contextlib.suppress(BrokenPipeError):
            while view:
                view = view[os.write(self._fd, view) :]

    def tick(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told >= TELL_S:
            self._told = now
            self.send(Progressed(progress.share, progress.phase))


class Hangup:
    """Whether the parent has closed the pipe of the request."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen = threading.Event()
        threading.Thread(target=self._watch, name="hangup", daemon=True).start()

    def _watch(self) -> None:
        while os.read(self._fd, 4096):
            pass
        self._seen.set()

    def is_set(self) -> bool:
        return self._seen.is_set()


def build(request: EngineRequest, ticker: Ticker) -> Engine:
    """Find the engine in the cache or build it; raises ``HardwareError`` or ``Cancelled``."""
    trt, target, driver_version = _target(request)
    model = _read_model(request)
    ticker.check()
    secret = signing.make_secret(Path(request.key_file))
    folder = Path(request.cache_dir)
    cache = EngineCache(folder, secret, request.cache_limit_bytes)
    made_of = ingredients(trt, target, hashlib.sha256(model).hexdigest(), request.options)
    if (found := cache.find(made_of.key)) is not None:
        return _engine(found, cached=True)
    started = time.monotonic()
    timings = TimingCache(folder, tensorrt.version(trt), target.name, secret)
    plan = build_plan(trt, model, request.options, target.compute_capability, timings, ticker)
    ticker.check()
    return _engine(cache.store(plan, made_of, driver_version, time.monotonic() - started), cached=False)


def _target(request: EngineRequest) -> tuple[Any, Target, int]:
    """TensorRT, what to build for, and the driver's version, 0 where the device is not at hand.

    The driver is asked before TensorRT is touched, which may crash without one.
    """
    if request.compute_capability is None:
        from hardware import cuda  # only where a device is to be used: it needs a driver

        facts = cuda.device_facts(request.device)
        return tensorrt.load_trt(), Target.of(facts), facts.driver_version
    trt = tensorrt.load_trt()
    if not tensorrt.names_compute_capability(trt):
        raise BackendUnavailable("this TensorRT builds only for a device that is at hand")
    return trt, Target.absent(request.compute_capability), 0


def _read_model(request: EngineRequest) -> bytes:
    """The bytes that were judged are those that are parsed and those the key speaks of."""
    check_model(request.model_path, request.max_model_bytes)
    try:
        model = durable.read(Path(request.model_path).resolve(), request.max_model_bytes)
    except OSError as error:
        raise ModelRefused(f"the model file cannot be read: {error.strerror}") from None
    if hashlib.sha256(model).hexdigest() != request.model_digest:
        raise ModelRefused("the model file has changed since it was found")
    return model


def _engine(entry: Entry, *, cached: bool) -> Engine:
    meta = entry.meta
    return Engine(str(entry.path), meta.key, cached, meta.build_s, meta.plan_bytes, meta.ingredients.backend)


def _read_request(fd: int) -> EngineRequest:
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = os.read(fd, MAX_LINE_BYTES)
        if not chunk:
            os._exit(0)  # given up before it was asked for
        data += chunk
    return decode_request(data)


def main() -> None:
    requests_fd, replies_fd = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # TensorRT prints; what it prints must reach nothing that is parsed
    confinement.confine(int(sys.argv[1]))
    logging.basicConfig(format="engine build: %(message)s")
    answers = Answers(replies_fd)
    request = _read_request(requests_fd)
    ticker = Ticker(answers.tick, Hangup(requests_fd).is_set)
    try:
        answers.send(Built(build(request, ticker)))
    except HardwareError as error:
        answers.send(NotBuilt(error.code, error.text))
    except MemoryError:
        answers.send(NotBuilt(DeviceOutOfMemory.code, "the build found no memory"))
    except Cancelled:
        pass  # nobody waits for an answer
    os._exit(0)  # skips TensorRT's destructors, which have nothing to save


if __name__ == "__main__":
    main()
