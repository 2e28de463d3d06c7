"""The workloads on the real models, in this process; and the parts of them that need no model."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.demo import audio, filetypes, ocr
from mesh.demo.models import missing
from mesh.demo.request import Request, Tensors, Unreadable, distribution, floats, probabilities
from mesh.demo.workloads import Workload, load
from mesh.errors import ConfigError

MODELS = Path(__file__).parents[2] / "models"
NAMES = ("file-kind", "voice", "find-text", "read-text", "upside", "page-turn")
SEEDS = 25


@dataclass(frozen=True)
class Bench:
    """A workload and a session of its model."""

    workload: Workload
    session: Any

    def run(self, request: Request) -> dict[str, Any]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(request.inputs)), strict=True))

    def exchange(self, seed: int) -> Iterator[tuple[Request, dict[str, Any]]]:
        """All requests of one stream, with their outputs."""
        request: Request | None = self.workload.request(np.random.default_rng(seed))
        while request is not None:
            outputs = self.run(request)
            yield request, outputs
            request = request.then(outputs) if request.then else None


@pytest.fixture(scope="module")
def benches() -> dict[str, Bench]:
    absent = missing(MODELS)
    if absent:
        pytest.skip(f"models {', '.join(absent)} are not in {MODELS.name}/: run 'make models'")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return {
        w.name: Bench(w, ort.InferenceSession(MODELS / w.model / "1/model.onnx", options, ["CPUExecutionProvider"]))
        for w in load(MODELS)
    }


@pytest.fixture(params=NAMES)
def bench(request: pytest.FixtureRequest, benches: dict[str, Bench]) -> Bench:
    found: Bench = benches[request.param]
    return found


@pytest.mark.models
def test_every_answer_of_the_model_is_right(bench: Bench) -> None:
    for seed in range(SEEDS):
        for request, outputs in bench.exchange(seed):
            assert request.check(outputs), f"seed {seed}: expected {request.expected}, read {request.read(outputs)}"


@pytest.mark.models
def test_the_session_takes_the_inputs_as_declared(bench: Bench) -> None:
    request = bench.workload.request(np.random.default_rng(0))
    types = {
        np.dtype(np.float32): "tensor(float)",
        np.dtype(np.int32): "tensor(int32)",
        np.dtype(np.int64): "tensor(int64)",
    }
    declared = {i.name: i.type for i in bench.session.get_inputs()}
    assert {name: types[tensor.dtype] for name, tensor in request.inputs.items()} == declared
    assert all(tensor.flags.c_contiguous for tensor in request.inputs.values())


@pytest.mark.models
def test_the_same_seed_makes_the_same_request(bench: Bench) -> None:
    one, other = (bench.workload.request(np.random.default_rng(7)) for _ in range(2))
    assert one.expected == other.expected
    for name, tensor in one.inputs.items():
        np.testing.assert_array_equal(tensor, other.inputs[name])


WRONG: dict[str, Callable[[Any], Any]] = {
    "file-kind": lambda out: np.roll(out, 1, axis=-1),
    "voice": lambda out: 1 - out,
    "find-text": lambda out: np.roll(out, out.shape[2] // 2, axis=2),
    "read-text": lambda out: np.roll(out, 1, axis=-1),
    "upside": lambda out: np.roll(out, 1, axis=-1),
    "page-turn": lambda out: np.roll(out, 1, axis=-1),
}
"""By workload: outputs that are well formed and wrong."""


@pytest.mark.models
def test_a_wrong_answer_is_noticed(bench: Bench) -> None:
    for seed in range(8):
        *_, (request, outputs) = bench.exchange(seed)
        name = next(iter(outputs))
        assert request.check(outputs)
        assert not request.check(outputs | {name: WRONG[bench.workload.name](outputs[name])})


@pytest.mark.models
def test_the_answer_to_another_request_is_noticed(bench: Bench) -> None:
    """Two requests whose answers differ, as when a batch hands out its rows in the wrong order."""
    asked = [list(bench.exchange(seed))[-1] for seed in range(12)]
    first, outputs = asked[0]
    if bench.workload.name == "find-text":
        others = [(r, o) for r, o in asked[1:] if _apart(first, r)]
    else:
        others = [(r, o) for r, o in asked[1:] if r.expected != first.expected]
    assert others
    for request, answer in others:
        assert not request.check(outputs)
        assert not first.check(answer)


def _apart(one: Request, other: Request) -> bool:
    """Whether the lines of two pictures do not touch, judged by their ink."""
    boxes = [ocr.bounding_box(r.inputs[ocr.INPUT][0, 0] < 0) for r in (one, other)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    return ocr.overlap(boxes[0], boxes[1]) == 0


@pytest.mark.models
def test_outputs_that_are_no_answer_are_noticed(bench: Bench) -> None:
    ends = (list(bench.exchange(seed))[-1] for seed in range(20))
    request, outputs = next((r, o) for r, o in ends if r.expected != "silence")
    for name, tensor in outputs.items():
        nan = tensor.copy()
        nan.flat[0] = np.nan
        for bad in (nan, np.zeros_like(tensor), tensor[:0], tensor.astype(np.float64)):
            assert not request.check(outputs | {name: bad}), name
        assert not request.check({k: v for k, v in outputs.items() if k != name})


@pytest.mark.models
def test_every_kind_of_file_is_known_to_the_model(benches: dict[str, Bench]) -> None:
    bench = benches["file-kind"]
    request = filetypes.kind_request((MODELS / "magika/labels.txt").read_text().split())
    seen = {request(np.random.default_rng(seed)).expected for seed in range(200)}
    assert seen == set(filetypes.MAKERS)
    tensors = np.concatenate([filetypes.features(make(np.random.default_rng(3))) for make in filetypes.MAKERS.values()])
    labels = (MODELS / "magika/labels.txt").read_text().split()
    (rows,) = bench.session.run(None, {filetypes.INPUT: tensors})
    assert [labels[i] for i in rows.argmax(axis=1)] == list(filetypes.MAKERS)


@pytest.mark.models
def test_a_stream_carries_its_state(benches: dict[str, Bench]) -> None:
    bench = benches["voice"]
    steps = list(bench.exchange(1))
    assert len(steps) == audio.CHUNKS
    assert {r.expected for r, _ in steps[audio.SETTLE :]} <= {"voice", "silence"}
    for (one, before), (other, _) in pairwise(steps):
        np.testing.assert_array_equal(other.inputs["state"], before["stateN"])
        tail = one.inputs["input"][:, -audio.CONTEXT :]
        np.testing.assert_array_equal(tail, other.inputs["input"][:, : audio.CONTEXT])


def test_labels_that_are_missing_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make models"):
        load(tmp_path)


def test_labels_keep_white_space_and_their_order(tmp_path: Path) -> None:
    for model, labels in (("magika", "zip\npython\n"), ("ocr_rec", "<blank>\na\n\x85\n \n")):
        (tmp_path / model).mkdir()
        (tmp_path / model / "labels.txt").write_bytes(labels.encode())
    read_text = next(w for w in load(tmp_path) if w.name == "read-text").request(np.random.default_rng(0))
    steps = np.zeros((1, ocr.LINE_SIZE[0] // 8, 4), np.float32)
    steps[0, np.arange(24), [1, 1, 0, 1, 3, 2] + [0] * 18] = 1.0
    assert read_text.read({ocr.REC_OUTPUT: steps}) == "aa \x85"


@pytest.mark.parametrize(
    ("best", "text"),
    [([0, 0, 0], ""), ([1, 1, 1], "a"), ([1, 0, 1], "aa"), ([1, 2, 2, 0, 2], "abb"), ([0, 1, 0, 0, 2], "ab")],
)
def test_ctc_merges_repeats_and_drops_blanks(best: list[int], text: str) -> None:
    assert ocr.ctc_text(np.eye(3, dtype=np.float32)[best], ["<blank>", "a", "b"]) == text


def test_boxes() -> None:
    mask = np.zeros((10, 20), bool)
    assert ocr.bounding_box(mask) is None
    mask[2:5, 3:9] = True
    assert ocr.bounding_box(mask) == (3, 2, 9, 5)
    assert ocr.overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert ocr.overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert ocr.overlap((0, 0, 10, 10), (10, 10, 20, 20)) == 0
    assert ocr.unclip((10, 10, 110, 20)) == (3, 3, 117, 27)


def test_file_features_are_both_ends_without_outer_white_space() -> None:
    short = filetypes.features(b"\n\t hello \n")[0]
    assert bytes(short[:6].tolist()) == b"hello "
    assert set(short[7:1024].tolist()) == {256}
    assert bytes(short[-5:].tolist()) == b"hello"
    assert set(short[1024:-8].tolist()) == {256}
    content = b"A" * 3000 + b"Z" * 3000
    long = filetypes.features(content)[0]
    assert long.shape == (2048,)
    assert set(long[:1024].tolist()) == {65}
    assert set(long[1024:].tolist()) == {90}
    spaced = filetypes.features(b" " * 4096 + b"x" * 10)[0]
    assert set(spaced[:1024].tolist()) == {256}, "white space beyond the block hides the start, as in the package"


def test_files_are_what_they_claim() -> None:
    """The standard library reads the generated files back."""
    rng = np.random.default_rng(5)
    ast.parse(filetypes.make_python(rng))
    assert len(json.loads(filetypes.make_json(rng))["items"]) == 15
    assert gzip.decompress(filetypes.make_gzip(rng)).count(b"\n") == 59
    assert zipfile.ZipFile(io.BytesIO(filetypes.make_zip(rng))).testzip() is None


def test_signals_are_within_full_scale() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        voice, noise = audio.speech(rng), audio.background(rng)
        assert voice.shape == noise.shape == (audio.CHUNKS * audio.CHUNK,)
        assert voice.dtype == noise.dtype == np.float32
        assert 0.05 < np.sqrt(np.mean(voice**2)) < 0.4
        assert np.abs(noise).max() < 0.1


def test_a_distribution_adds_up() -> None:
    assert distribution({"p": np.array([[0.25, 0.75]], np.float32)}, "p", (1, 2))[0, 1] == 0.75
    with pytest.raises(Unreadable, match="add up"):
        distribution({"p": np.array([[0.25, 0.25]], np.float32)}, "p", (1, 2))


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"p": np.zeros((1, 3), np.float32)},
        {"p": np.zeros((1, 2), np.float16)},
        {"p": np.array([[np.inf, 0]], np.float32)},
        {"p": np.array([[1.5, 0]], np.float32)},
    ],
)
def test_unreadable_outputs(outputs: Tensors) -> None:
    with pytest.raises(Unreadable):
        probabilities(outputs, "p", (1, 2))
    request = Request({}, "x", lambda out: str(probabilities(out, "p", (1, 2))[0, 0]))
    assert not request.check(outputs)


def test_floats_may_be_any_number() -> None:
    assert floats({"p": np.array([-9.0], np.float32)}, "p", (1,))[0] == -9
