"""Every subject of the mesh on the bus, version 1, written and read back.

Names of sites, nodes and models become tokens: all but letters, digits, ``_``, ``-`` and ``~`` is percent-encoded as
UTF-8 (``resnet50-v1.5`` is ``resnet50-v1%2E5``), so that no name can hold a separator, a wildcard or a space, and two
names never share a token.

Not here: what travels on a subject (``messages``, ``hop_bus``), reply inboxes (``nats_bus``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args
from urllib.parse import quote, unquote

from mesh.errors import ProtocolError

ROOT = "mesh.v1"

CLOUD_SITE = "cloud"
"""Site token under which nodes of tier ``cloud`` publish their reports a second time, whatever their own site is:
an agent that hears its own site and this one hears every node it may use, and pays for no other."""

ROUTER_QUEUE = "router"
"""Queue group in which routers take :func:`model_infer`."""

NodeKind = Literal["infer", "report", "event", "cancel", "control", "step"]


@dataclass(frozen=True, slots=True)
class NodeSubject:
    """What a subject of one node says: ``mesh.v1.<site>.node.<node>.<kind>``."""

    site: str
    node: str
    kind: NodeKind


def token(name: str) -> str:
    """Encode a name as one subject token. Raises ``ValueError`` for the empty name, which no token can stand for."""
    if not name:
        raise ValueError("a subject token needs a name, got an empty one")
    return quote(name, safe="").replace(".", "%2E")


def name(encoded: str) -> str:
    """Decode a token. Raises :class:`ProtocolError` if :func:`token` never writes it: aliases are not names."""
    try:
        decoded = unquote(encoded, errors="strict")
        if token(decoded) == encoded:
            return decoded
    except ValueError:
        pass  # the empty token, or bytes that are not UTF-8: said below
    raise ProtocolError("a subject holds a token that is not an encoded name")


def infer(site: str, node: str) -> str:
    """Inference door of one node (request-reply)."""
    return _node(site, node, "infer")


def report(site: str, node: str) -> str:
    """Presence and load of one node."""
    return _node(site, node, "report")


def event(site: str, node: str) -> str:
    """State changes of one node."""
    return _node(site, node, "event")


def cancel(site: str, node: str) -> str:
    """Callers may cancel here what they asked of the node."""
    return _node(site, node, "cancel")


def left() -> str:
    """Applications say here that they left; whichever router answers them (:func:`model_infer`) calls it off."""
    return f"{ROOT}.left"


def control(site: str, node: str) -> str:
    """Operators and routers may drain, load and reload the node here."""
    return _node(site, node, "control")


def stream(node: str) -> str:
    """Where the parts of a stream are fetched that a node answers (``bus_streams``)."""
    return f"{ROOT}.stream.{token(node)}"


def sequence_begun() -> str:
    """Where a door says that a sequence began with it (``sequence_doors``)."""
    return f"{ROOT}.sequence.begun"


def sequence_held() -> str:
    """Where a door asks all others which of them holds a sequence (``sequence_doors``)."""
    return f"{ROOT}.sequence.held"


def step(site: str, node: str) -> str:
    """Where the door of a node takes steps of sequences that it holds, and another door was asked for."""
    return _node(site, node, "step")


def model_infer(model: str) -> str:
    """Where applications ask the routers for a model (queue group :data:`ROUTER_QUEUE`)."""
    return f"{ROOT}.infer.{token(model)}"


def all_reports(site: str = "*") -> str:
    """Pattern over the reports of every node of ``site``; ``*`` is every site."""
    return _node(site, "*", "report")


def all_events(site: str = "*") -> str:
    """Pattern over the events of every node of ``site``; ``*`` is every site."""
    return _node(site, "*", "event")


def all_models() -> str:
    """Pattern over :func:`model_infer` of every model."""
    return f"{ROOT}.infer.*"


def parse_node(subject: str) -> NodeSubject:
    """Read a subject of one node back. Raises :class:`ProtocolError` for any other subject."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[:2] != ROOT.split(".") or parts[3] != "node" or parts[5] not in get_args(NodeKind):
        raise ProtocolError("not a subject of a node of the mesh")
    return NodeSubject(name(parts[2]), name(parts[4]), cast(NodeKind, parts[5]))


def parse_model(subject: str) -> str:
    """Model of a :func:`model_infer` subject. Raises :class:`ProtocolError` for any other subject."""
    head, _, last = subject.rpartition(".")
    if head != f"{ROOT}.infer":
        raise ProtocolError("not a subject that asks for a model")
    return name(last)


def _node(site: str, node: str, kind: NodeKind) -> str:
    return f"{ROOT}.{_or_any(site)}.node.{_or_any(node)}.{kind}"


def _or_any(name_or_star: str) -> str:
    return "*" if name_or_star == "*" else token(name_or_star)
