"""MQTT topics of the mesh and what nats-server makes of them as subjects.

In: ``mesh/<site>/infer/<model>[/<id>]``. Out: ``mesh/<site>/result/<model>[/<id>]``, or a topic of the caller's below
``mesh/<site>/result``, for nobody may make the mesh publish anywhere else. The server turns ``/`` into ``.``, and a
``.`` inside a level into ``//``. Pure. Not here: messages (``mqtt_door``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mesh.errors import InvalidRequest
from mesh.oip.wire import quoted
from mesh.values import NAME_PATTERN

QUEUE = "mqtt"
"""One node of those that listen takes each message."""
MAX_TOPIC = 512
"""Characters. A server ends the connection of whoever names a subject near 4096 bytes; MQTT's own limit is 65535."""
MAX_LEVELS = 16
_NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_LEVEL = re.compile(rf"[^\s+#*>$\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_NONCHARACTERS}/]+")
"""Beside what MQTT forbids, the characters for which a client may end its connection."""


class Asked(NamedTuple):
    """What the topic of a request says."""

    site: str
    model: str
    id: str = ""

    @property
    def result(self) -> str:
        """The subject of its answers."""
        return _subject("mesh", self.site, "result", self.model, *([self.id] if self.id else []))


def requests(site: str) -> str:
    """Pattern over the subjects of all requests of ``site``. Never over all sites: that would hold ``mesh.v1.infer``,
    where applications ask the routers."""
    return f"mesh.{_encoded(site)}.infer.>"


def read(subject: str) -> Asked:
    """Raises ``InvalidRequest`` for a topic that asks for nothing."""
    levels = [level.replace("//", ".") for level in subject.split(".")]
    if len("/".join(levels)) > MAX_TOPIC:
        raise InvalidRequest(f"the topic has more than {MAX_TOPIC} characters")
    if not 4 <= len(levels) <= 5 or levels[0] != "mesh" or levels[2] != "infer":
        raise InvalidRequest("requests go to mesh/<site>/infer/<model> or mesh/<site>/infer/<model>/<id>")
    for level in levels[1:]:
        _check_level(level)
    if NAME_PATTERN.fullmatch(levels[3]) is None:
        raise InvalidRequest(f"{quoted(levels[3])} is no name of a model")
    return Asked(levels[1], levels[3], *levels[4:])


def errors(subject: str) -> str:
    """Where to say that the topic of a request is wrong: as near to it as can be told."""
    levels = subject.split(".")
    site = levels[1].replace("//", ".") if len(levels) > 1 else ""
    return _subject("mesh", site if _LEVEL.fullmatch(site) else "unknown", "result", "error")


def chosen(topic: object, site: str) -> str:
    """The subject of a topic that a request wants its answers at. Raises ``InvalidRequest`` for any outside."""
    if not isinstance(topic, str) or len(topic) > MAX_TOPIC:
        raise InvalidRequest(f"the topic for the results must be a text of at most {MAX_TOPIC} characters")
    levels = topic.split("/")
    if levels[:3] != ["mesh", site, "result"] or not 4 <= len(levels) <= MAX_LEVELS:
        raise InvalidRequest(f"results are published below mesh/{site}/result only, not at {quoted(topic)}")
    for level in levels:
        _check_level(level)
    return _subject(*levels)


def _check_level(level: str) -> None:
    if _LEVEL.fullmatch(level) is None:
        raise InvalidRequest(
            f"{quoted(level)} cannot be a level of a topic: it is empty, or has a wildcard or space in it"
        )


def _subject(*levels: str) -> str:
    return ".".join(map(_encoded, levels))


def _encoded(level: str) -> str:
    return level.replace(".", "//")
