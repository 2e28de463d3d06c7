"""The half of the stand-in for TensorRT that builds: profiles, configuration, timing cache, builder.

It says False, None or -1 where TensorRT was seen to. ``FAKE_TRT_*`` variables, read when a build begins:

    FAKE_TRT_BUILDER=null        no builder, as without a driver
    FAKE_TRT_BUILD               none: gives up; segv, kill: the process dies; hang: neither ends nor says anything;
                                 deaf: goes on when told to stop; noisy: prints, as the parser does at times
    FAKE_TRT_BUILD_S, _STEPS     how long it takes (0 s), and in how many steps (8)
    FAKE_CUDA_CC                 compute capability of the device (8.7)

A plan is ``FAKEPLAN``, the length of a JSON document, that document, and the model. Not here: what runs a plan
(``trt_run``), the parser (``trt_network``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import time
from collections.abc import Sequence
from typing import Any

from hardware.fakes import trt_types
from hardware.fakes.trt_network import ILayer, INetworkDefinition, ITensor, OnnxParser, ParserError
from hardware.fakes.trt_types import DataType, ErrorCode, ILogger, Logger, MemoryPoolType, Severity

PLAN_MAGIC = b"FAKEPLAN"
TIMINGS_MAGIC = b"FAKETIMINGS\0"
PLAN_LENGTH = struct.Struct("<I")

Shape = tuple[int, ...]


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._ranges: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        for name, shape in (("min", min), ("opt", opt), ("max", max)):
            if any(dim < 0 for dim in shape):
                raise RuntimeError(f"Shape provided for {name} is inconsistent with other shapes.")
        self._ranges[input] = (tuple(min), tuple(opt), tuple(max))

    def get_shape(self, input: str) -> list[Shape]:  # noqa: A002
        return list(self._ranges.get(input, ()))

    def _is_valid(self) -> bool:
        return all(
            len(low) == len(best) == len(high) and all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
            for low, best, high in self._ranges.values()
        )


class ITimingCache:
    """Remembers how many builds were made with it; ``_version`` is empty for one that nothing was read from."""

    def __init__(self, version: str, builds: int = 0) -> None:
        self._version = version
        self._builds = builds

    def serialize(self) -> IHostMemory:
        return IHostMemory(TIMINGS_MAGIC + json.dumps([self._version, self._builds]).encode())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if input_cache._version != self._version and not ignore_mismatch:
            return False
        self._builds += input_cache._builds
        return True


class IProgressMonitor:
    def __init__(self) -> None:
        """Subclasses must call it, as with pybind11."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class IBuilderConfig:
    def __init__(self, version: str, logger: ILogger) -> None:
        self._version = version
        self._logger = logger
        self._level = 3
        self._flags: set[int] = set()
        self._limits: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._timings: ITimingCache | None = None
        self.max_aux_streams = -1
        self.progress_monitor: IProgressMonitor | None = None

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        if 0 <= level <= 5:  # others are ignored without a word
            self._level = level

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._limits.get(pool, 0)

    def set_flag(self, flag: int) -> None:
        self._flags.add(flag)

    def get_flag(self, flag: int) -> bool:
        return flag in self._flags

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile._is_valid():
            self._logger.log(
                Severity.ERROR,
                "IBuilderConfig::addOptimizationProfile: Error Code 3: API Usage Error (Parameter check failed, "
                "condition: profile->isValid(). In addOptimizationProfile at /_src/optimizer/builderConfig.cpp:569)",
            )
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache:
        data = bytes(serialized_timing_cache)
        if not data:
            return ITimingCache(self._version)
        try:
            version, builds = json.loads(data.removeprefix(TIMINGS_MAGIC))
        except ValueError:
            self._logger.log(Severity.WARNING, "Failed to deserialize timing cache. Returning an empty timing cache.")
            return ITimingCache(self._version)
        return ITimingCache(version, builds)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._version != self._version and not ignore_mismatch:
            self._logger.log(Severity.ERROR, "the timing cache is of another version")
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timings


class Builder:
    """``_version`` is set by :func:`names`."""

    _version = ""

    def __init__(self, logger: ILogger) -> None:
        if os.environ.get("FAKE_TRT_BUILDER") == "null":
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._version, self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        wrong = _wrong_profiles(network, config) or _misbehave()
        if not wrong and not _run_phases(config.progress_monitor or IProgressMonitor()):
            wrong = (
                "Error Code 7: BuildCanceled (Build canceled by user In next at /_src/scopedProgressReporter.cpp:92)"
            )
        if wrong:
            self._logger.log(Severity.ERROR, f"IBuilder::buildSerializedNetwork: {wrong}")
            return None
        if config._timings is not None:
            config._timings._builds += 1
        return IHostMemory(_plan(self._version, network, config))


def _wrong_profiles(network: INetworkDefinition, config: IBuilderConfig) -> str:
    usage = "Error Code 4: API Usage Error"
    free = [tensor for tensor in map(network.get_input, range(network.num_inputs)) if -1 in tensor.shape]
    if free and not config._profiles:
        return f"{usage} (Network has dynamic or shape inputs, but no optimization profile has been defined.)"
    for number, profile in enumerate(config._profiles):
        for tensor in free:
            found = profile.get_shape(tensor.name)
            if not found:
                return f"{usage} (Dynamic input tensor {tensor.name} is missing dimensions in profile {number}.)"
            if len(found[0]) != len(tensor.shape):
                return (
                    f"{usage} (Dynamic-shaped input tensor {tensor.name} has {len(tensor.shape)} dimensions but "
                    f"profile {number} has {len(found[0])} dimensions.)"
                )
    return ""


def _misbehave() -> str:
    how = os.environ.get("FAKE_TRT_BUILD", "")
    if how in ("segv", "kill"):
        os.kill(os.getpid(), signal.SIGSEGV if how == "segv" else signal.SIGKILL)
    if how == "noisy":
        print("Unsupported ONNX data type: STRING (8)", flush=True)  # noqa: T201 - to where the answers went before
    if how == "hang":
        time.sleep(3600)
    return "Error Code 10: Internal Error (Could not find any implementation for node.)" if how == "none" else ""


def _run_phases(monitor: IProgressMonitor) -> bool:
    """Phases nest as TensorRT's do; an exception in a monitor counts as its wish to stop. Whether it was let finish."""
    steps = int(os.environ.get("FAKE_TRT_BUILD_STEPS", "8"))
    seconds = float(os.environ.get("FAKE_TRT_BUILD_S", "0"))
    deaf = os.environ.get("FAKE_TRT_BUILD") == "deaf"
    outer, inner = "Building engine", "Timing tactics"
    with contextlib.suppress(Exception):
        monitor.phase_start(outer, None, 2)
        if not monitor.step_complete(outer, 0) and not deaf:
            return False
        monitor.phase_start(inner, outer, steps)
        for step in range(steps):
            time.sleep(seconds / steps)
            if not monitor.step_complete(inner, step) and not deaf:
                return False
        monitor.phase_finish(inner)
        if not monitor.step_complete(outer, 1) and not deaf:
            return False
        monitor.phase_finish(outer)
        return True
    return False


def _plan(version: str, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
    flags = trt_types.builder_flag(version)
    half = hasattr(flags, "FP16") and config.get_flag(flags.FP16)
    document = {
        "version": version,
        "cc": [int(part) for part in os.environ.get("FAKE_CUDA_CC", "8.7").split(".")],
        "precision": "fp16" if half else "fp32",
        "profiles": [profile._ranges for profile in config._profiles],
        "inputs": [_described(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_described(network.get_output(i)) for i in range(network.num_outputs)],
    }
    text = json.dumps(document).encode()
    return PLAN_MAGIC + PLAN_LENGTH.pack(len(text)) + text + network._model


def _described(tensor: ITensor) -> list[Any]:
    return [tensor.name, tensor.dtype.name, list(tensor.shape)]


def names(version: str) -> dict[str, Any]:
    """The public names of this half, as ``version`` (a value of ``trt_types.VERSIONS``) has them."""
    return {
        "__version__": version,
        "Builder": type("Builder", (Builder,), {"_version": version}),
        "BuilderFlag": trt_types.builder_flag(version),
        "NetworkDefinitionCreationFlag": trt_types.network_flag(version),
        "DataType": DataType,
        "ErrorCode": ErrorCode,
        "IBuilderConfig": IBuilderConfig,
        "IHostMemory": IHostMemory,
        "ILayer": ILayer,
        "ILogger": ILogger,
        "INetworkDefinition": INetworkDefinition,
        "IOptimizationProfile": IOptimizationProfile,
        "IProgressMonitor": IProgressMonitor,
        "ITensor": ITensor,
        "ITimingCache": ITimingCache,
        "Logger": Logger,
        "MemoryPoolType": MemoryPoolType,
        "OnnxParser": OnnxParser,
        "ParserError": ParserError,
    }
