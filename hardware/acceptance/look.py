"""``python -m hardware.acceptance.look WHAT``: import one library, print one line of JSON about it.

A process of its own for each, which may die of it. Not here: judging what is found (``versions``).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from hardware import confinement, cuda, tensorrt
from hardware.errors import HardwareError

_LINKED = re.compile(rb"libnvinfer\.so\.(\d+)\0")
_LIBRARY = re.compile(r"/\S*lib(?:nvinfer|tensorrt_rtx)\.so\S*")


def onnxruntime() -> dict[str, Any]:
    name = "onnxruntime"
    packages = sorted(set(importlib.metadata.packages_distributions().get(name, [])))
    try:
        module: Any = importlib.import_module(name)  # to look at it; models are opened by onnx_backend alone
        found = {"version": module.__version__, "providers": module.get_available_providers()}
    except (ImportError, AttributeError) as error:  # AttributeError: what two packages in one folder leave behind
        return {"packages": packages, "error": f"onnxruntime cannot be used: {error}"}
    folder = Path(module.__file__ or "").parent
    links = linked_tensorrt(folder)
    return {"packages": packages, **found, "links_tensorrt": links, "simulated": hasattr(module, "__fake__")}


def linked_tensorrt(package: Path) -> int | None:
    """Major version of the TensorRT that the TensorRT provider of an ONNX Runtime links; None without one."""
    library = package / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        return None
    found = _LINKED.search(library.read_bytes())
    return int(found[1]) if found else None


def trt() -> dict[str, Any]:
    module = tensorrt.load_trt()
    return {
        "module": tensorrt.backend_name(module),
        "version": tensorrt.version(module),
        "library": _library(),
        "fp16_by_flag": tensorrt.has_precision_flags(module),
        "simulated": tensorrt.backend_name(module) == "tensorrt-fake",
    }


def _library() -> list[int] | None:
    """Major, minor and patch of the TensorRT library that is loaded into this process."""
    for path in sorted(set(_LIBRARY.findall(Path("/proc/self/maps").read_text(encoding="utf-8")))):
        number = int(ctypes.CDLL(path).getInferLibVersion())  # 10,000 x major + 100 x minor + patch, from 10 on
        return [number // 10000, number // 100 % 100, number % 100]
    return None


def device() -> dict[str, Any]:
    facts = cuda.device_facts(0)
    return {
        "name": facts.name,
        "compute_capability": ".".join(map(str, facts.compute_capability)),
        "sm_count": facts.sm_count,
        "integrated": facts.integrated,
        "total_bytes": facts.total_bytes,
        "runtime": _cuda(facts.runtime_version),
        "driver_cuda": _cuda(facts.driver_version),
    }


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


LOOKS = {"onnxruntime": onnxruntime, "tensorrt": trt, "cuda": device}


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print
    confinement.confine(os.getppid())
    try:
        found = LOOKS[sys.argv[1]]()
    except HardwareError as error:
        found = {"error": error.text}
    os.write(answers, json.dumps(found).encode() + b"\n")
    os._exit(0)  # destructors of half an installation may crash


if __name__ == "__main__":
    main()
