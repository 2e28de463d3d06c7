"""Topics are read as written, whatever dots their levels hold; results stay below the results of their site."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import mqtt_topics
from mesh.errors import InvalidRequest
from mesh.mqtt_topics import MAX_LEVELS, MAX_TOPIC, Asked
from mesh.values import NAME_PATTERN

names = st.from_regex(NAME_PATTERN, fullmatch=True)
levels = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="+#*>$/"), min_size=1).filter(
    lambda level: re.search(r"\s", level) is None
)


def subject(topic: str) -> str:
    """What nats-server makes of a topic (its ``mqttTopicToNATSPubSubject``), as measured in ``test_mqtt``."""
    mapped = [level.replace(".", "//") or "/" for level in topic.split("/")]
    return ".".join(mapped)


def topic(subject: str) -> str:
    """What nats-server makes of a subject for its MQTT clients."""
    return "/".join(token.replace("//", ".") for token in subject.split("."))


@given(names, names, levels | st.just(""))
def test_a_request_is_read_as_it_was_asked(site: str, model: str, request_id: str) -> None:
    name = f"mesh/{site}/infer/{model}" + (f"/{request_id}" if request_id else "")
    if len(name) > MAX_TOPIC:
        with pytest.raises(InvalidRequest):
            mqtt_topics.read(subject(name))
        return
    asked = mqtt_topics.read(subject(name))
    assert asked == Asked(site, model, request_id)
    assert topic(asked.result) == name.replace("/infer/", "/result/", 1)


@given(st.lists(levels, min_size=1, max_size=MAX_LEVELS - 3))
def test_a_result_goes_where_it_was_wanted(rest: list[str]) -> None:
    wanted = "/".join(["mesh", "shop.1", "result", *rest])
    if len(wanted) <= MAX_TOPIC:
        assert topic(mqtt_topics.chosen(wanted, "shop.1")) == wanted


@given(st.text() | st.text("mesh/shop.result+#*>$ ").map(lambda rest: f"mesh/shop/result/{rest}"))
def test_a_result_goes_nowhere_else(wanted: str) -> None:
    try:
        chosen = mqtt_topics.chosen(wanted, "shop")
    except InvalidRequest:
        return
    assert chosen.startswith("mesh.shop.result.")
    assert len(chosen.encode()) < 4096  # what a server takes
    assert re.search(r"[\s*>]|\.\.|\.$", chosen) is None


@pytest.mark.parametrize(
    "wanted",
    [
        "", "mesh/shop/result", "mesh/shop/result/", "mesh/shop/result//a", "mesh/shop/result/a/",
        "/mesh/shop/result/a", "mesh/shop/result/+", "mesh/shop/result/a/#", "mesh/shop/result/a+b",
        "mesh/shop/result/*", "mesh/shop/result/>",
        "mesh/shop/result/$SYS", "mesh/shop/result/a b", "mesh/shop/result/a\tb", "mesh/shop/result/a\x00",
        "mesh/shop/result/a\x0bb", "mesh/shop/result/a\x85b", "mesh/shop/result/a\u2028b",
        "mesh/shop/result/a\r\nPUB x 0", "mesh/shop/result/a\x80", "mesh/shop/result/a\x9f", "mesh/shop/result/\ufdd0",
        "mesh/shop/result/\ufffe", "mesh/shop/result/\uffff", "mesh/shop/result/a\U0001ffff",
        "mesh/other/result/a", "mesh/shop/infer/a", "mesh.shop.result.a", "$SYS/a", "mesh/shop/result/../a//b",
        "mesh/shop/result/" + "/".join("a" * MAX_LEVELS), "mesh/shop/result/" + "a" * MAX_TOPIC, None, 5, ["a"], True,
    ],
)  # fmt: skip
def test_topics_that_no_result_goes_to(wanted: object) -> None:
    with pytest.raises(InvalidRequest):
        mqtt_topics.chosen(wanted, "shop")


@pytest.mark.parametrize(
    "asked",
    [
        "mesh/shop/infer", "mesh/shop/infer/", "mesh/shop/infer//7", "mesh/shop/infer/add/", "mesh/shop/infer/add/7/8",
        "mesh/shop/infer/*", "mesh/shop/infer/>", "mesh/shop/infer/a*", "mesh/shop/infer/add/*", "mesh/shop/infer/-add",
        "mesh/shop/infer/.add", "mesh/shop/infer/a\x0bb", "mesh/shop/infer/add/a\x0bb", "mesh/shop/infer/add/a\x1fb",
        "mesh/shop/infer/add/\u2028", "mesh/shop/infer/ä", "mesh/shop/infer/add/$7", "mesh//infer/add",
        "mesh/s/result/a",
        "other/shop/infer/add", "mesh/shop/infer/" + "a" * 129, "mesh/shop/infer/add/" + "x" * MAX_TOPIC,
        "mesh/shop/infer/add/" + "." * MAX_TOPIC,
    ],
)  # fmt: skip
def test_topics_that_ask_for_nothing(asked: str) -> None:
    with pytest.raises(InvalidRequest):
        mqtt_topics.read(subject(asked))


@given(st.text())
def test_any_subject_is_read_or_refused_and_its_error_has_a_place(anything: str) -> None:
    try:
        assert len(mqtt_topics.read(f"mesh.shop.infer.{anything}").result) < 4096
    except InvalidRequest:
        assert mqtt_topics.errors(f"mesh.shop.infer.{anything}") == "mesh.shop.result.error"


def test_errors_of_topics_have_a_place_at_their_site() -> None:
    assert mqtt_topics.errors(subject("mesh/shop.1/infer/a/b/c")) == subject("mesh/shop.1/result/error")
    assert mqtt_topics.errors(subject("mesh//infer/a")) == "mesh.unknown.result.error"
    assert mqtt_topics.errors("mesh") == "mesh.unknown.result.error"


def test_the_pattern_of_a_site() -> None:
    assert mqtt_topics.requests("shop") == "mesh.shop.infer.>"
    assert mqtt_topics.requests("shop.1") == "mesh.shop//1.infer.>"
