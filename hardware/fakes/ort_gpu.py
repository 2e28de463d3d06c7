"""A simulated onnxruntime-gpu: the real CPU build, dressed as one that was built with CUDA and TensorRT.

For tests of the truth about where a model runs (DESIGN D8) on machines without a GPU. As recorded of onnxruntime-gpu
1.31 on a machine without CUDA: both providers are listed as available; a session that asks for CUDA comes to the CPU
with a warning on stderr; one that asks for TensorRT raises, or where the fall-back is on prints and comes to the CPU.

``FAKE_ORT_GPU`` chooses: "falls" (so it does, the default), or "works": sessions say that they run where they were
asked to, and run on the CPU; nodes of the operators in ``FAKE_ORT_GPU_CPU_OPS`` (comma separated) say that they
stayed there. A model with the metadata ``fault`` meets that CUDA error in each run. Not here: TensorRT itself
(``trt``). No setting of the product leads here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"

Providers = Sequence[Any]
"""Names, or pairs of a name and its options, as ONNX Runtime takes them."""


class Assigned(NamedTuple):
    """As ``get_provider_graph_assignment_info`` of the real one gives."""

    ep_name: str
    nodes: list[Any]

    def get_nodes(self) -> list[Any]:
        return self.nodes


class _OnNoGpu:
    """Laid over the real ``InferenceSession``, which it opens on the CPU."""

    def __init__(self, path: str, sess_options: Any = None, providers: Providers = (), **more: Any) -> None:
        self.asked = [p if isinstance(p, tuple) else (p, {}) for p in providers] or [(CPU, {})]
        self._claimed = self._claim([name for name, _ in self.asked], bool(more.pop("enable_fallback", 1)))
        super().__init__(path, sess_options, providers=[CPU], **more)  # type: ignore[call-arg]

    def _claim(self, names: list[str], fallback: bool) -> list[str]:
        if os.environ.get("FAKE_ORT_GPU", "falls") == "works":
            return names
        if TENSORRT in names:
            text = "TensorRT EP failed to create: libnvinfer.so.10: cannot open shared object file"
            if not fallback:
                raise RuntimeError(text)
            print(f"*************** EP Error ***************\nEP Error {text} when using {names}")  # noqa: T201
        if CUDA in names:
            os.write(2, b"[W:onnxruntime] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*\n")
        return [CPU]

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        real: Any = super()
        if (code := real.get_modelmeta().custom_metadata_map.get("fault")) is not None:
            raise RuntimeError(f"CUDA failure {code}: an illegal memory access ; GPU=0 ; hostname=h ; file=/src/x")
        return real.run(output_names, input_feed, run_options)

    def get_providers(self) -> list[str]:
        return self._claimed

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {name: options for name, options in self.asked if name in self._claimed}


class _Telling(_OnNoGpu):
    """Where the real one tells of each node where it runs (from 1.24)."""

    def get_provider_graph_assignment_info(self) -> list[Assigned]:
        real: Any = super()
        stayed = set(os.environ.get("FAKE_ORT_GPU_CPU_OPS", "").split(","))
        parts: dict[str, list[Any]] = {}
        for part in real.get_provider_graph_assignment_info():
            for node in part.get_nodes():
                parts.setdefault(CPU if node.op_type in stayed else self._claimed[0], []).append(node)
        return [Assigned(*part) for part in parts.items()]


def simulated(real: ModuleType) -> ModuleType:
    """A module with everything of ``real``, and GPUs that are not there."""
    module = ModuleType(real.__name__, real.__doc__)
    tells = hasattr(real.InferenceSession, "get_provider_graph_assignment_info")
    module.__dict__.update(real.__dict__)
    module.__dict__.update(
        __fake__=True,
        InferenceSession=type("InferenceSession", (_Telling if tells else _OnNoGpu, real.InferenceSession), {}),
        get_available_providers=lambda: [TENSORRT, CUDA, CPU],
    )
    return module
