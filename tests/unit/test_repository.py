"""Triton's layout on disk: which versions are served, what is named instead of served, digests that stay."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.repository import Repository, StoredModel
from mesh.errors import ConfigError

LIMIT = 1 << 20


def scan(folder: Path, limit: int) -> list[StoredModel]:
    return flat(Repository(folder, limit).scan())


def flat(models: dict[str, list[StoredModel]]) -> list[StoredModel]:
    return [version for versions in models.values() for version in versions]


def named(models: dict[str, list[StoredModel]]) -> list[tuple[str, str]]:
    return [(m.identity.name, m.identity.version) for m in flat(models)]


def put(folder: Path, model: str, *versions: str, content: bytes = b"model", toml: str | None = None) -> Path:
    for version in versions:
        (folder / model / version).mkdir(parents=True)
        (folder / model / version / "model.onnx").write_bytes(content)
    (folder / model).mkdir(exist_ok=True)
    if toml is not None:
        (folder / model / "model.toml").write_text(toml)
    return folder / model


def found(folder: Path) -> list[tuple[str, str]]:
    return [(m.identity.name, m.identity.version) for m in scan(folder, LIMIT)]


def only(folder: Path) -> StoredModel:
    (model,) = scan(folder, LIMIT)
    return model


def test_the_latest_version_by_number_is_served(tmp_path: Path) -> None:
    put(tmp_path, "b", "1", "9", "10")
    put(tmp_path, "a", "1")
    assert found(tmp_path) == [("a", "1"), ("b", "10")]


@pytest.mark.parametrize(
    ("toml", "versions"),
    [
        ("versions = { latest = 2 }", ["9", "10"]),
        ("versions = { latest = 7 }", ["2", "9", "10"]),
        ('versions = "latest"', ["10"]),
        ('versions = "all"', ["2", "9", "10"]),
        ("versions = [9, 2, 9]", ["2", "9"]),
    ],
)
def test_the_version_policy(tmp_path: Path, toml: str, versions: list[str]) -> None:
    put(tmp_path, "m", "2", "9", "10", toml=toml)
    assert found(tmp_path) == [("m", version) for version in versions]


def test_what_is_no_version_is_left_alone(tmp_path: Path) -> None:
    model = put(tmp_path, "m", "1", "01", "0", "1.5", "-2", "٣", "notes", "9" * 100)
    (model / "7").write_text("a file")
    assert found(tmp_path) == [("m", "1")]


def test_the_digest_is_that_of_the_bytes_and_of_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "one", "m", "1", content=b"x" * 3_000_000)
    put(tmp_path / "two", "other", "5", content=b"x" * 3_000_000, toml="deadline_ms = 5")
    (tmp_path / "two" / "other" / "5" / "README").write_text("beside it")
    os.utime(tmp_path / "two" / "other" / "5" / "model.onnx", (1, 1))
    (one,), (two,) = scan(tmp_path / "one", 1 << 30), scan(tmp_path / "two", 1 << 30)
    assert one.identity.digest == two.identity.digest == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert two.config.deadline_ms == 5.0
    (tmp_path / "one" / "m" / "1" / "model.onnx").write_bytes(b"y")
    assert scan(tmp_path / "one", 1 << 30)[0].identity.digest != one.identity.digest


def test_folders_that_are_no_models_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, ".git", "1")
    put(tmp_path, "two words", "1")
    put(tmp_path, "x" * 129, "1")
    put(tmp_path, "dotted.name-1_2", "1")
    (tmp_path / "README.md").write_text("about these models")
    assert found(tmp_path) == [("dotted.name-1_2", "1")]
    assert "two words" in caplog.text


def test_what_cannot_be_served_is_named_and_the_others_are_found(tmp_path: Path) -> None:
    put(tmp_path, "good", "1")
    put(tmp_path, "empty")
    (tmp_path / "hollow" / "3").mkdir(parents=True)
    put(tmp_path, "large", "1", content=b"x" * (LIMIT + 1))
    put(tmp_path, "absent", "1", toml="versions = [1, 2]")
    put(tmp_path, "typo", "1", toml="verions = [1]")
    (put(tmp_path, "foreign", "1") / "config.pbtxt").write_text('platform: "tensorflow_graphdef"')
    models = {m.identity.name: m for m in scan(tmp_path, LIMIT)}
    assert models["good"].rejected == ""
    assert "no version folder" in models["empty"].rejected
    assert models["hollow"].rejected == "hollow/3 has no regular file model.onnx"
    assert models["hollow"].identity.version == "3"
    assert "models.max_file_bytes" in models["large"].rejected
    assert "declares version 2, which has no folder" in models["absent"].rejected
    assert models["typo"].rejected.startswith("typo/model.toml: verions")
    assert "only ONNX models" in models["foreign"].rejected
    assert all(str(tmp_path) not in m.rejected for m in models.values())


def test_one_bad_version_does_not_take_the_others_along(tmp_path: Path) -> None:
    model = put(tmp_path, "m", "1", "2", toml='versions = "all"')
    (model / "2" / "model.onnx").unlink()
    one, two = scan(tmp_path, LIMIT)
    assert (one.rejected, bool(two.rejected)) == ("", True)


def test_a_model_file_must_be_a_regular_file(tmp_path: Path) -> None:
    model = put(tmp_path, "m", "1")
    file = model / "1" / "model.onnx"
    makers: list[Callable[[], object]] = [
        lambda: file.symlink_to("/etc/passwd"),
        lambda: file.symlink_to(file),
        file.mkdir,
        lambda: os.mkfifo(file),
    ]
    for make in makers:
        file.rmdir() if file.is_dir() else file.unlink()
        make()
        assert only(tmp_path).rejected == "m/1 has no regular file model.onnx"


def test_a_linked_folder_is_a_model_like_any_other(tmp_path: Path) -> None:
    put(tmp_path / "store", "v7", "1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(tmp_path / "store" / "v7")
    (tmp_path / "models" / "dangling").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path / "models") == [("m", "1")]


def test_a_repository_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--models: there is no folder"):
        scan(tmp_path / "none", LIMIT)
    assert scan(tmp_path, LIMIT) == []


def test_a_poll_takes_what_is_new_changed_or_gone_once_it_stayed_so(tmp_path: Path) -> None:
    put(tmp_path, "kept", "1")
    put(tmp_path, "gone", "1")
    models = Repository(tmp_path, LIMIT)
    first = models.scan()
    assert named(models.poll()) == [("gone", "1"), ("kept", "1")]
    put(tmp_path, "new", "1")
    put(tmp_path, "kept", "2", content=b"another")
    (tmp_path / "gone" / "1" / "model.onnx").unlink()
    (tmp_path / "gone" / "1").rmdir()
    (tmp_path / "gone").rmdir()
    assert models.poll() == first
    assert named(models.poll()) == [("kept", "2"), ("new", "1")]


def test_a_file_that_is_still_being_copied_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path, "m", "1", content=b"old")
    models = Repository(tmp_path, LIMIT)
    old = models.scan()["m"][0].identity.digest
    file = tmp_path / "m" / "1" / "model.onnx"
    content = b""
    for _ in range(4):
        content += b"part"
        file.write_bytes(content)
        assert models.poll()["m"][0].identity.digest == old
    assert models.poll()["m"][0].identity.digest == hashlib.sha256(content).hexdigest()


def test_a_new_folder_is_not_taken_before_its_declarations_stay_the_same(tmp_path: Path) -> None:
    models = Repository(tmp_path, LIMIT)
    models.scan()
    put(tmp_path, "m", "1", "2")
    assert models.poll() == {}
    (tmp_path / "m" / "model.toml").write_text("versions = [1]")
    assert models.poll() == {}
    assert named(models.poll()) == [("m", "1")]


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "m", "1", toml="")
    models = Repository(tmp_path, LIMIT)
    before = models.scan()
    monkeypatch.setattr(Path, "open", None)
    assert models.poll() == models.scan() == before
    assert models.model("m") == before["m"]


def test_a_declaration_that_changes_is_seen_and_the_model_not_hashed_again(tmp_path: Path) -> None:
    put(tmp_path, "m", "1")
    models = Repository(tmp_path, LIMIT)
    (before,) = models.scan()["m"]
    (tmp_path / "m" / "model.toml").write_text("deadline_ms = 5")
    (after,) = models.model("m")
    assert (after.identity, after.config.deadline_ms) == (before.identity, 5.0)
    assert not after.same(before)


def test_whether_a_file_is_still_the_one_that_was_hashed(tmp_path: Path) -> None:
    put(tmp_path, "m", "1")
    (stored,) = Repository(tmp_path, LIMIT).model("m")
    assert stored.unchanged()
    stored.path.write_bytes(b"something else")
    assert not stored.unchanged()
    stored.path.unlink()
    assert not stored.unchanged()
    assert Repository(tmp_path, LIMIT).model("nothing") == []
