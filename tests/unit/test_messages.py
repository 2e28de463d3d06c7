"""Reports and loads on the wire: there and back, of the next version, and whatever else may arrive."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from mesh.messages import (
    BINS,
    CLASSES,
    MAX_FIGURE,
    MAX_LOAD_CHARS,
    MAX_UPLINK_BYTES,
    Gauges,
    Load,
    decode_report,
    encode_report,
)
from tests.builders import a_load, a_model_load, a_report


def test_a_report_there_and_back() -> None:
    report = a_report(
        models=(a_model_load(in_flight=3), a_model_load("other", state="FAILED")),
        gauges=Gauges(cpu_percent=12.5, temperature_c=61.0),
        wait_ms=7.25,
        queued=((1, (0.0, 2.5)), (16, (4.0,))),
        uplink_bytes=4096,
        hop_key="ab" * 32,
    )
    assert decode_report(encode_report(report)) == report


def test_what_a_later_version_adds_is_ignored() -> None:
    payload = b'{"colour":{"of":["the","box"]},' + encode_report(a_report())[1:]
    assert decode_report(payload) == a_report()


def test_another_version_of_the_mesh_is_named() -> None:
    with pytest.raises(ProtocolError, match="speaks version 2 of the mesh, this node 1"):
        decode_report(encode_report(a_report(v=2)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_report(payload)


def test_a_report_seen_from_one_model() -> None:
    model = msgspec.structs.replace(a_model_load(in_flight=3, service_ms=9.0), row_ms=2.0)
    report = a_report(models=(model,), wait_ms=4.0, queued=((1, (3.0,)),), uplink_bytes=7, seq=8)
    load = report.load("resnet", "1")
    assert (load.work, load.row_ms, load.uplink_bytes) == (report.work, 2.0, 7)
    assert (load.seq, load.in_flight, load.service_ms, load.wait_ms) == (8, 3, 9.0, 4.0)
    assert report.load("resnet", "2").in_flight == 0


figures = st.floats(0, MAX_FIGURE)
queues = st.dictionaries(
    st.integers(1, CLASSES), st.lists(figures, min_size=1, max_size=BINS).map(tuple), max_size=CLASSES
).map(lambda classes: tuple(sorted(classes.items())))
loads = st.builds(
    Load, st.integers(0, 2**53), st.integers(0, 2**53), st.sampled_from(["starting", "ready", "draining"]), figures,
    st.integers(0, 10**6), figures, figures, st.integers(0, MAX_UPLINK_BYTES), queues,
)  # fmt: skip


@given(loads)
def test_a_load_there_and_back(load: Load) -> None:
    text = load.header()
    assert len(text) <= MAX_LOAD_CHARS
    assert text.isascii()
    read = Load.from_header(text)
    times = [(said.wait_ms, said.service_ms, said.row_ms) for said in (load, read)]
    assert times[1] == pytest.approx(times[0], abs=1e-3)
    same = ("incarnation", "seq", "state", "in_flight", "uplink_bytes")
    assert [getattr(read, name) for name in same] == [getattr(load, name) for name in same]
    assert [level for level, _ in read.queued] == [level for level, _ in load.queued]
    for (_, told), (_, bins) in zip(read.queued, load.queued, strict=True):
        assert told == pytest.approx(bins, rel=0.01)


def test_an_idle_load_is_short() -> None:
    assert a_load(seq=7, service_ms=5.0).header() == "1;7;ready;0.000;0;5.000;0.000;0;"


HEAD = "1;2;ready;3;4;5;6;7;"


@pytest.mark.parametrize(
    "text",
    [
        "", ";;;;;", ";;;;;;;;", "1;2;ready;3;4;5", HEAD + ";8", "a" + HEAD, "1;2;ready;3;4.5;5;6;7;",
        *(f"1;2;ready;{wait};4;5;6;7;" for wait in ("nan", "inf", "-1", "1e300", "")),
        *(f"1;2;ready;3;{count};5;6;7;" for count in (-1, 10**12)),
        "1;2;ready;3;4;inf;6;7;", "1;2;ready;3;4;5;-6;7;", "1;2;ready;3;4;5;6;-7;",
        f"1;2;ready;3;4;5;6;{2**60};",
        *(HEAD + queued for queued in (
            "1", "1:", ":1", "x:1", "0:1", "17:1", "-1:1", "1:-1", "1:nan", "1:1e300", "1:1,", "1:1/", "/", "1:1//2:2",
            "1:" + ",".join(["1"] * 10), "/".join(["1:1"] * 17), "1:" + "1" * 3000,
        )),
    ],
)  # fmt: skip
def test_what_is_no_load_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        Load.from_header(text)


@given(st.one_of(st.text(max_size=200), st.text("0123456789;:,./-e nainf", max_size=200)))
def test_any_text_is_a_plausible_load_or_a_protocol_error(text: str) -> None:
    for candidate in (text, HEAD + text):
        try:
            load = Load.from_header(candidate)
        except ProtocolError:
            continue
        assert load.plausible


def test_what_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(ProtocolError, match=f"of {10**6 + len(HEAD)} characters"):
        Load.from_header(HEAD + "1" * 10**6)


@pytest.mark.parametrize(
    "fields",
    [
        {"wait_ms": -1.0},
        {"wait_ms": 1e300},
        {"uplink_bytes": -1},
        {"uplink_bytes": 2**60},
        {"queued": ((0, (1.0,)),)},
        {"queued": ((17, (1.0,)),)},
        {"queued": ((1, (-1.0,)),)},
        {"queued": ((1, (1e300,)),)},
        {"queued": ((1, (1.0,) * 10),)},
        {"queued": ((1, (1.0,)),) * 17},
        {"models": (a_model_load(service_ms=-1.0),)},
        {"models": (a_model_load(in_flight=-1),)},
        {"models": (msgspec.structs.replace(a_model_load(), row_ms=1e12),)},
    ],
)
def test_a_report_whose_figures_cannot_be_true_is_a_protocol_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="cannot be true"):
        decode_report(encode_report(a_report(**fields)))
