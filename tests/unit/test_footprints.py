"""Measured footprints survive a restart, and a file that is no such thing survives nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.footprints import FILE, MAX_KEPT, Footprints
from edge.preflight import Footprint


def read(folder: Path | None) -> Footprints:
    found = Footprints(folder)
    found.read()
    return found


def test_what_was_measured_is_known_after_a_restart(tmp_path: Path) -> None:
    read(tmp_path).remember("digest", "tensorrt", Footprint(5, 7))
    assert read(tmp_path).get("digest", "tensorrt") == Footprint(5, 7)
    assert read(tmp_path).get("digest", "onnxruntime-cpu") is None


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    footprints = read(tmp_path)
    for number in range(MAX_KEPT + 1):
        footprints.remember(str(number), "tensorrt", Footprint(number))
    assert footprints.get("0", "tensorrt") is None
    assert footprints.get(str(MAX_KEPT), "tensorrt") == Footprint(MAX_KEPT)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b'{"a": ["x", 1]}', b"\xff"])
def test_a_file_that_is_no_such_thing_is_measured_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    footprints = read(tmp_path)
    assert "measured again" in caplog.text
    footprints.remember("digest", "tensorrt", Footprint(5))
    assert read(tmp_path).get("digest", "tensorrt") == Footprint(5)


def test_where_nothing_can_be_kept_it_is_known_for_this_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (None, tmp_path / "missing"):
        footprints = read(folder)
        footprints.remember("digest", "tensorrt", Footprint(5))
        assert footprints.get("digest", "tensorrt") == Footprint(5)
    assert "cannot be kept" in caplog.text
