"""One ONNX model to one TensorRT plan: parse, set profiles and precision, build; every return is checked.

The calls are those that 10.3 to 11.4 and TensorRT-RTX share. The network is made without flags, so that 11 types it by
the model alone and 10 may choose by the FP16 flag. Not here: profiles as declared (``engine_profiles``), the cache, the
process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hardware import tensorrt
from hardware.backend import EngineOptions, TensorInfo
from hardware.engine_profiles import EngineInput, check_profiles
from hardware.engine_progress import Progress
from hardware.errors import BackendUnavailable, EngineNotBuilt, ModelRefused
from hardware.onnx_graph import read_graph, untie
from hardware.protobuf import Malformed
from hardware.tensorrt import Log
from hardware.timing_cache import TimingCache

SHOWN_ERRORS = 5


class Cancelled(Exception):
    """The build was given up by whoever asked for it."""


class Ticker:
    """Told of every step; may cancel. ``tick`` must not raise and return quickly: a build waits for it."""

    def __init__(self, tick: Callable[[Progress], None], cancelled: Callable[[], bool]) -> None:
        self.progress = Progress()
        self._tick = tick
        self._cancelled = cancelled

    def go_on(self) -> bool:
        self._tick(self.progress)
        return not self._cancelled()

    def check(self) -> None:
        """Raise ``Cancelled`` if it was."""
        if self._cancelled():
            raise Cancelled


def build_plan(
    trt: Any,
    model: bytes,
    options: EngineOptions,
    compute_capability: tuple[int, int],
    timings: TimingCache,
    ticker: Ticker,
) -> memoryview:
    """The plan; raises ``EngineNotBuilt``, ``ModelRefused``, ``BackendUnavailable`` or ``Cancelled``."""
    ticker.go_on()
    log = tensorrt.Log()
    logger = tensorrt.logger(trt, log)
    builder = _builder(trt, logger, log)
    network = _made(builder.create_network(0), "a network", log)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(_untied(model)):
        raise EngineNotBuilt(f"TensorRT cannot parse the model: {_parser_errors(parser, log)}")
    ticker.check()
    _check_types(model, trt, network)
    config = _made(builder.create_builder_config(), "a configuration", log)
    _configure(trt, config, options, log)
    _set_precision(trt, config, network, options)
    _set_device(trt, config, compute_capability, log)
    _set_profiles(builder, config, network, options, log)
    config.progress_monitor = monitor = _monitor(trt, ticker)
    known = timings.read() if tensorrt.keeps_timings(trt) else b""
    cache = _set_timings(config, known) if tensorrt.keeps_timings(trt) else None
    ticker.check()
    log.clear()
    plan = builder.build_serialized_network(network, config)
    del monitor  # it had to live until here
    if plan is None:
        ticker.check()
        raise EngineNotBuilt(f"TensorRT cannot build the model: {log.reason}")
    if cache is not None:
        timings.update(lambda now: _merged(config, cache, known, now))
    return memoryview(plan).cast("B")


def _untied(model: bytes) -> bytes:
    """TensorRT takes dimensions of one name for equal, also those that an exporter named "?"."""
    try:
        return untie(model)
    except Malformed as error:
        raise ModelRefused(f"the file is not a well-formed ONNX model: {error}") from None


def _builder(trt: Any, logger: Any, log: Log) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError:  # pybind11's word for a null pointer
        raise BackendUnavailable(f"TensorRT finds no usable CUDA device or driver: {log.reason}") from None


def _made(made: Any, what: str, log: Log) -> Any:
    if made is None:
        raise EngineNotBuilt(f"TensorRT cannot make {what}: {log.reason}")
    return made


def _parser_errors(parser: Any, log: Log) -> str:
    """Each error with its node and operator: those are what a person can change."""
    texts = []
    for number in range(min(parser.num_errors, SHOWN_ERRORS)):
        error = parser.get_error(number)
        operator = error.node_operator()
        name = error.node_name() or (f"number {error.node()}" if error.node() >= 0 else "")
        where = f"node {name} ({operator}): " if operator else ""
        texts.append(f"{where}{error.code().name}, {' '.join(error.desc().split())[:200]}")
    if parser.num_errors > SHOWN_ERRORS:
        texts.append(f"and {parser.num_errors - SHOWN_ERRORS} more")
    return "; ".join(texts) or log.reason


def _check_types(model: bytes, trt: Any, network: Any) -> None:
    """Refuse inputs and outputs that TensorRT would quietly give another type: FP64 becomes FP32."""
    graph = read_graph(memoryview(model))
    declared: dict[str, TensorInfo] = {info.name: info for info in (*graph.inputs, *graph.outputs)}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        info = declared.get(tensor.name)
        if info is not None and info.datatype == "FP64" and tensor.dtype == trt.DataType.FLOAT:
            raise EngineNotBuilt(f"tensor '{tensor.name}' is FP64, which TensorRT would turn into FP32")


def _configure(trt: Any, config: Any, options: EngineOptions, log: Log) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimization_level
    if config.builder_optimization_level != options.optimization_level:
        raise EngineNotBuilt(f"TensorRT has no optimisation level {options.optimization_level}: {log.reason}")
    config.max_aux_streams = 0  # streams of its own would cost memory and outrun the device's admission


def _set_precision(trt: Any, config: Any, network: Any, options: EngineOptions) -> None:
    """An engine in FP32 where FP16 was asked for would be a lie that costs twice the memory."""
    if options.precision != "fp16":
        return
    if tensorrt.has_precision_flags(trt):
        config.set_flag(trt.BuilderFlag.FP16)
    elif not _is_mostly_half(trt, network):
        raise EngineNotBuilt(
            "fp16 was asked for, but the model must itself be FP16 on this TensorRT "
            f"({tensorrt.version(trt)}): convert the ONNX file, or ask for fp32"
        )


def _is_mostly_half(trt: Any, network: Any) -> bool:
    """Conversion leaves some sensitive layers, and often inputs and outputs, in FP32."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = [layer.get_output(i).dtype for layer in layers for i in range(layer.num_outputs)]
    half = types.count(trt.DataType.HALF)
    return half > 0 and half >= types.count(trt.DataType.FLOAT)


def _set_device(trt: Any, config: Any, compute_capability: tuple[int, int], log: Log) -> None:
    if not tensorrt.names_compute_capability(trt):
        return
    major, minor = compute_capability
    wanted = getattr(trt.ComputeCapability, f"SM{major}{minor}", None)
    if wanted is None:
        raise BackendUnavailable(f"TensorRT-RTX has no code for compute capability {major}.{minor}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(wanted, 0):
        raise EngineNotBuilt(f"TensorRT-RTX refuses compute capability {major}.{minor}: {log.reason}")


def _set_profiles(builder: Any, config: Any, network: Any, options: EngineOptions, log: Log) -> None:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    inputs = [EngineInput(tensor.name, tuple(tensor.shape), bool(tensor.is_shape_tensor)) for tensor in tensors]
    for number, profile in enumerate(check_profiles(inputs, options.profiles)):
        made = _made(builder.create_optimization_profile(), "a profile", log)
        for name, minimum, optimum, maximum in profile:
            made.set_shape(name, minimum, optimum, maximum)
        if config.add_optimization_profile(made) < 0:
            raise EngineNotBuilt(f"TensorRT refuses profile {number}: {log.reason}")


def _set_timings(config: Any, known: bytes) -> Any:
    """What was measured before, or nothing where it is from another build of TensorRT."""
    for data in dict.fromkeys((known, b"")):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _merged(config: Any, cache: Any, known: bytes, now: bytes) -> bytes:
    if now and now != known:
        other = config.create_timing_cache(now)
        if other is not None:
            cache.combine(other, False)  # False where it does not fit: then it is superseded
    return bytes(cache.serialize())


def _monitor(trt: Any, ticker: Ticker) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Must not raise: TensorRT takes an exception for the wish to cancel."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            ticker.progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            ticker.progress.step(phase_name, step)
            return ticker.go_on()

        def phase_finish(self, phase_name: str) -> None:
            ticker.progress.finish(phase_name)

    return Monitor()
