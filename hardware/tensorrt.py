"""The one door to TensorRT, 10.3 to 11.4, and to TensorRT-RTX: import it, tell what it can do, keep what it logs.

What a version can do is asked of its names, never of its number. Called only in processes that may die of it: a build
process or a worker. TensorRT reports failures by False, None or -1 and gives the reason to its logger alone, so whoever
checks a return adds :meth:`Log.reason` to the error. Not here: building (``engine_plan``), running
(``tensorrt_session``), CUDA (``cuda``).
"""

from __future__ import annotations

import importlib
import re
import threading
from collections import deque
from typing import Any

from hardware.errors import BackendUnavailable

KEPT = 50
REASON_CHARACTERS = 600
_NO_DRIVER = "CUDA driver version is insufficient"  # trails every other error where engines are built without a GPU
_PLACE = re.compile(r"\s*\bIn \S+ at \S+?:\d+")


def load_trt() -> Any:
    """Import ``tensorrt``, or ``tensorrt_rtx`` where only that is installed; raises ``BackendUnavailable``."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: a library that it loads itself
        if not _is_absent(error, "tensorrt"):
            raise _broken("tensorrt", error) from None
    try:
        return importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError) as error:
        if not _is_absent(error, "tensorrt_rtx"):
            raise _broken("tensorrt_rtx", error) from None
    raise BackendUnavailable(
        "TensorRT is not installed: on a PC install inference-mesh[tensorrt]; on a Jetson it comes with JetPack "
        "(apt install python3-libnvinfer), and a virtual environment needs --system-site-packages to see it"
    )


def _is_absent(error: Exception, module: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == module


def _broken(module: str, error: Exception) -> BackendUnavailable:
    """A module that is there and does not load: half an installation, or libraries of another version."""
    return BackendUnavailable(
        f"{module} is installed but does not load ({error}): its libraries are missing or of another version; "
        "on a PC reinstall inference-mesh[tensorrt], on a Jetson take both from JetPack"
    )


def backend_name(trt: Any) -> str:
    """ "tensorrt", "tensorrt-rtx", or "tensorrt-fake" for the stand-in of the tests: part of every engine's key."""
    if getattr(trt, "__fake__", False):
        return "tensorrt-fake"
    return "tensorrt-rtx" if trt.__name__ == "tensorrt_rtx" else "tensorrt"


def version(trt: Any) -> str:
    return str(trt.__version__)


def has_precision_flags(trt: Any) -> bool:
    """Whether a builder may choose FP16 by itself; gone in 11, where types are those of the model."""
    return hasattr(trt.BuilderFlag, "FP16")


def names_compute_capability(trt: Any) -> bool:
    """Whether engines can be built for a device that is not at hand (TensorRT-RTX)."""
    return hasattr(trt.IBuilderConfig, "num_compute_capabilities")


def keeps_timings(trt: Any) -> bool:
    """Whether a timing cache is of use; TensorRT-RTX tunes on the device and calls it a deprecated no-op."""
    return not names_compute_capability(trt)


class Log:
    """The last errors and warnings TensorRT gave. Thread-safe: it logs from threads of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: deque[str] = deque(maxlen=KEPT)
        self._warnings: deque[str] = deque(maxlen=KEPT)

    def add(self, text: str, *, error: bool) -> None:
        with self._lock:
            (self._errors if error else self._warnings).append(text)

    def clear(self) -> None:
        with self._lock:
            self._errors.clear()
            self._warnings.clear()

    @property
    def errors(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._errors)

    @property
    def warnings(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._warnings)

    @property
    def reason(self) -> str:
        """Why the last call failed, in one short line without TensorRT's own source files."""
        errors = self.errors
        telling = [text for text in errors if _NO_DRIVER not in text] or list(errors)
        text = "; ".join(dict.fromkeys(" ".join(_PLACE.sub("", text).split()) for text in telling))
        return text[:REASON_CHARACTERS] or "TensorRT gave no reason"


def logger(trt: Any, log: Log) -> Any:
    """An ``ILogger`` that fills ``log``; keep a reference for as long as anything made with it lives."""
    severity = trt.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants the base called by name

        def log(self, severity_: Any, text: str) -> None:
            try:
                if severity_ in errors:
                    log.add(text, error=True)
                elif severity_ == severity.WARNING:
                    log.add(text, error=False)
            except Exception:  # noqa: BLE001, S110 - called from C++, where an exception can only do harm
                pass

    return Logger()
