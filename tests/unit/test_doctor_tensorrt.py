"""What ``mesh doctor`` says of TensorRT beside ONNX Runtime, each looked at in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import hardware.fakes
from mesh.cli.doctor import tensorrt

SITE = Path(hardware.fakes.__file__).parent / "site"


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of all packages: TensorRT is the stand-in, and ONNX Runtime what a test puts there."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(SITE)]))
    return tmp_path


def onnxruntime(folder: Path, linked: bytes) -> None:
    capi = folder / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    text = "__version__ = '1.32.0'\ndef get_available_providers():\n    return []\n"
    (folder / "onnxruntime" / "__init__.py").write_text(text)
    (capi / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\0" + linked + b"\0")


@pytest.mark.parametrize(("version", "state"), [("10.3", "ok"), ("11.4", "warning")])
def test_another_major_version_than_onnxruntime_links_is_named(
    box: Path, monkeypatch: pytest.MonkeyPatch, version: str, state: str
) -> None:
    monkeypatch.setenv("FAKE_TRT_VERSION", version)
    onnxruntime(box, b"libnvinfer.so.10")
    found = tensorrt()
    assert (found.check, found.state) == ("tensorrt", state)
    if state == "warning":
        assert "11.4.0.106, but this onnxruntime links TensorRT 10" in found.found
        assert "tensorrt-cu13<11" in found.advice


def test_an_onnxruntime_without_tensorrt_takes_any(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_VERSION", "11.4")
    assert tensorrt().state == "ok"


@pytest.mark.parametrize(
    ("text", "says"),
    [("import os\nos.abort()\n", "ends the process"), ("raise OSError('libnvinfer.so.10')\n", "does not load")],
)
def test_a_broken_one_is_named_and_takes_nothing_down(box: Path, text: str, says: str) -> None:
    (box / "tensorrt.py").write_text(text)
    found = tensorrt()
    assert found.state == "warning"
    assert says in found.found
