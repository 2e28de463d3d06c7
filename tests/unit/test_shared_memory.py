"""Regions of shared memory: what may be registered, what is read and written, and a client that changes its mind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import InvalidRequest, NotFound, Unsupported
from mesh.shared_memory import MAX_REGIONS, Region, SharedMemory

DATA = bytes(range(64))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    (tmp_path / "data").write_bytes(DATA)
    memory = SharedMemory(enabled=True, folder=tmp_path)
    yield memory
    memory.close()


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_region_is_listed_read_written_and_forgotten(memory: SharedMemory, tmp_path: Path) -> None:
    before = files()
    memory.register("r", "/data", 8, 32)
    assert memory.status() == memory.status("r") == [Region("r", "/data", 8, 32)]
    assert memory.piece("r", 2, 4).read() == DATA[10:14]
    memory.piece("r", 2, 8).write(memoryview(b"\0\0\0\0"))
    assert (tmp_path / "data").read_bytes() == DATA[:10] + bytes(4) + DATA[14:]
    memory.unregister("r")
    memory.unregister("r")
    assert memory.status() == []
    with pytest.raises(NotFound, match="Unable to find system shared memory region: 'r'"):
        memory.status("r")
    for name in ("a", "b"):
        memory.register(name, "data", 0, 64)
    memory.unregister()
    assert (memory.status(), files()) == ([], before)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "//data", "/a/b", "..", "/..", "/.", "/../data", "/no\0", "/" + "x" * 255, "/" + "ü" * 200),
        *("/nobody", "/link", "/folder", "/pipe", "/\ud800"),
    ],
)
def test_only_names_of_shared_memory_are_opened(memory: SharedMemory, tmp_path: Path, key: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = files()
    with pytest.raises(InvalidRequest, match="Unable to open shared memory region"):
        memory.register("r", key, 0, 1)
    assert (memory.status(), files()) == ([], before)


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (-1, 4), (0, 0), (0, -1), (2**63, 1), (1, 2**63 - 1)])
def test_a_region_lies_inside_its_file(memory: SharedMemory, offset: int, size: int) -> None:
    before = files()
    with pytest.raises(InvalidRequest):
        memory.register("r", "/data", offset, size)
    assert files() == before


def test_names_are_taken_once_and_not_without_end(memory: SharedMemory) -> None:
    memory.register("r", "/data", 0, 1)
    with pytest.raises(InvalidRequest, match="'r' already in manager"):
        memory.register("r", "/data", 0, 1)
    for name in ("", "x" * 2000):
        with pytest.raises(InvalidRequest, match="needs a name"):
            memory.register(name, "/data", 0, 1)


def test_regions_are_counted(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REGIONS > 100
    monkeypatch.setattr("mesh.shared_memory.MAX_REGIONS", 2)
    for name in ("a", "b"):
        memory.register(name, "/data", 0, 1)
    with pytest.raises(InvalidRequest, match="no more are taken"):
        memory.register("c", "/data", 0, 1)


@pytest.mark.parametrize(("offset", "size"), [(0, 41), (40, 1), (-1, 1), (0, -1), (2**63, 2**63)])
def test_reads_and_writes_stay_inside_the_region(memory: SharedMemory, offset: int, size: int) -> None:
    memory.register("r", "/data", 0, 40)
    with pytest.raises(InvalidRequest, match="Invalid offset \\+ byte size for shared memory region: 'r'"):
        memory.piece("r", offset, size)


def test_a_file_that_is_cut_short_is_an_error_and_stays_short(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "/data", 0, 64)
    os.truncate(tmp_path / "data", 16)
    with pytest.raises(InvalidRequest, match="shorter than it was registered"):
        memory.piece("r", 0, 32).read()
    with pytest.raises(InvalidRequest, match="shorter than it was registered"):
        memory.piece("r", 0, 32).write(bytes(32))
    assert memory.piece("r", 0, 16).read() == DATA[:16]
    assert (tmp_path / "data").stat().st_size == 16


def test_a_region_outlives_the_name_of_its_file(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "/data", 0, 4)
    (tmp_path / "data").unlink()
    (tmp_path / "data").write_bytes(b"other")
    assert memory.piece("r", 0, 4).read() == DATA[:4]


def test_a_piece_outlives_its_region(memory: SharedMemory, tmp_path: Path) -> None:
    before = files()
    memory.register("r", "/data", 8, 32)
    piece = memory.piece("r", 2, 4)
    memory.unregister("r")
    (tmp_path / "other").write_bytes(bytes(64))
    memory.register("r", "/other", 0, 64)
    assert piece.read() == DATA[10:14]
    piece.write(b"ABC")
    assert (tmp_path / "data").read_bytes()[8:16] == DATA[8:10] + b"ABC" + DATA[13:16]
    assert (tmp_path / "other").read_bytes() == bytes(64)
    del piece
    memory.close()
    assert files() == before


def test_nothing_goes_while_it_is_off(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    memory = SharedMemory(enabled=False, folder=tmp_path)
    calls = (
        lambda: memory.register("r", "/data", 0, 1), lambda: memory.status(), lambda: memory.unregister(),
        lambda: memory.piece("r", 0, 1),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(Unsupported, match=r"set http\.shared_memory = true"):
            call()
