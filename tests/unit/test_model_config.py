"""What is declared about a model: model.toml, and Triton's config.pbtxt as found in the wild or made by an enemy."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.model_config import MAX_CONFIG_BYTES, ModelConfig, WarmupInput, parse_pbtxt, read_config
from mesh.errors import ModelRejected

TRITON = """
# Copyright of somebody
name: "resnet"   # the folder's name
platform: 'onnxruntime_onnx'
max_batch_size : 128
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
    reshape { shape: [ 1, 3, 224, 224 ] }
  }
]
output {
  name: "fc6_1"; data_type: TYPE_FP32,
  dims: [ 1000 ]
  label_filename: "labels \\" {.txt"
}
output { name: "second" dims: -1 dims: 1e3 }
instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }, { kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
optimization { execution_accelerators { gpu_execution_accelerator : [ {
  name : "tensorrt"
  parameters { key: "precision_mode" value: "FP16" } } ]
}}
parameters: { key: "EXECUTION_ENV_PATH", value: { string_value: "$$TRITON/env.tar.gz" } }
version_policy: { specific: { versions: [1, 3] } }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "resnet").mkdir()
    return tmp_path / "resnet"


def config(folder: Path, pbtxt: str | None = None, toml: str | None = None) -> ModelConfig:
    for name, text in (("config.pbtxt", pbtxt), ("model.toml", toml)):
        if text is not None:
            (folder / name).write_text(text)
    return read_config(folder)


def refused(folder: Path, pbtxt: str | None = None, toml: str | None = None) -> str:
    with pytest.raises(ModelRejected) as caught:
        config(folder, pbtxt, toml)
    assert str(folder.parent) not in caught.value.text
    return caught.value.text


def test_nothing_need_be_declared(folder: Path) -> None:
    assert config(folder) == ModelConfig()


def test_a_model_toml_with_everything(folder: Path) -> None:
    toml = """
    backend = "onnxruntime-cuda"
    versions = [1, 2]
    deadline_ms = 250
    labels = ["vision"]
    [warmup]
    X = { shape = [1, 3, 224, 224], value = 0.5 }
    T = { shape = [1], value = "text" }
    """
    found = config(folder, toml=toml)
    assert (found.backend, found.versions, found.deadline_ms) == ("onnxruntime-cuda", (1, 2), 250.0)
    assert found.warmup["X"] == WarmupInput(shape=(1, 3, 224, 224), value=0.5)
    assert found.warmup["T"].value == "text"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("versions = ", "is not TOML"),
        ("batch = 3", "batch: Extra inputs"),
        ('backend = "pytorch"', "backend: "),
        ('versions = "newest"', "versions"),
        ("versions = []", "versions"),
        ("versions = [0]", "versions"),
        ("deadline_ms = -1", "deadline_ms"),
        ("[warmup]\nX = { shape = [-1] }", "warmup.X.shape.0"),
        ("[warmup]\nX = {}", "warmup.X.shape"),
        ("x = " + "[" * 10_000, "nests too deeply"),
        ("deadline_ms = " + "9" * 5_000, "is not TOML"),
        ("#" * (MAX_CONFIG_BYTES + 1), "is larger than"),
    ],
)
def test_what_is_wrong_in_a_model_toml_is_named(folder: Path, toml: str, says: str) -> None:
    text = refused(folder, toml=toml)
    assert text.startswith("resnet/model.toml")
    assert says in text


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "model.toml").write_bytes(b'labels = ["\xff"]')
    assert refused(folder) == "resnet/model.toml is not UTF-8 text"
    (folder / "model.toml").unlink()
    (folder / "model.toml").symlink_to("/proc/self/mem")  # a regular file whose reading fails
    assert "resnet/model.toml cannot be read" in refused(folder)


def test_a_config_of_triton_is_understood(folder: Path) -> None:
    assert config(folder, TRITON).versions == (1, 3)
    fields = parse_pbtxt(TRITON, "here")
    assert fields["max_batch_size"] == ["128"]
    assert fields["input"][0]["reshape"][0]["shape"] == ["1", "3", "224", "224"]
    assert [o["name"] for o in fields["output"]] == [["fc6_1"], ["second"]]
    assert fields["output"][0]["label_filename"] == ['labels \\" {.txt']
    assert fields["output"][1]["dims"] == ["-1", "1e3"]
    assert len(fields["instance_group"]) == 2
    accelerator = fields["optimization"][0]["execution_accelerators"][0]["gpu_execution_accelerator"][0]
    assert accelerator["parameters"] == [{"key": ["precision_mode"], "value": ["FP16"]}]
    assert fields["parameters"][0]["value"] == [{"string_value": ["$$TRITON/env.tar.gz"]}]


@pytest.mark.parametrize(
    ("pbtxt", "versions"),
    [
        ("", "latest"),
        ('backend: "onnxruntime"', "latest"),
        ("version_policy { all {} }", "all"),
        ("version_policy: { all: { } }", "all"),
        ("version_policy: { latest { num_versions: 1 } }", "latest"),
        ("version_policy { specific { versions: 2 versions: 5 } }", (2, 5)),
    ],
)
def test_the_version_policy_of_triton(folder: Path, pbtxt: str, versions: object) -> None:
    assert config(folder, pbtxt).versions == versions


def test_the_model_toml_wins(folder: Path) -> None:
    assert config(folder, TRITON, 'versions = "all"').versions == "all"


@pytest.mark.parametrize(
    ("pbtxt", "says"),
    [
        ('name: "other"', "names the model 'other'"),
        ('platform: "tensorrt_plan"', "only ONNX models"),
        ('backend: "python"', "only ONNX models"),
        ("platform: { }  backend: {x: 1}", "only ONNX models"),
        ("name: { a: 1 }", "names the model"),
        ("version_policy: all", "not a message"),
        ("version_policy: { latest { num_versions: 3 } }", "not the latest few"),
        ("version_policy: { specific: { versions: [one] } }", "versions"),
        ("version_policy: { specific: { versions: [] } }", "versions"),
        ("version_policy: { specific: 1 }", "versions"),
        ("version_policy: { specific: { versions: [{}] } }", "versions"),
        ("a: {", "unclosed brace"),
        ("a: [1, 2", "unclosed bracket"),
        ("a: }", "is no value"),
        ("a: ]", "is no value"),
        ("}", "unexpected '}'"),
        ("a {} }", "unexpected '}'"),
        ("a:", "ends in the middle"),
        ('a: "open', "unexpected"),
        ("a: <b: 1>", "unexpected"),
        ("[x]: 1", "no name of a field"),
        ('"a": 1', "no name of a field"),
        ("{}", "no name of a field"),
        ("a {" * 1_000 + "}" * 1_000, "nests too deeply"),
        ("a: " + "[" * 100_000, "nests too deeply"),
        ("a " * (MAX_CONFIG_BYTES // 2 + 1), "is larger than"),
    ],
)
def test_what_is_wrong_in_a_config_pbtxt_is_named(folder: Path, pbtxt: str, says: str) -> None:
    text = refused(folder, pbtxt)
    assert text.startswith("resnet/config.pbtxt")
    assert says in text


def test_empty_lists_where_one_value_belongs_say_nothing(folder: Path) -> None:
    assert config(folder, "name: [] platform: [] backend: [] version_policy: []") == ModelConfig()


@given(st.text(alphabet="{}[]:,;\"'\\# \nab1-", max_size=200))
def test_any_text_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(ModelRejected):  # and nothing else is raised
        assert all(isinstance(values, list) for values in parse_pbtxt(text, "here").values())


@pytest.mark.parametrize("evil", ['"' + "\\a" * 500_000, "a" * 1_000_000, " " * 1_000_000 + "\x00"])
def test_a_large_wrong_text_is_refused_in_time_proportional_to_it(evil: str) -> None:
    with pytest.raises(ModelRejected):
        parse_pbtxt(evil, "here")
