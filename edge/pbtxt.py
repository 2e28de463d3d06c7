"""Protobuf's text format, in which Triton's ``config.pbtxt`` is written.

Not here: what the fields mean (``triton_config``).
"""

from __future__ import annotations

import re
from typing import Any

from mesh.errors import ModelRejected

MAX_DEPTH = 16

Fields = dict[str, list[Any]]
"""Values by field name: texts as written, and ``Fields`` again for messages."""


_TOKEN = re.compile(r"""\s*(?:\#[^\n]*)?(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z0-9_.+-]+)|([{}\[\]:,;]))?""")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PUNCTUATION = frozenset("{}[]:,;")


def parse_pbtxt(text: str, where: str) -> Fields:
    """Protobuf text format to nested ``{field: [values]}``; raises ``ModelRejected`` at the first thing it is not."""
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise ModelRejected(f"{where} is not protobuf text: unexpected {text[at : at + 10]!r}")
        at = match.end()
        if match.lastindex:
            tokens.append(match.group(match.lastindex))
    fields, rest = _message(tokens, 0, where, 0)
    if rest != len(tokens):
        raise ModelRejected(f"{where} is not protobuf text: unexpected {tokens[rest]!r}")
    return fields


def _message(tokens: list[str], at: int, where: str, depth: int) -> tuple[Fields, int]:
    fields: Fields = {}
    while at < len(tokens) and tokens[at] != "}":
        name, at = tokens[at], at + 1
        if not _FIELD.fullmatch(name):
            raise ModelRejected(f"{where} is not protobuf text: {name[:20]!r} is no name of a field")
        if at < len(tokens) and tokens[at] == ":":
            at += 1
        values, at = _values(tokens, at, where, depth)
        fields.setdefault(name, []).extend(values)
        if at < len(tokens) and tokens[at] in ",;":
            at += 1
    return fields, at


def _values(tokens: list[str], at: int, where: str, depth: int) -> tuple[list[Any], int]:
    if at >= len(tokens):
        raise ModelRejected(f"{where} ends in the middle of a field")
    if depth > MAX_DEPTH:
        raise ModelRejected(f"{where} nests too deeply")
    token = tokens[at]
    if token == "{":  # noqa: S105 - a brace
        fields, at = _message(tokens, at + 1, where, depth + 1)
        if at >= len(tokens):
            raise ModelRejected(f"{where} has an unclosed brace")
        return [fields], at + 1
    if token == "[":  # noqa: S105 - a bracket
        values: list[Any] = []
        at += 1
        while at < len(tokens) and tokens[at] != "]":
            more, at = _values(tokens, at, where, depth + 1)
            values += more
            if at < len(tokens) and tokens[at] == ",":
                at += 1
        if at >= len(tokens):
            raise ModelRejected(f"{where} has an unclosed bracket")
        return values, at + 1
    if token[0] in "\"'":
        return [token[1:-1]], at + 1
    if token in _PUNCTUATION:
        raise ModelRejected(f"{where} is not protobuf text: {token!r} is no value")
    return [token], at + 1
