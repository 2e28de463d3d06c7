"""The fake TensorRT as one module: the half that builds and the half that runs, under the names of one version.

``__fake__`` tells whoever loads it what it is. Not here: the halves (``trt_build``, ``trt_run``).
"""

from __future__ import annotations

from types import ModuleType

from hardware.fakes import trt_build, trt_run
from hardware.fakes.trt_types import VERSIONS, chosen_version


def module(version: str | None = None) -> ModuleType:
    """Stand-in for ``tensorrt`` of ``version``, such as "10.3"; of the one ``FAKE_TRT_VERSION`` names by default."""
    full = chosen_version() if version is None else VERSIONS[version]
    made = ModuleType("tensorrt", "A stand-in for TensorRT. Not here: a GPU.")
    vars(made).update(trt_build.names(full) | trt_run.names(full), __fake__=True)
    return made
