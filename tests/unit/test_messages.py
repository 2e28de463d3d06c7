"""Reports and loads on the wire: there and back, of the next version, and whatever else may arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from mesh.messages import Gauges, Load, decode_report, encode_report
from tests.builders import a_load, a_model_load, a_report


def test_a_report_there_and_back() -> None:
    report = a_report(
        models=(a_model_load(in_flight=3), a_model_load("other", state="FAILED")),
        gauges=Gauges(cpu_percent=12.5, temperature_c=61.0),
        wait_ms=7.25,
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
    report = a_report(models=(a_model_load(in_flight=3, service_ms=9.0),), wait_ms=4.0, seq=8)
    load = report.load("resnet", "1")
    assert (load.seq, load.in_flight, load.service_ms, load.wait_ms) == (8, 3, 9.0, 4.0)
    assert report.load("resnet", "2").in_flight == 0


def test_a_load_there_and_back() -> None:
    load = a_load(incarnation=2**53, seq=9, wait_ms=12.345, in_flight=7, service_ms=0.5)
    assert Load.from_header(load.header()) == load


@pytest.mark.parametrize(
    "text",
    ["", "1;2;ready;3;4", "1;2;ready;3;4;5;6", "a;2;ready;3;4;5", "1;2;ready;nan;4;5", "1;2;ready;3;4;inf", ";;;;;"],
)
def test_what_is_no_load_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        Load.from_header(text)
