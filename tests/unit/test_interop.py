"""What runs other people's scripts: when one has passed, what is run; and that the committed models are those we make.

Not here: the scripts, our own equivalents of them (``tests.system.test_interop``).
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.interop.asked import Asked
from tests.interop.checks import tried
from tests.interop.triton_examples import Example, examples, judged
from tests.models import make_triton

SAYS = 'print("PASS: infer")'
DOOR = Asked("127.0.0.1:1", "127.0.0.1:2")


@pytest.mark.parametrize(
    ("script", "status", "output", "said"),
    [
        (SAYS, 0, "1 + 1 = 2\nPASS: infer\n", None),
        ("print(results)", 0, "1 + 1 = 2\n", None),
        (SAYS, 0, "PASS: infer\nUserWarning: old\n", None),
        (SAYS, 0, "1 + 1 = 2\n", "no PASS, but: 1 + 1 = 2"),
        (SAYS, 0, "did not PASS\n", "no PASS, but: did not PASS"),
        (SAYS, 1, "PASS: infer\nthen it broke\n", "then it broke"),
        (SAYS, -9, "", "it said nothing"),
        ("print(results)", 0, "context creation failed: refused\n", "no PASS, but: context creation failed: refused"),
    ],
)
def test_status_0_alone_is_no_pass(script: str, status: int, output: str, said: str | None) -> None:
    outcome = judged(script, status, output)
    assert (outcome.passed, outcome.said) == (said is None, said or "")


def test_each_example_is_run_with_its_flags_at_the_door_it_asks(tmp_path: Path) -> None:
    for name, text in {
        "simple_grpc_sequence": '"--dyna"',
        "reuse_infer_objects_client": '"--protocol"',
        "memory_growth_test": '"--protocol"',
        "simple_grpc_model_control": "",
        "simple_http_cudashm_client": '"--dyna"',
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = {example.title: example for example in examples(tmp_path)}
    assert {title: example.repository for title, example in found.items() if not example.excluded} == {
        "simple_grpc_sequence": "seven",
        "simple_grpc_sequence --dyna": "eight",
        "simple_grpc_model_control": "eight",
        "reuse_infer_objects_client": "seven",
        "reuse_infer_objects_client --protocol grpc": "seven",
        "memory_growth_test": "growth",
        "memory_growth_test --protocol grpc": "growth",
    }
    assert found["simple_http_cudashm_client"].excluded == "needs CUDA shared memory"
    asks = {title: example.command(DOOR)[2:] for title, example in found.items()}
    assert asks["simple_grpc_sequence --dyna"] == ["-u", DOOR.grpc, "--dyna"]
    assert asks["reuse_infer_objects_client"] == ["-u", DOOR.http]
    assert asks["reuse_infer_objects_client --protocol grpc"] == ["-u", DOOR.grpc, "--protocol", "grpc"]
    assert asks["memory_growth_test"] == []


async def test_a_check_that_raises_says_why() -> None:
    async def right(http: str, grpc: str) -> None:
        assert (http, grpc) == ("h", "g")

    async def wrong(http: str, grpc: str) -> None:
        raise ValueError("three is not two")

    rows = await tried({"right": right, "wrong": wrong}, "h", "g")
    assert rows == [{"check": "right", "why": ""}, {"check": "wrong", "why": "ValueError: three is not two"}]


def test_the_committed_models_are_those_that_are_made(tmp_path: Path) -> None:
    """The files of ONNX are compared by what is in them, for another version of onnx may write them otherwise."""
    make_triton.make(tmp_path)
    committed = {path.relative_to(make_triton.FOLDER) for path in make_triton.FOLDER.rglob("*") if path.is_file()}
    committed = {path for path in committed if "__pycache__" not in path.parts}
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parts[0] for path in committed - made} == {"repeat_int32"}, "written by hand"
    assert made <= committed
    for path in made:
        ours, theirs = tmp_path / path, make_triton.FOLDER / path
        if path.suffix == ".onnx":
            a, b = onnx.load(ours), onnx.load(theirs)
            assert (a.graph, list(a.opset_import), a.ir_version) == (b.graph, list(b.opset_import), b.ir_version), path
        else:
            assert ours.read_text() == theirs.read_text(), path


def test_seven_models_are_in_the_repository() -> None:
    """One of the examples counts them."""
    assert len(list(make_triton.FOLDER.iterdir())) == 7
    assert Example(Path("simple_http_model_control.py")).repository == "seven"
