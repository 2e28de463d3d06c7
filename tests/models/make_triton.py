"""Writes ``tests/models/triton``: equivalents of the models that Triton's own client examples ask for.

Names, tensors and what they compute are those the examples expect; everything is made here with ``onnx``, but for the
decoupled one, which is a Python step. ``python -m tests.models.make_triton`` writes them anew. Not here: who runs them
(``tests.interop``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnx import TensorProto, helper

from tests.onnx_models import build, save, value

FOLDER = Path(__file__).parent / "triton"
START, END, ID = "START", "END", "CORRID"


def add_sub(datatype: str, *, element: int | None = None) -> bytes:
    """OUTPUT0 is INPUT0 + INPUT1, OUTPUT1 their difference, rows of 16; BYTES are decimal numbers, cut to INT32."""
    inputs = [value(name, datatype, (-1, 16)) for name in ("INPUT0", "INPUT1")]
    outputs = [value(name, datatype, (-1, 16)) for name in ("OUTPUT0", "OUTPUT1")]
    if datatype != "BYTES":
        nodes = [helper.make_node(op, ["INPUT0", "INPUT1"], [f"OUTPUT{n}"]) for n, op in enumerate(("Add", "Sub"))]
        return build(nodes, inputs, outputs)
    nodes = [helper.make_node("Cast", [f"INPUT{n}"], [f"number{n}"], to=TensorProto.INT32) for n in (0, 1)]
    for n, op in enumerate(("Add", "Sub")):
        nodes.append(helper.make_node(op, ["number0", "number1"], [f"result{n}"]))
        nodes.append(helper.make_node("Cast", [f"result{n}"], [f"OUTPUT{n}"], to=TensorProto.STRING))
    return build(nodes, inputs, outputs)


def identity(datatype: str = "BYTES") -> bytes:
    """OUTPUT0 is INPUT0, of any shape of two dimensions."""
    inputs, outputs = [value("INPUT0", datatype, (-1, -1))], [value("OUTPUT0", datatype, (-1, -1))]
    return build([helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])], inputs, outputs)


def sequence() -> bytes:
    """OUTPUT is INPUT, plus 1 at the start of a sequence."""
    inputs = [value(name, "INT32", (-1, 1)) for name in ("INPUT", START)]
    nodes = [helper.make_node("Add", ["INPUT", START], ["OUTPUT"])]
    return build(nodes, inputs, [value("OUTPUT", "INT32", (-1, 1))])


def dyna_sequence() -> bytes:
    """As :func:`sequence`, plus the sequence's id at its end."""
    inputs = [value(name, "INT32", (-1, 1)) for name in ("INPUT", START, END)] + [value(ID, "INT64", (-1, 1))]
    nodes = [
        helper.make_node("Cast", [ID], ["number"], to=TensorProto.INT32),
        helper.make_node("Mul", ["number", END], ["at_the_end"]),
        helper.make_node("Add", ["INPUT", START], ["begun"]),
        helper.make_node("Add", ["begun", "at_the_end"], ["OUTPUT"]),
    ]
    return build(nodes, inputs, [value("OUTPUT", "INT32", (-1, 1))])


def string_dyna_sequence() -> bytes:
    """The sum of all inputs so far, plus the sequence's id, a decimal text, at its end."""
    inputs = [value(name, "INT32", (-1, 1)) for name in ("INPUT", END, "SUM")] + [value(ID, "BYTES", (-1, 1))]
    nodes = [
        helper.make_node("Cast", [ID], ["number"], to=TensorProto.INT32),
        helper.make_node("Mul", ["number", END], ["at_the_end"]),
        helper.make_node("Add", ["INPUT", "SUM"], ["begun"]),
        helper.make_node("Add", ["begun", "at_the_end"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["SUM_OUT"]),
    ]
    return build(nodes, inputs, [value(name, "INT32", (-1, 1)) for name in ("OUTPUT", "SUM_OUT")])


def control(name: str, kind: str) -> str:
    return f'  control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{kind} }} }}\n'


def sequences(*controls: str, state: str = "") -> str:
    fed = f'  state {{ input_name: "{state}" output_name: "{state}_OUT" }}\n' if state else ""
    return "max_batch_size: 8\nsequence_batching {\n" + "".join(controls) + fed + "}\n"


EIGHT = "max_batch_size: 8\n"
MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "simple": (lambda: add_sub("INT32"), EIGHT),
    "simple_int8": (lambda: add_sub("INT8"), EIGHT),
    "simple_string": (lambda: add_sub("BYTES"), EIGHT),
    "simple_identity": (identity, EIGHT),
    "simple_sequence": (sequence, sequences(control(START, "START"))),
    "simple_dyna_sequence": (
        dyna_sequence,
        sequences(control(START, "START"), control(END, "END"), control(ID, "CORRID")),
    ),
}
"""Made of an ONNX file and a ``config.pbtxt``; ``repeat_int32`` is a Python step beside them."""
DYNAMIC: dict[str, tuple[Callable[[], bytes], str]] = {
    "simple_string_dyna_sequence": (
        string_dyna_sequence,
        sequences(control(END, "END"), control(ID, "CORRID"), state="SUM"),
    )
}
"""What the examples ask for with ``--dyna``; not in the repository, because one of them counts what is there."""
GROWTH: dict[str, tuple[Callable[[], bytes], str]] = {"custom_identity_int32": (lambda: identity("INT32"), EIGHT)}
"""What ``memory_growth_test`` asks for, which always asks at localhost:8000 or 8001."""


WARMUP = "\n".join(["[warmup]", *(f'INPUT{n} = {{ shape = [1, 16], value = "1" }}' for n in (0, 1)), ""])
"""``model.toml`` of the one that takes texts which must be numbers."""


def write(models: dict[str, tuple[Callable[[], bytes], str]], folder: Path) -> None:
    for name, (make, config) in models.items():
        save(make(), folder / name / "1" / "model.onnx")
        (folder / name / "config.pbtxt").write_text(config)


def make(folder: Path) -> None:
    """All that is in the repository but the Python step."""
    write(MODELS, folder)
    (folder / "simple_string" / "model.toml").write_text(WARMUP)


if __name__ == "__main__":
    make(FOLDER)
