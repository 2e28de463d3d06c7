"""What classes are called: read with a model's declaration, looked at again when the file changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.labels import MAX_BYTES
from edge.model_config import ModelConfig, read_config
from edge.repository import Repository
from hardware.backend import TensorInfo
from mesh.errors import ModelRejected

BY_FILE = '[labels]\nY = "labels.txt"'
OUTPUTS = (TensorInfo("Y", "FP32", (-1, 3)), TensorInfo("S", "FP32", (-1, 2)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"a model")
    (tmp_path / "m" / "model.toml").write_text(BY_FILE)
    return tmp_path / "m"


def names(folder: Path, content: bytes) -> tuple[str, ...]:
    (folder / "labels.txt").write_bytes(content)
    return read_config(folder).labels["Y"].names


def refused(folder: Path) -> str:
    with pytest.raises(ModelRejected) as caught:
        read_config(folder)
    return caught.value.text


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\r\ndog\r\n", ("cat", "dog")),
        (b"cat\n\ndog\n\n", ("cat", "", "dog", "")),
        (b"n02\ta cat, tabby\n", ("n02\ta cat, tabby",)),
        ("\ufeffcäät\n".encode(), ("cäät",)),
    ],
)
def test_one_a_line(folder: Path, content: bytes, read: tuple[str, ...]) -> None:
    assert names(folder, content) == read


def test_what_is_no_file_of_labels_is_named(folder: Path) -> None:
    labels = folder / "labels.txt"
    for content, says in (
        (b"", "labels.Y.names: Tuple should have at least 1 item"),
        (b"\n", "labels.Y.names: Tuple should have at least 1 item"),
        (b"\xff", "m/labels.txt is not UTF-8 text"),
        (b"a\0b", "labels.Y: Value error, label 0 has a control character"),
        (b"a" * (MAX_BYTES + 1), f"m/labels.txt is larger than {MAX_BYTES} bytes"),
        (b"a" * MAX_BYTES, f"all labels of a model may have {MAX_BYTES} bytes, these have {MAX_BYTES + 1}"),
    ):
        labels.write_bytes(content)
        assert says in refused(folder)
    labels.unlink()
    assert "m has no regular file 'labels.txt'" in refused(folder)
    labels.symlink_to("/etc/hostname")
    assert "m has no regular file 'labels.txt'" in refused(folder)
    labels.unlink()
    os.mkfifo(labels)  # opening it would block
    assert "m has no regular file 'labels.txt'" in refused(folder)


def test_model_toml_stands_over_config_pbtxt_and_an_override_over_both(folder: Path) -> None:
    (folder / "config.pbtxt").write_text('output { name: "S" label_filename: "s.txt" } output { name: "T" }')
    (folder / "s.txt").write_text("one\ntwo")
    assert names(folder, b"cat") == ("cat",)
    assert list(read_config(folder).labels) == ["Y"]
    (folder / "model.toml").unlink()
    found = read_config(folder)
    assert (list(found.labels), found.labels["S"].names, found.label_files) == (["S"], ("one", "two"), ("s.txt",))
    override = read_config(folder, '{"output": [{"name": "Y", "label_filename": "labels.txt"}]}')
    assert override.labels["Y"].names == ("cat",)


def test_labels_are_of_an_output_that_callers_get() -> None:
    assert ModelConfig.model_validate({"labels": {"Y": ["a"]}}).why_mislabelled(OUTPUTS) == ""
    wrong = ModelConfig.model_validate({"labels": {"Z": ["a"]}}).why_mislabelled(OUTPUTS)
    assert wrong == "labels: the model answers no output 'Z', it has ['Y', 'S']"
    kept = {"sequence": {"state": [{"input": "I", "output": "S"}]}, "labels": {"S": ["a"]}}
    assert "no output 'S', it has ['Y']" in ModelConfig.model_validate(kept).why_mislabelled(OUTPUTS)


def test_a_poll_sees_labels_change_and_come(folder: Path) -> None:
    models = Repository(folder.parent, 1 << 20)
    assert "no regular file" in models.scan()["m"][0].rejected
    (folder / "labels.txt").write_text("cat")
    polled = [models.poll()["m"][0] for _ in range(3)]
    assert [model.rejected for model in polled] == ["", "", ""]
    (folder / "labels.txt").write_text("a dog")
    (before,), (after,) = models.poll()["m"], models.poll()["m"]
    assert before.config.labels["Y"].names == ("cat",)
    assert after.config.labels["Y"].names == ("a dog",)
    assert before.identity == after.identity
    assert not before.same(after)
    assert models.poll()["m"][0].same(after)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Z", "Cf"])), min_size=1, max_size=20
    )
)
def test_any_names_come_back_from_what_travels(given_names: list[str]) -> None:
    config = ModelConfig.model_validate({"labels": {"Y": given_names}})
    assert "\n".join(config.labels["Y"].names).split("\n") == given_names
