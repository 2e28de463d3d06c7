"""Names, enumerations and the logger of the stand-in for TensorRT, as each version has them.

What 11 removed is not there for 11: values are those of the bindings. Not here: what builds (``trt_build``) or runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

VERSIONS = {"10.3": "10.3.0", "10.13": "10.13.3.9", "10.16": "10.16.1.11", "11.4": "11.4.0.106"}
"""Versions whose names were recorded, by what ``FAKE_TRT_VERSION`` may say."""

DEFAULT = "10.13"


def chosen_version(environment: Mapping[str, str] | None = None) -> str:
    """The full version that ``FAKE_TRT_VERSION`` names."""
    return VERSIONS[(os.environ if environment is None else environment).get("FAKE_TRT_VERSION", DEFAULT)]


def is_strongly_typed(version: str) -> bool:
    """From 11 on there are no precision flags, and networks are typed by the model alone."""
    return not version.startswith("10.")


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        """Subclasses must call it, as with pybind11."""

    def log(self, severity: IntEnum, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    """Prints, as TensorRT's own does."""

    def __init__(self, min_severity: IntEnum = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: IntEnum, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] [{severity.name}] {msg}")  # noqa: T201 - to standard output, which workers must keep clean


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9


class MemoryPoolType(IntEnum):
    WORKSPACE = 0
    TACTIC_DRAM = 4


class ErrorCode(IntEnum):
    SUCCESS = 0
    INTERNAL_ERROR = 1
    MODEL_DESERIALIZE_FAILED = 3
    INVALID_NODE = 6
    UNSUPPORTED_NODE = 8


def builder_flag(version: str) -> Any:
    members = {"TF32": 6, "VERSION_COMPATIBLE": 12}
    if not is_strongly_typed(version):
        members |= {"FP16": 0, "INT8": 1, "BF16": 17}
    return IntEnum("BuilderFlag", members)


def network_flag(version: str) -> Any:
    members = {"STRONGLY_TYPED": 1}
    if not is_strongly_typed(version):
        members["EXPLICIT_BATCH"] = 0
    return IntEnum("NetworkDefinitionCreationFlag", members)


ONNX_TYPES = {
    "FP32": DataType.FLOAT,
    "FP64": DataType.FLOAT,  # TensorRT has no double, and says nothing
    "FP16": DataType.HALF,
    "BF16": DataType.BF16,
    "INT8": DataType.INT8,
    "UINT8": DataType.UINT8,
    "INT32": DataType.INT32,
    "INT64": DataType.INT64,
    "BOOL": DataType.BOOL,
}
"""What the parser makes of a model's types; others it refuses."""
