"""Engines on disk: what is read is what was written by this device, or it is not read.

Not here: building engines (``integration/test_engine_build``), timings (``test_timing_cache``).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec
import pytest

from hardware import engine_cache
from hardware.backend import ShapeRange
from hardware.engine_cache import EngineCache
from hardware.engine_key import Ingredients, Target
from hardware.errors import EngineNotBuilt
from hardware.signing import make_secret, read_secret

ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = bytes(range(256)) * 40
TARGET = Target("Orin", (8, 7), 16, True, 12)
PROFILES = (
    (ShapeRange("x", (1, 3), (4, 3), (8, 3)), ShapeRange("y", (1,), (4,), (8,))),
    (ShapeRange("x", (9, 3), (9, 3), (9, 3)), ShapeRange("y", (9,), (9,), (9,))),
)


def ingredients(**changed: Any) -> Ingredients:
    values: dict[str, Any] = {
        "backend": "tensorrt",
        "version": "10.3.0",
        "system": "Linux",
        "machine": "aarch64",
        "l4t": "# R36 (release), REVISION: 4.0",
        "target": TARGET,
        "model": "ab" * 32,
        "precision": "fp16",
        "profiles": PROFILES,
        "workspace_bytes": 1 << 30,
        "optimization_level": 3,
    }
    return Ingredients(**(values | changed))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "engine.key"


@pytest.fixture
def cache(tmp_path: Path, key_file: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", make_secret(key_file), 1 << 30)


def store(cache: EngineCache, plan: bytes = PLAN, **changed: Any) -> Path:
    return cache.store(memoryview(plan), ingredients(**changed), 12040, 1.5).path


@pytest.mark.parametrize(
    "changed",
    [
        {"backend": "tensorrt-fake"},
        {"version": "10.3.1"},
        {"machine": "x86_64"},
        {"l4t": ""},
        {"model": "cd" * 32},
        {"precision": "fp32"},
        {"profiles": PROFILES[:1]},
        {"profiles": PROFILES[::-1]},
        {"workspace_bytes": 1 << 31},
        {"optimization_level": 4},
        {"target": Target("Orin NX", (8, 7), 16, True, 12)},
        {"target": Target("Orin", (8, 9), 16, True, 12)},
        {"target": Target("Orin", (8, 7), 8, True, 12)},
        {"target": Target("Orin", (8, 7), 16, False, 12)},
        {"target": Target("Orin", (8, 7), 16, True, 13)},
    ],
    ids=str,
)
def test_whatever_changes_an_engine_changes_its_key(changed: dict[str, Any]) -> None:
    assert ingredients(**changed).key != ingredients().key


def test_a_key_does_not_change_from_process_to_process() -> None:
    """It must be found again by the next release too: a new key for the same engine costs everyone a build."""
    assert ingredients().key == "e8e7cec8b714bc30fba52c06ae5d03345c2853b47f6a5a7cfa8419b9af5ac5b7"


def test_what_was_stored_is_found_and_read(cache: EngineCache, key_file: Path) -> None:
    assert cache.find(ingredients().key) is None
    path = store(cache)
    found = cache.find(ingredients().key)
    assert found is not None
    assert found.path == path
    assert (found.meta.ingredients, found.meta.driver_version, found.meta.build_s) == (ingredients(), 12040, 1.5)
    assert engine_cache.read(path, key_file) == PLAN
    assert cache.find(ingredients(version="10.3.1").key) is None


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def another_device(entry: Path) -> None:
    elsewhere = EngineCache(entry.parent.parent / "other", make_secret(entry.parent.parent / "other.key"), 1 << 30)
    for file in entry.iterdir():
        file.unlink()
    for file in store(elsewhere).iterdir():
        file.rename(entry / file.name)


def unsigned(entry: Path) -> None:
    """Another plan, its digest put right: all that whoever can write the folder can do."""
    meta = msgspec.json.decode((entry / "meta.json").read_bytes())
    (entry / "plan").write_bytes(PLAN[::-1])
    meta["meta"]["plan_sha256"] = hashlib.sha256(PLAN[::-1]).hexdigest()
    (entry / "meta.json").write_bytes(msgspec.json.encode(meta))


def linked(entry: Path) -> None:
    (entry / "plan").rename(entry.parent.parent / "elsewhere")
    (entry / "plan").symlink_to(entry.parent.parent / "elsewhere")


def not_a_file(entry: Path) -> None:
    (entry / "plan").unlink()
    os.mkfifo(entry / "plan")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first byte of the plan": lambda entry: flip(entry / "plan", 0),
    "last byte of the plan": lambda entry: flip(entry / "plan", -1),
    "truncated plan": lambda entry: os.truncate(entry / "plan", len(PLAN) - 1),
    "longer plan": lambda entry: (entry / "plan").write_bytes(PLAN + b"x"),
    "no plan": lambda entry: (entry / "plan").unlink(),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "empty meta": lambda entry: (entry / "meta.json").write_bytes(b""),
    "meta is no json": lambda entry: flip(entry / "meta.json", 0),
    "signature": lambda entry: flip(entry / "meta.json", 20),
    "signed part of meta": lambda entry: flip(entry / "meta.json", -20),
    "unsigned plan": unsigned,
    "another device's": another_device,
    "plan behind a link": linked,
    "plan is a fifo": not_a_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_sound_is_set_aside_and_built_anew(damage: str, cache: EngineCache, key_file: Path) -> None:
    path = store(cache)
    DAMAGE[damage](path)
    with pytest.raises(EngineNotBuilt, match="set aside"):
        engine_cache.read(path, key_file)
    assert not path.exists()
    assert (path.with_name(path.name + ".bad") / "reason.txt").read_text()
    assert cache.find(ingredients().key) is None
    assert engine_cache.read(store(cache), key_file) == PLAN


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_sound_is_not_found(damage: str, cache: EngineCache) -> None:
    path = store(cache)
    DAMAGE[damage](path)
    assert cache.find(ingredients().key) is None
    assert not path.exists()


def test_an_entry_under_another_name_is_refused(cache: EngineCache, key_file: Path) -> None:
    """An engine of another TensorRT or device, put where one of this is looked for."""
    other = store(cache, version="10.13.0")
    path = other.rename(other.with_name(ingredients().key))
    with pytest.raises(EngineNotBuilt, match="another key"):
        engine_cache.read(path, key_file)
    assert not path.exists()


def test_an_entry_that_is_not_there_is_named(cache: EngineCache, key_file: Path) -> None:
    with pytest.raises(EngineNotBuilt, match="No such file"):
        engine_cache.read(store(cache).with_name("nothing"), key_file)


def test_the_same_engine_from_two_builds_is_one_entry(cache: EngineCache, key_file: Path) -> None:
    first = store(cache)
    assert store(cache, PLAN[::-1]) == first
    assert engine_cache.read(first, key_file) == PLAN


def last_used(path: Path, at: float) -> None:
    for file in path.iterdir():
        os.utime(file, (at, at))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, key_file: Path) -> None:
    cache = EngineCache(tmp_path / "cache", make_secret(key_file), 3 * len(PLAN))
    old, older = store(cache, version="1"), store(cache, version="2")
    last_used(old, 2000)
    last_used(older, 1000)
    assert cache.find(ingredients(version="2").key) is not None  # now it is the last used
    new = store(cache, version="3")
    assert [path.exists() for path in (old, older, new)] == [False, True, True]


def test_an_engine_in_use_is_never_removed(tmp_path: Path, key_file: Path) -> None:
    cache = EngineCache(tmp_path / "cache", make_secret(key_file), 0)
    held = store(cache, version="1")
    with engine_cache.hold(held):
        kept = store(cache, version="2")
        assert engine_cache.read(held, key_file) == PLAN
    assert kept.exists()  # the newest stays, whatever the limit
    cache.evict()
    assert not held.exists()
    assert not kept.exists()


def test_bad_entries_go_before_good_ones(tmp_path: Path, key_file: Path) -> None:
    cache = EngineCache(tmp_path / "cache", make_secret(key_file), 5 * len(PLAN) // 2)
    good, bad = store(cache, version="1"), store(cache, version="2")
    last_used(good, 1000)
    flip(bad / "plan", 0)
    assert cache.find(bad.name) is None
    store(cache, version="3")
    assert good.exists()
    assert not bad.with_name(bad.name + ".bad").exists()


def test_leftovers_of_killed_builds_are_swept(tmp_path: Path, cache: EngineCache) -> None:
    left = tmp_path / "cache" / "unfinished-abc"
    left.mkdir()
    (left / "plan").write_bytes(b"half")
    store(cache)
    assert not left.exists()


_STORE_WITH_LITTLE_DISK = """
import resource, sys
from pathlib import Path
from tests.unit.test_engine_cache import PLAN, EngineCache, EngineNotBuilt, make_secret, store
cache = EngineCache(Path(sys.argv[1]), make_secret(Path(sys.argv[2])), 1 << 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(PLAN) // 2, len(PLAN) // 2))
try:
    store(cache)
except EngineNotBuilt as error:
    print(error.text)
"""


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(tmp_path: Path, key_file: Path) -> None:
    command = [sys.executable, "-c", _STORE_WITH_LITTLE_DISK, str(tmp_path / "cache"), str(key_file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "the engine cannot be kept: File too large\n", done.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineNotBuilt, match="Not a directory"):
        EngineCache(tmp_path / "file" / "cache", bytes(32), 0)


_MAKE_SECRET = """
import sys
from pathlib import Path
from hardware.signing import make_secret
print("ready", flush=True)
sys.stdin.read()
print(make_secret(Path(sys.argv[1])).hex())
"""


def test_processes_that_make_the_secret_at_once_agree(key_file: Path) -> None:
    command = [sys.executable, "-c", _MAKE_SECRET, str(key_file)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    secrets = set()
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.stdout is not None
        secrets.add(bytes.fromhex(process.stdout.read()))
        process.stdout.close()
        assert process.wait(60) == 0
    assert secrets == {read_secret(key_file)}
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key_file.parent.iterdir()] == [key_file.name]


def test_a_secret_that_others_can_read_is_refused(key_file: Path) -> None:
    make_secret(key_file)
    key_file.chmod(0o640)
    with pytest.raises(EngineNotBuilt, match="chmod 600"):
        read_secret(key_file)


def test_a_damaged_secret_is_refused(key_file: Path) -> None:
    make_secret(key_file)
    os.truncate(key_file, 5)
    with pytest.raises(EngineNotBuilt, match="damaged"):
        make_secret(key_file)


def test_reading_makes_no_secret(cache: EngineCache, key_file: Path) -> None:
    path = store(cache)
    key_file.unlink()
    with pytest.raises(EngineNotBuilt, match="key file cannot be read"):
        engine_cache.read(path, key_file)
    assert not key_file.exists()
    assert path.exists()
