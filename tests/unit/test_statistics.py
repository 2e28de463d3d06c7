"""Statistics of several nodes added up, their JSON, and what a version's tally comes to."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from mesh.oip.statistics import (
    BatchStatistics,
    Duration,
    InferStatistics,
    MemoryUsage,
    ModelStatistics,
    decode_statistics,
    encode_statistics,
    merged,
)

counts = st.integers(0, 1000)
durations = st.builds(Duration, counts, counts)
statistics = st.builds(
    ModelStatistics,
    st.sampled_from(["a", "b"]),
    st.sampled_from(["1", "2", "10"]),
    counts,
    counts,
    counts,
    st.builds(InferStatistics, *[durations] * 8),
    st.lists(st.builds(BatchStatistics, st.integers(1, 4), *[durations] * 3), unique_by=lambda b: b.batch_size).map(
        lambda batches: tuple(sorted(batches, key=lambda b: b.batch_size))
    ),
    st.lists(st.builds(MemoryUsage, st.sampled_from(["CPU", "GPU"]), st.integers(0, 1), counts),
             unique_by=lambda u: (u.type, u.id)).map(
        lambda usages: tuple(sorted(usages, key=lambda u: (u.type, u.id)))
    ),
)  # fmt: skip
found = st.lists(statistics, max_size=6)


@given(found, found)
def test_it_does_not_matter_in_which_order_nodes_answer(one: list[ModelStatistics], two: list[ModelStatistics]) -> None:
    assert merged(one + two) == merged(two + one) == merged([*merged(one), *merged(two)])


@given(found)
def test_nothing_is_lost_and_each_version_stands_once(each: list[ModelStatistics]) -> None:
    summed = merged(each)
    assert [(m.name, int(m.version)) for m in summed] == sorted({(m.name, int(m.version)) for m in each})
    for count in (
        lambda m: m.inference_count,
        lambda m: m.inference_stats.fail.ns,
        lambda m: sum(b.compute_infer.count for b in m.batch_stats),
        lambda m: sum(u.byte_size for u in m.memory_usage),
    ):
        assert sum(map(count, summed)) == sum(map(count, each))
    for m in summed:
        assert m.last_inference == max(e.last_inference for e in each if (e.name, e.version) == (m.name, m.version))


@given(found)
def test_json_and_back(each: list[ModelStatistics]) -> None:
    assert decode_statistics(encode_statistics(each)) == each


def test_the_json_has_tritons_names() -> None:
    document = msgspec.json.decode(encode_statistics([ModelStatistics("m", "1")]))["model_stats"][0]
    assert document["inference_stats"].keys() == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    assert document["inference_stats"]["queue"] == {"count": 0, "ns": 0}
    assert document.keys() == {
        "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "batch_stats",
        "memory_usage", "response_stats",
    }  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model_stats": [{}]}', b"\xff", b"[" * 5000])
def test_what_is_none_is_said(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not statistics"):
        decode_statistics(body)
