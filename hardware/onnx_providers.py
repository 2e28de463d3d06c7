"""Execution providers of ONNX Runtime: which are asked for, with which options, and which one it came to (DESIGN D8).

A GPU provider that cannot be loaded leaves the model on the CPU without an error: only the session tells. Not here:
opening files and running (``onnx_backend``), TensorRT without ONNX Runtime (``tensorrt_session``).
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections import Counter
from types import ModuleType
from typing import Any, NamedTuple

from hardware.backend import LoadOptions, Profile, Signature
from hardware.errors import BackendUnavailable, ModelRefused

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS = {
    "onnxruntime-cpu": (CPU,),
    "onnxruntime-cuda": (CUDA, CPU),
    "onnxruntime-tensorrt": (TENSORRT, CUDA, CPU),
}
"""In order of preference, by the backend that is asked for."""

_BACKENDS = {providers[0]: backend for backend, providers in PROVIDERS.items()}
_SHORT = {TENSORRT: "TensorRT", CUDA: "CUDA", CPU: "the CPU"}
_PACKAGES = {TENSORRT: "onnxruntime-gpu and TensorRT 10", CUDA: "onnxruntime-gpu"}

Options = dict[str, str]


class Placement(NamedTuple):
    """Where a session runs, in words of this project, and what a person should know about it."""

    effective: str
    detail: str


def prepare(runtime: ModuleType, session_options: Any, options: LoadOptions) -> None:
    """Before a session of a GPU is made: load NVIDIA's libraries from their wheels, ask for the truth about nodes."""
    if options.backend == "onnxruntime-cpu":
        return
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            runtime.preload_dlls()


def create(runtime: ModuleType, path: str, session_options: Any, options: LoadOptions) -> tuple[Any, list[str]]:
    """The session on the first providers that can be loaded, and why it is not on those before them.

    ONNX Runtime's own fall-back is off: it would drop the options of the providers that are left, and once more, in the
    middle of a run, it would change the provider without telling.
    """
    wanted = PROVIDERS.get(options.backend)
    if wanted is None:
        raise BackendUnavailable(f"there is no backend '{options.backend}'; there are {', '.join(PROVIDERS)}")
    available = runtime.get_available_providers()
    reasons = [_missing(name) for name in wanted if name not in available]
    chosen = [(name, provider_options(name, options)) for name in wanted if name in available]
    return _on_first(runtime, path, session_options, chosen, reasons), reasons


def _on_first(
    runtime: ModuleType, path: str, session_options: Any, chosen: list[tuple[str, Options]], reasons: list[str]
) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return runtime.InferenceSession(path, session_options, providers=chosen, enable_fallback=0)
    except (ValueError, RuntimeError) as error:  # the binding's own errors, of models, are neither
        if len(chosen) == 1:
            raise
        reasons.append(f"{_SHORT[chosen[0][0]]} cannot be used: {_first_line(error)}")
    return _on_first(runtime, path, session_options, chosen[1:], reasons)


def placement(session: Any, reasons: list[str], options: LoadOptions) -> Placement:
    """Judge the session; raises ``BackendUnavailable`` where it is on the CPU and must not be."""
    listed = list(session.get_providers())
    nodes = _nodes(session) if options.backend != "onnxruntime-cpu" else Counter()
    # A provider that is listed and took no node runs nothing.
    first = next((name for name in listed if nodes[name]), listed[0]) if nodes else listed[0]
    effective = _BACKENDS.get(first, "onnxruntime-cpu")
    wanted = PROVIDERS[options.backend][0]
    if first != wanted and not reasons:
        reasons = [_not_loaded(wanted) if wanted not in listed else f"{_SHORT[wanted]} took none of its nodes"]
    if effective == "onnxruntime-cpu" and effective != options.backend and not options.allow_cpu:
        why = "; ".join(reasons)
        raise BackendUnavailable(f"{options.backend} was asked for, but the model would run on the CPU: {why}")
    elsewhere = {name: count for name, count in nodes.items() if name != first}
    total = sum(nodes.values())
    split = [f"{count} of {total} nodes run on {_SHORT.get(name, name)}" for name, count in elsewhere.items()]
    return Placement(effective, "; ".join(reasons + split))


def provider_options(name: str, options: LoadOptions) -> Options:
    """https://onnxruntime.ai/docs/execution-providers/: options of the CUDA and the TensorRT provider."""
    if name == CUDA:
        return {
            "device_id": str(options.device),
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles, and a small device has not so much
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all at the first run of each shape
        }
    if name == TENSORRT:
        return _tensorrt_options(options)
    return {}


def check_profiles(signature: Signature, options: LoadOptions) -> None:
    """Raise ``ModelRefused`` unless every free dimension is bounded: TensorRT would else build an engine, for minutes,
    inside the run of each request of a new shape."""
    free = {info.name for info in signature.inputs if -1 in info.shape}
    profiles = options.engine.profiles
    missing = free if not profiles else set.union(*(free - {r.name for r in profile} for profile in profiles))
    if missing:
        names = ", ".join(sorted(missing))
        raise ModelRefused(
            f"inputs of free dimensions need their bounds for onnxruntime-tensorrt: give profiles with {names}, or the "
            "shapes of their warm-up"
        )
    odd = next((r.name for profile in profiles for r in profile if set(r.name) & set(":,")), None)
    if odd is not None:  # those separate names and shapes in the provider's options
        raise ModelRefused(f"onnxruntime-tensorrt takes no profile of an input named '{odd}'")


def batch_limit(signature: Signature, options: LoadOptions) -> int | None:
    """Most rows that some profile takes; None where no input has a free first dimension."""
    batched = {info.name for info in signature.inputs if info.shape[:1] == (-1,)}
    most = [min(r.maximum[0] for r in profile if r.name in batched) for profile in options.engine.profiles if batched]
    return max(most, default=None)


def _tensorrt_options(options: LoadOptions) -> Options:
    engine = options.engine
    chosen = {
        "device_id": str(options.device),
        "trt_fp16_enable": str(engine.precision == "fp16"),
        "trt_max_workspace_size": str(engine.workspace_bytes),
        "trt_builder_optimization_level": str(engine.optimization_level),
    }
    if engine.profiles:
        chosen["trt_profile_min_shapes"] = _shapes(engine.profiles, 1)
        chosen["trt_profile_opt_shapes"] = _shapes(engine.profiles, 2)
        chosen["trt_profile_max_shapes"] = _shapes(engine.profiles, 3)
    if options.cache_dir:
        os.makedirs(options.cache_dir, mode=0o700, exist_ok=True)  # engines are code: nobody else may put any there
        chosen |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": options.cache_dir,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": options.cache_dir,
        }
    return chosen


def _shapes(profiles: tuple[Profile, ...], field: int) -> str:
    """``name:1x3x224x224,...``; a name that comes again begins the next profile."""
    return ",".join(f"{r.name}:{'x'.join(map(str, r[field]))}" for profile in profiles for r in profile)


def _nodes(session: Any) -> Counter[str]:
    """How many nodes each provider has; empty where this ONNX Runtime does not tell (before 1.24)."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    counted: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counted[part.ep_name] += len(part.get_nodes())
    return counted


def _missing(name: str) -> str:
    build = f"this onnxruntime was built without {_SHORT[name]}"
    if platform.machine() == "aarch64":
        return f"{build}: install the onnxruntime-gpu that was built for this JetPack"
    return f"{build}: install {_PACKAGES[name]} (inference-mesh[cuda]) in place of onnxruntime"


def _not_loaded(name: str) -> str:
    return (
        f"{_SHORT[name]} could not be loaded: its libraries or the driver are missing or do not fit this onnxruntime; "
        "'mesh doctor' says which"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
