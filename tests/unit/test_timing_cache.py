"""Timings between builds: kept if they are ours, else begun afresh, and never in the way of a build."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from hardware.timing_cache import TimingCache

SECRET = bytes(32)


def cache(folder: Path, version: str = "10.3.0", device: str = "Orin", secret: bytes = SECRET) -> TimingCache:
    return TimingCache(folder, version, device, secret)


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    assert cache(tmp_path).read() == b""
    cache(tmp_path).update(lambda now: now + b"one")
    cache(tmp_path).update(lambda now: now + b" two")
    assert cache(tmp_path).read() == b"one two"


def test_other_versions_devices_and_secrets_have_none(tmp_path: Path) -> None:
    cache(tmp_path).update(lambda now: b"timings")
    assert cache(tmp_path, version="10.3.1").read() == b""
    assert cache(tmp_path, device="Thor").read() == b""
    assert cache(tmp_path, secret=bytes(31) + b"1").read() == b""


def test_timings_of_another_version_put_in_place_are_not_read(tmp_path: Path) -> None:
    ours = cache(tmp_path, version="10.3.1")
    cache(tmp_path).update(lambda now: b"timings")
    cache(tmp_path).path.rename(ours.path)
    assert ours.read() == b""


@pytest.mark.parametrize("at", [0, 63, 64, -1])
def test_damage_means_to_start_afresh(at: int, tmp_path: Path) -> None:
    timings = cache(tmp_path)
    timings.update(lambda now: b"timings")
    data = bytearray(timings.path.read_bytes())
    data[at] ^= 0x80
    timings.path.write_bytes(data)
    assert timings.read() == b""
    timings.update(lambda now: now + b"new")
    assert timings.read() == b"new"


def test_updates_at_once_lose_nothing(tmp_path: Path) -> None:
    def add() -> None:
        for _ in range(10):
            cache(tmp_path).update(lambda now: now + b"x")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache(tmp_path).read() == b"x" * 40


def test_a_folder_that_cannot_be_written_costs_only_the_timings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cache(tmp_path / "missing").update(lambda now: b"timings")
    assert "the timing cache is not kept: No such file or directory" in caplog.text
