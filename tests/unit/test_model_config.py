"""What is declared about a model: model.toml, and Triton's config.pbtxt as found in the wild or made by an enemy."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.instance import Instance
from edge.model_config import MAX_CONFIG_BYTES, BatchingConfig, Latest, ModelConfig, WarmupInput, read_config
from edge.pbtxt import parse_pbtxt
from edge.repository import Repository
from hardware.backend import ShapeRange, TensorInfo
from mesh.declarations import Cascade
from mesh.errors import ModelRejected
from mesh.pins import STAYS

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
    backends = ["tensorrt", "onnxruntime-cuda", "onnxruntime-cpu"]
    versions = [1, 2]
    deadline_ms = 250
    priority = 2
    instances = 3
    precision = "fp16"
    cuda_graphs = true
    [batching]
    max_rows = 16
    delay_ms = 1.5
    [[profiles]]
    X = { min = [1, 3, 224, 224], opt = [4, 3, 224, 224], max = [16, 3, 224, 224] }
    T = { min = [1], opt = [4], max = [16] }
    [warmup]
    X = { shape = [1, 3, 224, 224], value = 0.5 }
    T = { shape = [1], value = "text" }
    """
    found = config(folder, toml=toml)
    assert found.chain(("onnxruntime-cpu",)) == ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
    assert (found.versions, found.deadline_ms, found.priority, found.instances) == ((1, 2), 250.0, 2, 3)
    assert (found.precision, found.cuda_graphs) == ("fp16", True)
    assert found.batching == BatchingConfig(max_rows=16, delay_ms=1.5)
    (profile,) = found.engine_profiles()
    assert profile[0] == ShapeRange("T", (1,), (4,), (16,))
    assert profile[1].maximum == (16, 3, 224, 224)
    assert found.warmup["X"] == WarmupInput(shape=(1, 3, 224, 224), value=0.5)
    assert found.warmup["T"].value == "text"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("versions = ", "is not TOML"),
        ("batch = 3", "batch: Extra inputs"),
        ('labels = ["cat"]', "labels: Input should be a valid dictionary"),
        ("[labels]\nY = 3", "labels.Y: Value error, labels are a list of texts, or the name of a file"),
        ('[labels]\nY = { names = ["a"] }', "labels.Y: Value error, labels are a list of texts, or the name of a file"),
        ("[labels]\nY = []", "labels.Y.names: Tuple should have at least 1 item"),
        ('[labels]\nY = ["a", 3]', "labels.Y.names.1: Input should be a valid string"),
        ('[labels]\nY = ["a", "b\\nc"]', "labels.Y: Value error, label 1 has a control character"),
        ('[labels]\nY = "labels.txt"', "labels.Y: Value error, resnet has no regular file 'labels.txt'"),
        ('[labels]\nY = ".."', "only its name is given"),
        ('[labels]\nY = "../other/labels.txt"', "only its name is given"),
        ('[labels]\nY = "/etc/passwd"', "only its name is given"),
        ('backends = ["pytorch"]', "backends."),
        ('backend = "onnxruntime-cuda"', 'as in backends = ["onnxruntime-cuda"'),
        ("instances = 0", "instances"),
        ("instances = 65", "instances"),
        ("priority = -1", "priority"),
        ('precision = "int8"', "precision"),
        ("[batching]\nmax_rows = -1", "batching.max_rows"),
        ('[routing]\nstay = "country"', "routing.stay: Input should be '', 'node', 'site' or 'region'"),
        ("[routing]\nstay = true", "routing.stay: Input should be '', 'node', 'site' or 'region'"),
        ('[routing]\nregion = "north"', "routing.region: Extra inputs"),
        ("[batching]\nwindow_ms = 1", "batching.window_ms"),
        ("[[profiles]]\nX = { min = [2], opt = [1], max = [3] }", "not in this order"),
        ("[[profiles]]\nX = { min = [1], opt = [1, 1], max = [3] }", "different numbers"),
        ("[[profiles]]\nX = { min = [1], opt = [1] }", "profiles.0.X.max"),
        ("versions = { latest = 0 }", "versions"),
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
    (folder / "model.toml").write_bytes(b'backends = ["\xff"]')
    assert refused(folder) == "resnet/model.toml is not UTF-8 text"
    (folder / "model.toml").unlink()
    (folder / "model.toml").symlink_to("/proc/self/mem")  # a regular file whose reading fails
    assert "resnet/model.toml cannot be read" in refused(folder)


def test_nothing_declared_leaves_the_backends_to_the_agent(folder: Path) -> None:
    assert config(folder).chain(("onnxruntime-cuda",)) == ("onnxruntime-cuda",)
    assert config(folder, toml="versions = { latest = 2 }").versions == Latest(latest=2)


def test_a_config_of_triton_is_understood(folder: Path) -> None:
    names = 'labels \\" {.txt'
    (folder / names).write_text("cat\ndog\n")
    found = config(folder, TRITON)
    assert (found.labels["fc6_1"].names, found.label_files) == (("cat", "dog"), (names,))
    assert found.versions == (1, 3)
    assert found.batching == BatchingConfig(max_rows=128, delay_ms=0.1)
    assert found.instances == 3
    assert (found.backends, found.precision) == (("tensorrt", "onnxruntime-cuda"), "fp16")
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
        ("version_policy: { latest { num_versions: 3 } }", Latest(latest=3)),
    ],
)
def test_the_version_policy_of_triton(folder: Path, pbtxt: str, versions: object) -> None:
    assert config(folder, pbtxt).versions == versions


@pytest.mark.parametrize(
    ("pbtxt", "batching"),
    [
        ("max_batch_size: 0", BatchingConfig(max_rows=1)),
        ("max_batch_size: 8", BatchingConfig(max_rows=8)),
        ("dynamic_batching {}", BatchingConfig()),
        ("dynamic_batching { max_queue_delay_microseconds: 500 }", BatchingConfig(delay_ms=0.5)),
    ],
)
def test_the_batching_of_triton(folder: Path, pbtxt: str, batching: BatchingConfig) -> None:
    assert config(folder, pbtxt).batching == batching


@pytest.mark.parametrize(
    ("pbtxt", "named"),
    [
        (
            "dynamic_batching { preferred_batch_size: [4] default_queue_policy { timeout_action: REJECT } }",
            "dynamic_batching.default_queue_policy, dynamic_batching.preferred_batch_size",
        ),
        ("instance_group [ { count: 1 kind: KIND_CPU }, { gpus: [1] } ]", "instance_group.gpus, instance_group.kind"),
        ('response_cache { enable: true } model_warmup [ { name: "a" } ]', "model_warmup, response_cache"),
        ("optimization { cuda { graphs: true } }", "optimization.cuda"),
        ('model_transaction_policy { decoupled: false } input { name: "x" } parameters {}', "parameters"),
    ],
)
def test_what_of_triton_only_tunes_is_ignored_by_name(
    folder: Path, caplog: pytest.LogCaptureFixture, pbtxt: str, named: str
) -> None:
    with caplog.at_level("INFO"):
        config(folder, pbtxt)
    (record,) = caplog.records
    assert record.getMessage() == (f"resnet/config.pbtxt: these fields have no meaning here and are ignored: {named}")


def test_what_of_triton_is_understood_is_not_called_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        config(folder, 'name: "resnet" max_batch_size: 4 instance_group { name: "a" count: 2 } input { name: "x" }')
    assert caplog.records == []


def test_the_model_toml_wins(folder: Path) -> None:
    (folder / 'labels \\" {.txt').write_text("cat")
    assert config(folder, TRITON, 'versions = "all"').versions == "all"


@pytest.mark.parametrize(
    ("pbtxt", "says"),
    [
        ('name: "other"', "names the model 'other'"),
        ('platform: "tensorrt_plan"', "only ONNX models"),
        ('backend: "pytorch"', "only ONNX models"),
        ("platform: { }  backend: {x: 1}", "only ONNX models"),
        ("name: { a: 1 }", "names the model"),
        ("version_policy: all", "not a message"),
        ("version_policy: { latest { num_versions: few } }", "versions"),
        ("version_policy: { latest { num_versions: 0 } }", "versions"),
        ("max_batch_size: many", "batching.max_rows"),
        ("dynamic_batching: 1", "not a message"),
        ("dynamic_batching { max_queue_delay_microseconds: soon }", "no number"),
        ("dynamic_batching { max_queue_delay_microseconds: nan }", "no number"),
        ("dynamic_batching { default_priority_level: high }", "priority"),
        ("instance_group { count: {} }", "no number"),
        ("instance_group { count: 1e9 }", "instances"),
        ("instance_group: [ 1 ]", "not a message"),
        ("optimization { execution_accelerators: 1 }", "not a message"),
        ("version_policy: { specific: { versions: [one] } }", "versions"),
        ("version_policy: { specific: { versions: [] } }", "versions"),
        ("version_policy: { specific: 1 }", "versions"),
        ("version_policy: { specific: { versions: [{}] } }", "versions"),
        ('ensemble_scheduling { step [ { model_name: "a" } ] }', "ensemble_scheduling: it is an ensemble"),
        ("sequence_batching { max_sequence_idle_microseconds: soon }", "no number"),
        ("sequence_batching: 1", "not a message"),
        ('sequence_batching { control_input { name: "a" control { kind: NOTHING } } }', "there is no control"),
        ('sequence_batching { state { initial_state { data_file: "a" } } }', "not read from a file"),
        ("model_transaction_policy { decoupled: true }", "is decoupled"),
        ("model_transaction_policy { decoupled: 1 }", "is decoupled"),
        ("model_transaction_policy: 1", "not a message"),
        ("batch_input [ { kind: BATCH_ELEMENT_COUNT } ]", "inputs that Triton makes"),
        ("batch_output [ {} ]", "outputs that Triton takes apart"),
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


def test_a_cascade_is_declared_in_full_or_by_what_it_needs(folder: Path) -> None:
    least = config(folder, toml='[cascade]\nnext = "large"\noutput = "p"')
    assert least.declared_cascade == Cascade("large", "p", 0.8, audit=0.02)
    full = config(
        folder,
        toml='[cascade]\nnext = "large"\nnext_version = 3\noutput = "p"\nconfidence = "margin"\nsoftmax = true\n'
        "threshold = 0.7\ntarget = 0.95\naudit = 0.1",
    )
    assert full.declared_cascade == Cascade("large", "p", 0.7, "margin", True, 0.95, 0.1, "3")
    assert full == config(folder)
    assert config(folder, toml="").declared_cascade is None


@pytest.mark.parametrize(
    ("toml", "what"),
    [
        ('next = "resnet"\noutput = "p"', "cascade.next: 'resnet' is the model itself"),
        ('next = "../x"\noutput = "p"', "cascade.next: String should match pattern"),
        ('output = "p"', "cascade.next: Field required"),
        ('next = "large"', "cascade.output: Field required"),
        ('next = "large"\noutput = ""', "cascade.output: String should have at least 1 character"),
        ('next = "large"\noutput = "p"\nconfidence = "mean"', "cascade.confidence: Input should be 'max', 'margin' or"),
        ('next = "large"\noutput = "p"\nthreshold = 1.5', "cascade.threshold: Input should be less than or equal to 1"),
        ('next = "large"\noutput = "p"\nthreshold = nan', "cascade.threshold: Input should be"),
        ('next = "large"\noutput = "p"\ntarget = 1.0', "cascade.target: Input should be less than 1"),
        ('next = "large"\noutput = "p"\naudit = -0.1', "cascade.audit: Input should be greater than or equal to 0"),
        ('next = "large"\noutput = "p"\ntarget = 0.9\naudit = 0.0', "cascade: Value error, target needs audits"),
        ('next = "large"\noutput = "p"\nnext_version = 0', "cascade.next_version: Input should be greater than 0"),
        ('next = "large"\noutput = "p"\nthreshhold = 0.9', "cascade.threshhold: Extra inputs are not permitted"),
    ],
)
def test_a_cascade_that_cannot_be_is_named(folder: Path, toml: str, what: str) -> None:
    with pytest.raises(ModelRejected) as refused:
        config(folder, toml=f"[cascade]\n{toml}")
    assert f"resnet/model.toml: {what}" in refused.value.text


def test_a_cascade_needs_an_output_that_tells_confidence(folder: Path) -> None:
    cascade = config(folder, toml='[cascade]\nnext = "large"\noutput = "p"').cascade
    assert cascade is not None
    label, p = TensorInfo("label", "INT64", (-1,)), TensorInfo("p", "FP32", (-1, 3))
    assert cascade.why_unfit((label, p)) == ""
    assert cascade.why_unfit((label,)) == "cascade.output: the model has no output 'p', it has ['label']"
    assert "output 'p' is INT64, confidence" in cascade.why_unfit((TensorInfo("p", "INT64", (-1, 3)),))


@pytest.mark.parametrize(("toml", "stay"), [("", ""), *[(f'[routing]\nstay = "{s}"', s) for s in STAYS]])
def test_where_requests_stay_is_told_in_reports(folder: Path, toml: str, stay: str) -> None:
    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_bytes(b"model")
    (folder / "model.toml").write_text(toml)
    (stored,) = Repository(folder.parent, 1 << 20).scan()["resnet"]
    assert stored.rejected == ""
    assert Instance.of(stored, ("onnxruntime-cpu",)).report(1.0, 1.0).stay == stay
