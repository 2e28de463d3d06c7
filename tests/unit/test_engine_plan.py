"""Building a plan over the fake, for every version it stands in for: what is asked of TensorRT, and what is refused.

Not here: the process around it (``integration/test_engine_build``), the real builder (``integration/test_engine_rtx``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import helper

from hardware.backend import EngineOptions, ShapeRange
from hardware.engine_plan import Cancelled, Ticker, build_plan
from hardware.engine_progress import Progress
from hardware.errors import BackendUnavailable, EngineNotBuilt
from hardware.fakes import trt_build, trt_types
from hardware.fakes.trt_network import OnnxParser
from hardware.timing_cache import TimingCache
from tests import onnx_models
from tests.engine_requests import rows

VERSIONS = tuple(trt_types.VERSIONS)
NAMES = json.loads((Path(__file__).parent.parent / "data" / "tensorrt_api_names.json").read_text(encoding="utf-8"))
WITH_FLAGS = tuple(version for version in VERSIONS if version.startswith("10."))


def fake(version: str = "10.13", **changed: Any) -> Any:
    return SimpleNamespace(**(trt_build.names(trt_types.VERSIONS[version]) | changed))


@pytest.fixture
def timings(tmp_path: Path) -> TimingCache:
    return TimingCache(tmp_path, "10.13.3.9", "Orin", bytes(32))


def ignore(progress: Progress) -> None:
    """Nobody is told."""


def build(
    trt: Any,
    model: bytes,
    options: EngineOptions,
    timings: TimingCache,
    *,
    tick: Callable[[Progress], None] = ignore,
    cancelled: Callable[[], bool] = lambda: False,
) -> memoryview:
    return build_plan(trt, model, options, (8, 7), timings, Ticker(tick, cancelled))


def described(plan: memoryview) -> dict[str, Any]:
    assert plan[:8] == trt_build.PLAN_MAGIC
    (length,) = trt_build.PLAN_LENGTH.unpack(plan[8:12])
    document: dict[str, Any] = json.loads(bytes(plan[12 : 12 + length]))
    return document


@pytest.mark.parametrize("version", VERSIONS)
def test_every_public_name_of_the_fake_is_one_of_that_version(version: str) -> None:
    full = trt_types.VERSIONS[version]
    recorded = NAMES[full]
    for name, value in trt_build.names(full).items():
        if name == "__version__":
            continue
        assert name in recorded
        if isinstance(value, type):
            own = [member for base in value.__mro__[:-1] for member in vars(base) if base not in (int, bytes)]
            public = {member for member in own if not member.startswith("_")} - set(dir(int)) - set(dir(bytes))
            assert public <= set(recorded[name]), name


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_has_the_profiles_that_were_asked_for(version: str, timings: TimingCache) -> None:
    both = tuple(
        tuple(ShapeRange(name, (low, 16), (high, 16), (high, 16)) for name in ("INPUT0", "INPUT1"))
        for low, high in ((1, 8), (9, 64))
    )
    plan = described(build(fake(version), onnx_models.simple(), EngineOptions(profiles=both), timings))
    assert plan["version"] == trt_types.VERSIONS[version]
    assert plan["profiles"][1] == {"INPUT0": [[9, 16], [64, 16], [64, 16]], "INPUT1": [[9, 16], [64, 16], [64, 16]]}
    assert plan["inputs"] == [["INPUT0", "INT32", [-1, 16]], ["INPUT1", "INT32", [-1, 16]]]


@pytest.mark.parametrize("version", WITH_FLAGS)
def test_fp16_is_a_flag_up_to_10(version: str, timings: TimingCache) -> None:
    fp16 = build(fake(version), onnx_models.add(), EngineOptions(precision="fp16"), timings)
    fp32 = build(fake(version), onnx_models.add(), EngineOptions(), timings)
    assert (described(fp16)["precision"], described(fp32)["precision"]) == ("fp16", "fp32")


def test_fp16_is_the_models_own_from_11_on(timings: TimingCache) -> None:
    """An FP32 engine where FP16 was asked for is what roboflow/rf-detr#1454 had to repair."""
    options = EngineOptions(precision="fp16", profiles=rows("INPUT", 4))
    with pytest.raises(EngineNotBuilt, match=r"the model must itself be FP16 on this TensorRT \(11\.4"):
        build(fake("11.4"), onnx_models.add(), options, timings)
    plan = build(fake("11.4"), onnx_models.identity("FP16", (-1,)), options, timings)
    assert described(plan)["outputs"] == [["OUTPUT", "HALF", [-1]]]


@pytest.mark.parametrize("name", ["INPUT", "OUTPUT"])
def test_doubles_are_refused_not_narrowed(name: str, timings: TimingCache) -> None:
    double, single = ("FP64", "FP32") if name == "INPUT" else ("FP32", "FP64")
    model = onnx_models.build(
        [helper.make_node("Cast", ["INPUT"], ["OUTPUT"], to=onnx_models.OIP_TO_ONNX[single])],
        [onnx_models.value("INPUT", double, [4])],
        [onnx_models.value("OUTPUT", single, [4])],
    )
    with pytest.raises(EngineNotBuilt, match=f"'{name}' is FP64"):
        build(fake(), model, EngineOptions(), timings)


def test_every_parser_error_is_named_with_node_and_operator(
    timings: TimingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_REFUSE_OP", "Add,Sub")
    with pytest.raises(EngineNotBuilt, match=r"node number 0 \(Add\): INVALID_NODE.*node number 1 \(Sub\)"):
        build(fake(), onnx_models.simple(), EngineOptions(), timings)


def test_a_type_that_tensorrt_has_not_is_refused(timings: TimingCache) -> None:
    with pytest.raises(EngineNotBuilt, match="cannot parse the model: UNSUPPORTED_NODE, Failed to convert"):
        build(fake(), onnx_models.identity("BYTES", (4,)), EngineOptions(), timings)


def test_a_builder_that_gives_up_says_why(timings: TimingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "none")
    with pytest.raises(EngineNotBuilt, match=r"cannot build the model: .*Could not find any implementation"):
        build(fake(), onnx_models.add(), EngineOptions(), timings)


def test_no_builder_means_no_device(timings: TimingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILDER", "null")
    with pytest.raises(BackendUnavailable, match="no usable CUDA device or driver: CUDA initialization failure"):
        build(fake(), onnx_models.add(), EngineOptions(), timings)


@pytest.mark.parametrize(
    ("owner", "name", "answer", "said"),
    [
        (trt_build.IBuilderConfig, "add_optimization_profile", -1, "refuses profile 0"),
        (trt_build.Builder, "create_network", None, "cannot make a network"),
        (trt_build.Builder, "create_builder_config", None, "cannot make a configuration"),
        (trt_build.Builder, "create_optimization_profile", None, "cannot make a profile"),
        (OnnxParser, "parse", False, "cannot parse the model: TensorRT gave no reason"),
        (trt_build.Builder, "build_serialized_network", None, "cannot build the model: TensorRT gave no reason"),
    ],
)
def test_every_refusal_is_noticed(
    owner: type, name: str, answer: Any, said: str, timings: TimingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, lambda *_: answer)
    model, options = onnx_models.identity("FP32", (-1,)), EngineOptions(profiles=rows("INPUT", 4))
    with pytest.raises(EngineNotBuilt, match=said):
        build(fake(), model, options, timings)


def test_a_level_that_is_ignored_in_silence_is_refused(timings: TimingCache) -> None:
    with pytest.raises(EngineNotBuilt, match="no optimisation level 9"):
        build(fake(), onnx_models.add(), EngineOptions(optimization_level=9), timings)


def test_timings_are_kept_from_build_to_build(timings: TimingCache) -> None:
    for builds in (1, 2):
        build(fake(), onnx_models.add(), EngineOptions(), timings)
        assert timings.read() == trt_build.TIMINGS_MAGIC + b'["10.13.3.9", %d]' % builds


@pytest.mark.parametrize("stale", [trt_build.TIMINGS_MAGIC + b'["10.3.0", 7]', b"garbage"])
def test_timings_that_tensorrt_does_not_take_are_begun_afresh(stale: bytes, timings: TimingCache) -> None:
    timings.update(lambda now: stale)
    build(fake(), onnx_models.add(), EngineOptions(), timings)
    assert timings.read() == trt_build.TIMINGS_MAGIC + b'["10.13.3.9", 1]'


def test_timings_of_another_build_meanwhile_are_kept_too(timings: TimingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(progress: Progress) -> None:
        if progress.share and not timings.read():
            timings.update(lambda now: trt_build.TIMINGS_MAGIC + b'["10.13.3.9", 5]')

    build(fake(), onnx_models.add(), EngineOptions(), timings, tick=meanwhile)
    assert timings.read() == trt_build.TIMINGS_MAGIC + b'["10.13.3.9", 6]'


def test_progress_is_told_and_a_build_can_be_stopped_at_any_step(timings: TimingCache) -> None:
    shares: list[float] = []
    build(fake(), onnx_models.add(), EngineOptions(), timings, tick=lambda progress: shares.append(progress.share))
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    for stop in range(len(shares)):
        told: list[float] = []
        with pytest.raises(Cancelled):
            build(
                fake(),
                onnx_models.add(),
                EngineOptions(),
                timings,
                tick=lambda progress, told=told: told.append(progress.share),  # type: ignore[misc]
                cancelled=lambda told=told, stop=stop: len(told) > stop,  # type: ignore[misc]
            )
