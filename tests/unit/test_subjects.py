"""Names become tokens and come back; no name reaches over its token; subjects read back as written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import subjects
from mesh.errors import ProtocolError
from mesh.values import NAME_PATTERN

names = st.from_regex(NAME_PATTERN, fullmatch=True)
any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(names | any_text)
def test_every_name_comes_back(name: str) -> None:
    assert subjects.name(subjects.token(name)) == name


@given(names | any_text)
def test_no_special_character_survives(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_~%-]+", subjects.token(name))


@given(any_text, any_text)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (subjects.token(one) == subjects.token(other)) == (one == other)


def test_plain_names_stay_readable() -> None:
    assert subjects.token("jetson-07_b") == "jetson-07_b"
    assert subjects.token("resnet50-v1.5") == "resnet50-v1%2E5"


def test_the_subjects_of_the_design() -> None:
    assert subjects.infer("shop.1", "box") == "mesh.v1.shop%2E1.node.box.infer"
    assert subjects.report("s", "n") == "mesh.v1.s.node.n.report"
    assert subjects.event("s", "n") == "mesh.v1.s.node.n.event"
    assert subjects.cancel("s", "n") == "mesh.v1.s.node.n.cancel"
    assert subjects.control("s", "n") == "mesh.v1.s.node.n.control"
    assert subjects.model_infer("yolo.v8") == "mesh.v1.infer.yolo%2Ev8"
    assert subjects.all_reports() == "mesh.v1.*.node.*.report"
    assert subjects.all_reports("shop.1") == "mesh.v1.shop%2E1.node.*.report"
    assert subjects.all_events(subjects.CLOUD_SITE) == "mesh.v1.cloud.node.*.event"
    assert subjects.all_models() == "mesh.v1.infer.*"


@given(any_text.filter(lambda n: n != "*"), any_text.filter(lambda n: n != "*"), any_text)
def test_subjects_read_back_as_written(site: str, node: str, model: str) -> None:
    assert subjects.parse_node(subjects.infer(site, node)) == subjects.NodeSubject(site, node, "infer")
    assert subjects.parse_node(subjects.report(site, node)) == subjects.NodeSubject(site, node, "report")
    assert subjects.parse_model(subjects.model_infer(model)) == model


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "mesh.v1.s.node.n",
        "mesh.v1.s.node.n.other",
        "mesh.v2.s.node.n.report",
        "mesh.v1.s.model.n.report",
        "mesh.v1.s.node.n.report.more",
        "mesh.v1..node.n.report",
        "mesh.v1.*.node.n.report",
        "mesh.v1.%73.node.n.report",
        "mesh.v1.%2e.node.n.report",
        "mesh.v1.%FF.node.n.report",
    ],
)
def test_other_subjects_are_not_nodes(subject: str) -> None:
    with pytest.raises(ProtocolError):
        subjects.parse_node(subject)


@pytest.mark.parametrize("subject", ["", "mesh.v1.infer", "mesh.v1.infer.", "mesh.v1.infer.a.b", "mesh.v1.infer.%61"])
def test_other_subjects_are_not_models(subject: str) -> None:
    with pytest.raises(ProtocolError):
        subjects.parse_model(subject)


def test_the_empty_name_has_no_token() -> None:
    with pytest.raises(ValueError, match="empty"):
        subjects.infer("", "node")
