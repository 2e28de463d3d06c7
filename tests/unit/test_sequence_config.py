"""What is declared about state: in ``model.toml``, in Triton's words, and what does not fit a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.model_config import WarmupInput, read_config
from edge.sequence_config import ControlsConfig, SequenceConfig, StateConfig
from hardware.backend import Signature, TensorInfo
from mesh.errors import ModelRejected

TRITON = """
max_batch_size: 8
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  direct { }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
  state [ {
    input_name: "IN" output_name: "OUT" data_type: TYPE_FP32 dims: [ 2, 3 ]
    initial_state: { data_type: TYPE_FP32 dims: [ 2, 3 ] zero_data: true name: "zero" }
  } ]
}
"""
SIGNATURE = Signature(
    (
        TensorInfo("X", "FP32", (-1, 4)),
        TensorInfo("S", "FP32", (-1, 3)),
        TensorInfo("WIDE", "FP32", (2, -1, 3)),
        TensorInfo("FLAG", "INT32", (-1, 1)),
        TensorInfo("ID", "BYTES", (-1, -1)),
        TensorInfo("TEXT", "BYTES", (1,)),
    ),
    (TensorInfo("Y", "FP32", (-1, 4)), TensorInfo("S2", "FP32", (-1, 3)), TensorInfo("N", "INT64", (-1, 3)),
     TensorInfo("T2", "BYTES", (1,)), TensorInfo("WIDE2", "FP32", (2, -1, 3)), TensorInfo("FLAT", "FP32", (3,)),
     TensorInfo("FOUR", "FP32", (-1, 4))),
)  # fmt: skip


def read(folder: Path, *, toml: str = "", pbtxt: str = "") -> SequenceConfig | None:
    folder = folder / "model"
    folder.mkdir(exist_ok=True)
    if toml:
        (folder / "model.toml").write_text(toml)
    if pbtxt:
        (folder / "config.pbtxt").write_text(pbtxt)
    return read_config(folder).sequence


def test_tritons_words_come_to_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, pbtxt=TRITON) == SequenceConfig(
        state=(StateConfig(input="IN", output="OUT", shape=(-1, 2, 3)),),
        controls=ControlsConfig(start="START", end="END", ready="READY", id="CORRID"),
        idle_s=5.0,
    )
    unbatched = read(tmp_path, pbtxt=TRITON.replace("max_batch_size: 8", "").replace("[ 2, 3 ]", "[ 2, -1 ]"))
    assert unbatched is not None
    assert unbatched.state[0].shape is None


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[sequence]\nidle_s = -1", "idle_s"),
        ("[sequence]\nidle_s = inf", "idle_s"),
        ("[sequence]\nmost = -1", "most"),
        ("[sequence]\nforever = true", "forever"),
        ('[[sequence.state]]\ninput = "a"', "output"),
        ('[[sequence.state]]\ninput = "a"\noutput = "b"\nshape = [1, -1]', "only the first dimension may be -1"),
        ('[[sequence.state]]\ninput = "a"\noutput = "b"\nshape = [-2]', "shape"),
        ('[[sequence.state]]\ninput = "a"\noutput = "b"\ninitial = nan', "initial"),
        ('[[sequence.state]]\ninput = "a"\noutput = "b"\n[sequence.controls]\nstart = "a"', "named twice"),
        ('[sequence.controls]\nbegin = "a"', "begin"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(ModelRejected, match=r"model/model\.toml") as refused:
        read(tmp_path, toml=toml)
    assert says in refused.value.text


@pytest.mark.parametrize(
    ("pbtxt", "says"),
    [
        (TRITON.replace("fp32_false_true: [ 0, 1 ]", "fp32_false_true: [ 1, 0 ]"), "given 1 or 0 here"),
        (TRITON.replace("int32_false_true: [ 0, 1 ]", "int32_false_true: [ 0, 2 ]"), "given 1 or 0 here"),
        (TRITON.replace("zero_data: true", 'data_file: "x"'), "not read from a file"),
        (TRITON.replace("CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_MIDDLE"), "no control"),
        (TRITON.replace("dims: [ 2, 3 ]", "dims: [ 2, few ]"), "shape"),
    ],
)
def test_what_triton_would_do_otherwise_is_refused(tmp_path: Path, pbtxt: str, says: str) -> None:
    with pytest.raises(ModelRejected) as refused:
        read(tmp_path, pbtxt=pbtxt)
    assert says in refused.value.text


def a_state(taken: str, given: str, **fields: Any) -> dict[str, Any]:
    return {"state": ({"input": taken, "output": given, **fields},)}


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (a_state("S", "S2"), ""),
        (a_state("S", "S2", shape=(-1, 3)), ""),
        (a_state("S", "S2", shape=(1, 3)), ""),
        (a_state("WIDE", "WIDE2", shape=(2, 1, 3)), ""),
        (a_state("WIDE", "WIDE2"), "needs a declared shape"),
        (a_state("S", "S2", shape=(-1, 4)), "the input takes"),
        (a_state("S", "S2", shape=(3,)), "1 dimensions, the input 2"),
        (a_state("S", "N"), "is INT64, input 'S' takes FP32"),
        (a_state("TEXT", "T2"), "only numbers are kept"),
        (a_state("S", "Z"), "no output 'Z'"),
        (a_state("S", "FLAT"), "output 'FLAT' has shape [3], input 'S' takes [-1, 3]"),
        (a_state("S", "FOUR"), "output 'FOUR' has shape [-1, 4], input 'S' takes [-1, 3]"),
        (a_state("Z", "S2"), "no input 'Z'"),
        ({"controls": {"start": "FLAG", "id": "ID"}}, ""),
        ({"controls": {"end": "ID"}}, "holds no 0 or 1"),
        ({"controls": {"id": "X"}}, "an id is an integer or BYTES"),
        ({"controls": {"ready": "Z"}}, "no input 'Z'"),
    ],
)
def test_a_declaration_fits_the_model_or_says_why_not(declared: dict[str, Any], says: str) -> None:
    why = SequenceConfig.model_validate(declared).why_unfit(SIGNATURE)
    assert says in why
    assert bool(says) == bool(why)


def test_the_warm_up_is_a_first_step_unless_declared(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(
        '[[sequence.state]]\ninput = "S"\noutput = "S2"\ninitial = 5\n[sequence.controls]\nstart = "FLAG"\nid = "ID"\n'
        "[warmup]\nFLAG = { shape = [1, 1], value = 0 }\n"
    )
    assert read_config(tmp_path).warmup_inputs(SIGNATURE) == {
        "S": WarmupInput(shape=(1, 3), value=5.0),
        "FLAG": WarmupInput(shape=(1, 1), value=0.0),
        "ID": WarmupInput(shape=(1, 1), value="1"),
    }
