"""The door to TensorRT: what it says when TensorRT is missing or broken, and what it keeps of the log.

Not here: what the adapter may call (the recorded names), builds (``test_engine_plan``).
"""

from __future__ import annotations

import sys
import threading
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardware import tensorrt
from hardware.errors import BackendUnavailable
from hardware.fakes import trt_build, trt_types


class Hidden(MetaPathFinder):
    """Modules of these names are not installed."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules; neither TensorRT is there but what a test puts into it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(sys, "meta_path", [Hidden(*names), *sys.meta_path])


def forget() -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        sys.modules.pop(name, None)


def test_without_tensorrt_the_error_says_how_to_get_it(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(BackendUnavailable, match=r"inference-mesh\[tensorrt\].*JetPack"):
        tensorrt.load_trt()


@pytest.mark.parametrize(
    "body",
    [
        "raise ImportError('libnvonnxparser.so.11: cannot open shared object file')",
        "raise OSError('libnvdla_compiler.so: cannot open shared object file')",
        "import tensorrt_bindings_that_are_not_there",
    ],
)
def test_half_an_installation_is_told_from_none(body: str, site: Path) -> None:
    """It must not be passed over in silence for TensorRT-RTX either."""
    (site / "tensorrt.py").write_text(body)
    (site / "tensorrt_rtx.py").write_text("")
    with pytest.raises(BackendUnavailable, match="tensorrt is installed but does not load"):
        tensorrt.load_trt()
    forget()


def test_rtx_stands_in_where_only_that_is_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt")
    (site / "tensorrt_rtx.py").write_text("__version__ = '1'")
    trt = tensorrt.load_trt()
    assert tensorrt.backend_name(trt) == "tensorrt-rtx"
    (site / "tensorrt_rtx.py").write_text("raise ImportError('no libraries')")
    forget()
    with pytest.raises(BackendUnavailable, match="tensorrt_rtx is installed but does not load"):
        tensorrt.load_trt()
    forget()


def test_the_fake_says_that_it_is_one() -> None:
    assert tensorrt.backend_name(SimpleNamespace(__name__="tensorrt", __fake__=True)) == "tensorrt-fake"
    assert tensorrt.backend_name(SimpleNamespace(__name__="tensorrt")) == "tensorrt"


@pytest.mark.parametrize(("version", "flags"), [("10.3", True), ("10.13", True), ("10.16", True), ("11.4", False)])
def test_precision_is_asked_of_names_not_of_numbers(version: str, flags: bool) -> None:
    trt = SimpleNamespace(**trt_build.names(trt_types.VERSIONS[version]))
    assert tensorrt.has_precision_flags(trt) is flags
    assert not tensorrt.names_compute_capability(trt)


def test_the_log_keeps_the_last_errors_and_warnings() -> None:
    log = tensorrt.Log()
    logger = tensorrt.logger(SimpleNamespace(ILogger=trt_types.ILogger), log)
    severity = trt_types.Severity
    for number in range(tensorrt.KEPT + 5):
        logger.log(severity.ERROR, f"error {number}")
    logger.log(severity.WARNING, "a warning")
    logger.log(severity.INFO, "not kept")
    assert log.errors == tuple(f"error {number}" for number in range(5, tensorrt.KEPT + 5))
    assert log.warnings == ("a warning",)
    log.clear()
    assert log.reason == "TensorRT gave no reason"


def test_the_reason_leaves_out_source_files_and_what_only_says_that_no_gpu_is_there() -> None:
    log = tensorrt.Log()
    missing = "Error Code 1: Cuda Runtime (CUDA driver version is insufficient for CUDA runtime version)"
    log.add(missing, error=True)
    assert log.reason == missing
    log.add(
        "Error Code 4: API Usage Error (Network is bad\n In validate at /_src/optimizer/network.cpp:40)", error=True
    )
    assert log.reason == "Error Code 4: API Usage Error (Network is bad)"


def test_the_log_takes_from_many_threads() -> None:
    log = tensorrt.Log()
    logger = tensorrt.logger(SimpleNamespace(ILogger=trt_types.ILogger), log)
    threads = [
        threading.Thread(target=lambda: [logger.log(trt_types.Severity.ERROR, log.reason) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.errors) == tensorrt.KEPT


def test_nothing_escapes_into_the_library() -> None:
    """What is not even a severity, or a text, must not unwind through C++."""
    logger = tensorrt.logger(SimpleNamespace(ILogger=trt_types.ILogger), tensorrt.Log())

    class Unequal:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = object.__hash__

    logger.log(Unequal(), "text")
