"""Stateful ONNX models whose every answer tells all that came before, and what those answers must be.

Not here: sending steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.onnx_models import build, value

FACTOR, MODULUS = 31, 1_000_003
FIRST, LAST = 10_000_000, 20_000_000

CHAIN_TOML = """
[sequence]
[[sequence.state]]
input = "SEEN"
output = "SEEN_OUT"
initial = 7
[sequence.controls]
start = "START"
end = "END"
"""


def chain() -> bytes:
    """INT64 [batch, 1]: SEEN_OUT = (SEEN * 31 + INPUT) mod 1,000,003, OUTPUT the same with what START and END add: any
    step that is lost, taken twice or out of order changes all answers behind it."""
    weights = {"factor": FACTOR, "modulus": MODULUS, "first": FIRST, "last": LAST}
    nodes = [
        helper.make_node("Mul", ["SEEN", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "INPUT"], ["added"]),
        helper.make_node("Mod", ["added", "modulus"], ["SEEN_OUT"]),
        helper.make_node("Cast", ["START"], ["start"], to=7),
        helper.make_node("Cast", ["END"], ["end"], to=7),
        helper.make_node("Mul", ["start", "first"], ["of_start"]),
        helper.make_node("Mul", ["end", "last"], ["of_end"]),
        helper.make_node("Add", ["of_start", "of_end"], ["flags"]),
        helper.make_node("Add", ["SEEN_OUT", "flags"], ["OUTPUT"]),
    ]
    dims = [-1, 1]
    return build(
        nodes,
        [
            value("INPUT", "INT64", dims),
            value("SEEN", "INT64", dims),
            value("START", "INT32", dims),
            value("END", "FP32", dims),
        ],
        [value("OUTPUT", "INT64", dims), value("SEEN_OUT", "INT64", dims)],
        weights=[numpy_helper.from_array(np.array(number, np.int64), name) for name, number in weights.items()],
    )


def chained(inputs: Iterable[int], *, ends: int | None = None) -> Iterator[int]:
    """The answers of :func:`chain` to a sequence, of which step number ``ends`` is the last."""
    seen = 7
    for number, given in enumerate(inputs, 1):
        seen = (seen * FACTOR + given) % MODULUS
        yield seen + FIRST * (number == 1) + LAST * (number == ends)


def named(datatype: str) -> bytes:
    """FP32 X [batch, 1] back as Y; the ``id`` of the sequence, of ``datatype`` [1], comes back as ID."""
    return build(
        [helper.make_node("Identity", ["X"], ["Y"]), helper.make_node("Identity", ["CORRID"], ["ID"])],
        [value("X", "FP32", [-1, 1]), value("CORRID", datatype, [1])],
        [value("Y", "FP32", [-1, 1]), value("ID", datatype, [1])],
    )


def head(number: int, sequence: int | str = 1, **parameters: Any) -> dict[str, Any]:
    """The JSON of a request to :func:`chain`."""
    given = {"name": "INPUT", "datatype": "INT64", "shape": [1, 1], "data": [number]}
    return {"inputs": [given], "parameters": {"sequence_id": sequence, **parameters}}
