"""Sessions of ONNX Runtime: open, run, and their errors in words of this project.

``onnxruntime`` is imported when the first model is opened: an agent starts without it. Its Linux wheels report home
from 1.29 on unless ``ORT_DISABLE_TELEMETRY`` is set before that import, so this module sets it. Not here: judging the
file (``validate``), where a session runs (``onnx_providers``), the bytes of tensors (``arrays``), processes and threads
(``worker``, ``inline_runtime``).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hardware import arrays, onnx_providers
from hardware.backend import Interrupt, Loaded, LoadOptions, RawTensor, Signature, TensorInfo, check_inputs, shown
from hardware.cuda import STICKY
from hardware.errors import (
    BackendUnavailable,
    DeviceFault,
    DeviceOutOfMemory,
    HardwareError,
    InvalidInput,
    ModelRefused,
    RunFailed,
)
from hardware.process_memory import resident_bytes
from hardware.validate import check_model

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

PLATFORM = "onnxruntime_onnx"
KNOWN_LAYOUTS = 256
_CUDA_FAILURE = re.compile(r"CUDA (?:failure|error) (\d+)")
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class _RunOptions:
    """Options of one run, which can end it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def end(self) -> None:
        self.value.terminate = True


class OnnxSession:
    """One model in ONNX Runtime. All instances run in the one session: it allows it, and measured on the trained models
    two threads in one session are as fast as in two, which would hold the weights twice."""

    def __init__(self, session: Any, runtime: ModuleType, loaded: Loaded) -> None:
        self.loaded = loaded
        self._session = session
        self._runtime = runtime
        signature = loaded.signature
        self._outputs = {info.name: info for info in signature.outputs}
        self._all_outputs = list(self._outputs)
        self._free_options: list[_RunOptions] = []
        """Kept, for every run without any makes some of its own."""
        self._known_good: set[tuple[tuple[str, str, tuple[int, ...], int], ...]] = set()
        self._has_bfloat16 = any(info.datatype == "BF16" for info in signature.inputs + signature.outputs)

    def run(
        self, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None = None
    ) -> list[RawTensor]:
        self._check(inputs)
        names = self._all_outputs
        if outputs:
            names = list(outputs)
            if unknown := [name for name in names if name not in self._outputs]:
                raise InvalidInput(f"the model has no output {shown(unknown[0])}")
        feed = {tensor.name: arrays.from_raw(tensor) for tensor in inputs}
        options = self._take_options()
        if interrupt is not None:
            interrupt.on_set(options.end)
        try:
            if self._has_bfloat16:
                return self._run_values(names, inputs, feed, options.value)
            results = self._session.run(names, feed, options.value)
        except Exception as error:  # noqa: BLE001 - the binding's exceptions share no other base
            raise _run_error(error) from None
        finally:
            if interrupt is not None:
                interrupt.on_set(None)
            if interrupt is None or not interrupt.is_set:  # else they would end the next run
                self._free_options.append(options)
        return [arrays.to_raw(self._outputs[name], result) for name, result in zip(names, results, strict=True)]

    def close(self) -> None:
        self._session = None

    def _take_options(self) -> _RunOptions:
        try:
            return self._free_options.pop()
        except IndexError:
            return _RunOptions(self._runtime.RunOptions())

    def _check(self, inputs: Sequence[RawTensor]) -> None:
        """Check each layout once: callers send the same one over and over."""
        layout = tuple([(t.name, t.datatype, t.shape, t.nbytes) for t in inputs])
        if layout not in self._known_good:
            check_inputs(self.loaded.signature, inputs)
            if len(self._known_good) >= KNOWN_LAYOUTS:
                self._known_good.clear()
            self._known_good.add(layout)

    def _run_values(
        self, names: list[str], inputs: Sequence[RawTensor], feed: dict[str, Any], options: Any
    ) -> list[RawTensor]:
        """The slower way through OrtValues: numpy has no BF16, so those tensors go by address."""
        value = self._runtime.OrtValue
        values = {
            tensor.name: value.ortvalue_from_numpy_with_onnx_type(feed[tensor.name], _BFLOAT16)
            if tensor.datatype == "BF16"
            else value.ortvalue_from_numpy(feed[tensor.name])
            for tensor in inputs
        }
        results = self._session.run_with_ort_values(names, values, options)
        return [
            arrays.from_address(name, "BF16", tuple(result.shape()), result.data_ptr())
            if self._outputs[name].datatype == "BF16"
            else arrays.to_raw(self._outputs[name], result.numpy())
            for name, result in zip(names, results, strict=True)
        ]


def open_session(path: str, options: LoadOptions) -> OnnxSession:
    """Open the ONNX file at ``path``; raises ``ModelRefused``, ``BackendUnavailable`` or ``DeviceOutOfMemory``."""
    started = time.monotonic()
    check_model(path, options.max_model_bytes)
    runtime = _onnxruntime()
    resident = resident_bytes(os.getpid()) or 0
    session_options = _session_options(runtime, options)
    onnx_providers.prepare(runtime, session_options, options)
    try:
        session, reasons = onnx_providers.create(runtime, path, session_options, options)
        signature = _signature(session)
        effective, detail = onnx_providers.placement(session, reasons, options)
    except HardwareError:
        raise
    except Exception as error:  # noqa: BLE001 - the binding's exceptions share no other base
        raise _load_error(error, path) from None
    batch_limit = None
    if effective == "onnxruntime-tensorrt":
        onnx_providers.check_profiles(signature, options)
        batch_limit = onnx_providers.batch_limit(signature, options)
    if hasattr(runtime, "__fake__"):
        detail = "; ".join(filter(None, ("simulated: no GPU is used", detail)))
    loaded = Loaded(
        signature=signature,
        requested=options.backend,
        effective=effective,
        platform=PLATFORM,
        load_ms=(time.monotonic() - started) * 1e3,
        memory_bytes=max(0, (resident_bytes(os.getpid()) or 0) - resident),
        batch_limit=batch_limit,
        detail=detail,
    )
    return OnnxSession(session, runtime, loaded)


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"onnxruntime cannot be imported ({error.name}): install inference-mesh[cpu]"
        ) from None
    return onnxruntime  # type: ignore[no-any-return]


def _session_options(runtime: ModuleType, options: LoadOptions) -> Any:
    chosen = runtime.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    chosen.enable_cpu_mem_arena = options.memory_arena
    chosen.log_severity_level = 3
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle edge box must not burn a core
    chosen.add_session_config_entry("session.load_model_format", "ONNX")  # the one format that was validated
    return chosen


def _signature(session: Any) -> Signature:
    return Signature(
        inputs=tuple(_info("input", node) for node in session.get_inputs()),
        outputs=tuple(_info("output", node) for node in session.get_outputs()),
        metadata=dict(session.get_modelmeta().custom_metadata_map),
    )


def _info(what: str, node: Any) -> TensorInfo:
    datatype = arrays.FROM_ONNX.get(node.type)
    if datatype is None:
        raise ModelRefused(f"{what} '{node.name}' is a {node.type}, which the protocol has no datatype for")
    return TensorInfo(node.name, datatype, tuple(dim if isinstance(dim, int) else -1 for dim in node.shape))


def _load_error(error: Exception, path: str) -> HardwareError:
    text = _text(error).replace(path, os.path.basename(path))
    if isinstance(error, MemoryError) or _is_memory(text):
        return DeviceOutOfMemory(f"no memory to load the model: {text}")
    return ModelRefused(f"ONNX Runtime refused the model: {text}")


def _run_error(error: Exception) -> HardwareError:
    if isinstance(error, HardwareError):
        return error
    text = _text(error)
    if (code := _CUDA_FAILURE.search(text)) and int(code[1]) in STICKY:
        return DeviceFault(text.split(" ; ")[0])  # what follows names the build's files and this host
    if isinstance(error, MemoryError) or _is_memory(text):
        return DeviceOutOfMemory(f"the run found no memory: {text}")
    if type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError):
        return InvalidInput(text)
    return RunFailed(text)


def _is_memory(text: str) -> bool:
    return any(sign in text for sign in ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory"))


def _text(error: Exception) -> str:
    """The runtime's words without its status prefix and the source files of its build."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/\S*\.(?:cc|h|cpp|cu):\d+ ", "", str(error))
    return " ".join(text.split())[:300]
