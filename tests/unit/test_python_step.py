"""The "python" backend in this process: declarations, whose file it is, what the code may answer and raise."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pwd
import stat
import struct
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.backend import LoadOptions, RawTensor, TensorInfo
from hardware.errors import DeviceOutOfMemory, InvalidInput, ModelRefused, RunFailed
from hardware.ownership import read_trusted
from hardware.python_step import PythonStep, open_session, said
from tests import python_steps

ONE = """
import numpy as np
inputs = {{"IN": ("{datatype}", {shape})}}
outputs = {{"OUT": ("{datatype}", {shape})}}
def infer(inputs):
    {body}
"""


def opened(folder: Path, source: str, **options: Any) -> PythonStep:
    return open_session(str(python_steps.save(folder, source)), LoadOptions(backend="python", **options))


def step(folder: Path, body: str, datatype: str = "INT32", shape: str = "[-1]") -> PythonStep:
    return opened(folder, ONE.format(body=body, datatype=datatype, shape=shape))


def ints(*values: int) -> list[RawTensor]:
    return [RawTensor("IN", "INT32", (len(values),), np.array(values, np.int32).tobytes())]


def refusal(folder: Path, source: str, **options: Any) -> str:
    with pytest.raises(ModelRefused) as caught:
        opened(folder, source, **options)
    assert str(folder) not in caught.value.text
    return caught.value.text


def failure(session: PythonStep, inputs: list[RawTensor]) -> str:
    with pytest.raises(RunFailed) as caught:
        session.run(inputs, ())
    return caught.value.text


def test_a_function_answers_once(tmp_path: Path) -> None:
    session = opened(tmp_path, python_steps.DOUBLE)
    assert not session.loaded.decoupled
    assert session.loaded.effective == session.loaded.platform == session.loaded.requested == "python"
    assert session.loaded.signature.inputs == (TensorInfo("X", "FP32", (-1, 2)),)
    x = np.array([[1, 2], [3, 4]], np.float32)
    (y,) = session.run([RawTensor("X", "FP32", (2, 2), x.tobytes())], ())
    np.testing.assert_array_equal(np.frombuffer(y.whole, np.float32).reshape(2, 2), x * 2)


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT8", "INT16", "UINT16", "FP16", "BF16", "INT32", "UINT32",
                                      "FP32", "INT64", "UINT64", "FP64"])  # fmt: skip
def test_every_datatype_passes_bit_for_bit(tmp_path: Path, datatype: str) -> None:
    session = step(tmp_path, 'return {"OUT": inputs["IN"]}', datatype)
    size = {"BOOL": 1, "INT8": 1, "UINT8": 1}.get(datatype, 2 if datatype.endswith("16") else 0)
    size = size or (4 if datatype.endswith("32") else 8)
    data = bytes(range(256))[: 4 * size] if datatype != "BOOL" else b"\0\1\1\0"
    (out,) = session.run([RawTensor("IN", datatype, (4,), data)], ())
    assert (bytes(out.whole), out.datatype, out.shape) == (data, datatype, (4,))


def test_strings_are_bytes_that_need_not_be_text(tmp_path: Path) -> None:
    body = 'assert all(type(v) is bytes for v in inputs["IN"]); return {"OUT": inputs["IN"][::-1]}'
    session = step(tmp_path, body, "BYTES")
    (out,) = session.run([RawTensor("IN", "BYTES", (2,), b"\2\0\0\0\xff\xfe\0\0\0\0")], ())
    assert bytes(out.whole) == b"\0\0\0\0\2\0\0\0\xff\xfe"


@pytest.mark.parametrize(
    "array", ['np.array(["a", b"bc"], object)', 'np.array([b"a", b"bc"])', 'np.array(["a", "bc"])']
)
def test_answers_may_hold_texts_as_numpy_does(tmp_path: Path, array: str) -> None:
    (out,) = step(tmp_path, f'return {{"OUT": {array}}}', "BYTES").run([RawTensor("IN", "BYTES", (0,), b"")], ())
    assert bytes(out.whole) == b"\1\0\0\0a\2\0\0\0bc"


def test_inputs_are_the_steps_own(tmp_path: Path) -> None:
    session = step(tmp_path, 'inputs["IN"][0] = 9; return {"OUT": inputs["IN"]}')
    data = bytearray(8)
    (out,) = session.run([RawTensor("IN", "INT32", (2,), data)], ())
    assert bytes(out.whole) == b"\x09" + bytes(7)
    assert data == bytes(8)


def test_a_scalar_and_nothing_at_all(tmp_path: Path) -> None:
    (out,) = step(tmp_path, 'return {"OUT": inputs["IN"]}', shape="[]").run([RawTensor("IN", "INT32", (), b"abcd")], ())
    assert (bytes(out.whole), out.shape) == (b"abcd", ())
    (out,) = step(tmp_path, 'return {"OUT": inputs["IN"][:, ::-1]}', shape="[-1, 3]").run(
        [RawTensor("IN", "INT32", (0, 3), b"")], ()
    )
    assert (bytes(out.whole), out.shape) == (b"", (0, 3))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('return {"OUT": inputs["IN"].astype(np.int64)}', "output 'OUT' as int64, it is declared INT32"),
        ('return {"OUT": inputs["IN"].astype(">i4")}', "output 'OUT' as >i4, it is declared INT32"),
        ('return {"OUT": inputs["IN"][None]}', r"of shape \[1, 1\], it is declared \[-1\]"),
        ('return {"OUT": [1]}', "a list as output 'OUT', not a numpy array"),
        ('return {"OUT": inputs["IN"], "MORE": 1}', "'MORE', which is not declared"),
        ("return {}", "did not answer the output 'OUT'"),
        ("return None", "answered a NoneType, not a dict"),
        ("return (x for x in [1])", "answered a generator, not a dict"),
        ('raise ValueError("no " + "x" * 1000)', "the step failed: ValueError: no x{50,200}$"),
        ('open("/etc/inference/none.txt")', "FileNotFoundError: No such file or directory$"),
        ('raise RuntimeError("in /home/me/secret/file.txt, line 3")', "RuntimeError: in file.txt, line 3$"),
        ("import sys; sys.exit(3)", "SystemExit: 3$"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt$"),
        ("return infer(inputs)", "RecursionError: maximum recursion depth"),
        ('return {"OUT": np.ma.masked_array(inputs["IN"], True)}', "a MaskedArray as output 'OUT', not a numpy array"),
        ("return type('Lazy', (dict,), {'__getitem__': lambda *_: 1 / 0})(OUT=1)", "ZeroDivisionError: division by"),
        ("return {type('Key', (), {'__str__': lambda _: 1 / 0})(): 1}", "ZeroDivisionError: division by zero$"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_answer_fails_that_run_alone(tmp_path: Path, body: str, says: str) -> None:
    session = step(tmp_path, f'if inputs["IN"].size: {body}\n    return {{"OUT": inputs["IN"]}}')
    with pytest.raises(RunFailed, match=says):
        session.run(ints(1), ())
    assert session.run(ints(), ())[0].shape == (0,)


def test_wrong_things_between_strings_are_found(tmp_path: Path) -> None:
    session = step(tmp_path, 'return {"OUT": np.array([b"a", 5], object)}', "BYTES")
    assert "as object, it is declared BYTES" in failure(session, [RawTensor("IN", "BYTES", (0,), b"")])


@pytest.mark.parametrize("array", ["np.array([text], object)", "np.array([text])"])
def test_texts_that_utf_8_cannot_hold_fail_that_run_alone(tmp_path: Path, array: str) -> None:
    body = f'text = inputs["IN"][0].decode(errors="surrogateescape")\n    return {{"OUT": {array}}}'
    session = step(tmp_path, body, "BYTES")
    assert "UnicodeEncodeError" in failure(session, [RawTensor("IN", "BYTES", (1,), b"\x01\0\0\0\xff")])
    assert bytes(session.run([RawTensor("IN", "BYTES", (1,), b"\x01\0\0\0a")], ())[0].whole) == b"\x01\0\0\0a"
    streams = step(tmp_path, body.replace("return", "yield"), "BYTES")
    with pytest.raises(RunFailed, match="UnicodeEncodeError"):
        next(streams.stream([RawTensor("IN", "BYTES", (1,), b"\x01\0\0\0\xff")], ()))


def test_a_log_that_nobody_can_write_to_fails_that_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    session = step(tmp_path, 'raise ValueError("no")')
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", closed)
        assert failure(session, ints(1)) == "the step failed: ValueError: no"


def test_a_step_without_memory_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeviceOutOfMemory, match="found no memory"):
        step(tmp_path, "raise MemoryError").run(ints(1), ())


def test_a_traceback_is_printed_once_for_each_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = step(tmp_path, 'raise ValueError(f"because of {inputs}")')
    for n in range(5):
        failure(session, ints(n))
    assert capfd.readouterr().err.count("Traceback") == 1


def test_an_error_between_answers_comes_after_them(tmp_path: Path) -> None:
    session = step(tmp_path, 'yield {"OUT": inputs["IN"]}; raise ValueError("enough")')
    answers = session.stream(ints(4), ())
    assert next(answers)[0].shape == (1,)
    with pytest.raises(RunFailed, match="the step failed: ValueError: enough"):
        next(answers)


def test_an_error_while_it_is_ended_is_told(tmp_path: Path) -> None:
    body = 'try:\n        yield {"OUT": inputs["IN"]}\n    finally:\n        raise OSError(28, "No space left", "/a/b")'
    answers = step(tmp_path, body).stream(ints(4), ())
    next(answers)
    with pytest.raises(RunFailed, match=r"OSError: No space left$"):
        answers.close()


def test_one_that_does_not_let_itself_be_ended_is_left(tmp_path: Path) -> None:
    tries = 'try:\n            yield {"OUT": inputs["IN"]}\n        except GeneratorExit:\n            pass'
    body = f"for _ in range(2):\n        {tries}"
    answers = step(tmp_path, body).stream(ints(4), ())
    next(answers)
    with pytest.raises(RunFailed, match="generator ignored GeneratorExit"):
        answers.close()


def test_wrong_inputs_never_reach_the_code(tmp_path: Path) -> None:
    session = step(tmp_path, 'raise ValueError("it was called")')
    for wrong in ([], [RawTensor("IN", "INT64", (1,), bytes(8))], [RawTensor("IN", "INT32", (1,), bytes(5))]):
        with pytest.raises(InvalidInput):
            session.run(wrong, ())


def test_threads_share_the_module_and_its_state(tmp_path: Path) -> None:
    source = """
import threading
import numpy as np
inputs = {"IN": ("INT32", [-1])}
outputs = {"OUT": ("INT32", [])}
both = threading.Barrier(2, timeout=60)
calls = []
def infer(inputs):
    both.wait()
    calls.append(1)
    both.wait()
    return {"OUT": np.array(len(calls), np.int32)}
"""
    session = opened(tmp_path, source)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(int.from_bytes(session.run(ints(1), ())[0].whole, "little")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2, 2]


def test_a_dataclass_in_a_step_finds_its_module(tmp_path: Path) -> None:
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    kept = "@dataclass(slots=True)\nclass Kept:\n    x: int\n"
    session = opened(tmp_path, source + kept + python_steps.DOUBLE)
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nothing_of_that_name", r"\(line 1\): ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("\n\ndef f(:", r"model.py cannot be run: SyntaxError: .*model.py, line 3"),
        ("x = 1\nraise SystemExit(4)", r"\(line 2\): SystemExit: 4"),
        ("open('/var/nowhere/x')", "FileNotFoundError: No such file or directory$"),
        ("\0", "model.py cannot be run"),
        ("", "declares no inputs"),
        ("inputs = {}\n", "declares no inputs"),
        ("inputs = [1]\n", "declares no inputs"),
        ('inputs = {"X": ("FP32", [1])}\n', "declares no outputs"),
        ('inputs = {"X": ("FLOAT", [1])}\n', "there is no datatype 'FLOAT', there are"),
        ('inputs = {"X": "FP32"}\n', "not a datatype and a shape"),
        ('inputs = {"X": (["FP32"], [1])}\n', "there is no datatype"),
        ('inputs = {"X": ("FP32", [-2])}\n', "a dimension is a whole number"),
        ('inputs = {"X": ("FP32", ["a"])}\n', "a dimension is a whole number"),
        ('inputs = {"": ("FP32", [1])}\n', "a name is a text"),
        ("inputs = {1: ('FP32', [1])}\n", "a name is a text"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_says_why(tmp_path: Path, source: str, says: str) -> None:
    with pytest.raises(ModelRefused, match=says):
        opened(tmp_path, source)


@pytest.mark.parametrize(
    ("infer", "says"),
    [
        ("", "has no function infer"),
        ("infer = 3", "has no function infer"),
        ("async def infer(inputs): pass", "is async"),
        ("async def infer(inputs): yield", "is async"),
        ("def infer(): pass", "does not take the inputs"),
        ("def infer(a, b): pass", "does not take the inputs"),
    ],
)
def test_infer_must_be_a_function_of_the_inputs(tmp_path: Path, infer: str, says: str) -> None:
    declared = 'inputs = outputs = {"X": ("FP32", [1])}\n'
    assert says in refusal(tmp_path, declared + infer)


def test_only_the_bytes_of_the_digest_are_run(tmp_path: Path) -> None:
    digest = hashlib.sha256(python_steps.DOUBLE.encode()).hexdigest()
    opened(tmp_path, python_steps.DOUBLE, digest=digest)
    assert "not the one that was read" in refusal(tmp_path, python_steps.DOUBLE + "\n", digest=digest)


def test_only_a_step_of_a_sensible_size_is_run(tmp_path: Path) -> None:
    assert "more than 100 bytes" in refusal(tmp_path, "#" * 101, max_model_bytes=100)
    other = tmp_path / "model.onnx"
    other.write_text(python_steps.DOUBLE)
    with pytest.raises(ModelRefused, match=r"runs model\.py, not model\.onnx"):
        open_session(str(other), LoadOptions(backend="python"))


def changed(folder: Path, how: str) -> str:
    """The step's path after something about it became such that others could write there."""
    path = python_steps.save(folder, python_steps.DOUBLE)
    nobody = 65534
    if how == "file of all":
        path.chmod(0o666)
    elif how == "folder of all":
        path.parent.chmod(0o777)
    elif how == "model of all":
        path.parent.parent.chmod(0o757)
    elif how == "group":
        path.chmod(0o664)
        os.chown(path, -1, nobody)
    elif how == "user":
        os.chown(path, nobody, -1)
    elif how == "folder of user":
        os.chown(path.parent.parent, nobody, -1)
    elif how == "behind a link":
        path.parent.chmod(0o777)
        (folder / "linked").symlink_to(path.parent.parent)
        return str(folder / "linked" / "1" / "model.py")
    elif how in ("list", "folder's list"):
        shared = path if how == "list" else path.parent
        owner, user, group, mask, other = (1, 6, -1), (2, 6, nobody), (4, 4, -1), (0x10, 6, -1), (0x20, 4, -1)
        entries = [struct.pack("<HHi", *entry) for entry in (owner, user, group, mask, other)]
        os.setxattr(shared, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(entries))
    elif how == "no file":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
    return str(path)


def keeps_lists() -> bool:
    """Whether temporary files may name users who can write there, beside their owner."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.getxattr(file.fileno(), "system.posix_acl_access")
        except OSError as error:
            return error.errno == errno.ENODATA
    return True


LISTS_ONLY = pytest.mark.skipif(not keeps_lists(), reason="this file system has no access control lists")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("file of all", "model.py can be written by others"),
        ("folder of all", "folder 1 can be written by others"),
        ("model of all", "folder step can be written by others"),
        ("behind a link", "folder 1 can be written by others"),
        pytest.param("group", "model.py can be written by others", marks=ROOT_ONLY),
        pytest.param("user", "model.py belongs to user 65534", marks=ROOT_ONLY),
        pytest.param("folder of user", "folder step belongs to user 65534", marks=ROOT_ONLY),
        pytest.param("list", "model.py can be written by others", marks=LISTS_ONLY),
        pytest.param("folder's list", "folder 1 can be written by others", marks=LISTS_ONLY),
        ("no file", "no regular file"),
        ("nothing", "cannot be read: No such file"),
    ],
)
def test_what_others_could_have_written_is_not_run(tmp_path: Path, how: str, says: str) -> None:
    path = changed(tmp_path, how)
    with pytest.raises(ModelRefused, match=says):
        read_trusted(path, 1 << 20)


def test_a_group_that_is_another_users_first_one_is_not_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = python_steps.save(tmp_path, python_steps.DOUBLE)
    path.chmod(0o664)
    me = pwd.getpwuid(os.geteuid())
    other = pwd.struct_passwd(("other", "x", me.pw_uid + 1, me.pw_gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [me, other])
    with pytest.raises(ModelRefused, match=r"model\.py can be written by others"):
        read_trusted(str(path), 1 << 20)


def test_a_group_of_one_and_a_sticky_folder_are_in_order(tmp_path: Path) -> None:
    path = python_steps.save(tmp_path, python_steps.DOUBLE)
    path.chmod(0o664)  # of the user's own group, as where umask is 002
    path.parent.chmod(0o777 | stat.S_ISVTX)
    link = tmp_path / "link.py"
    link.symlink_to(path)
    assert read_trusted(str(link), 1 << 20) == (python_steps.DOUBLE.encode(), str(path))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ValueError"),
        (KeyError("x"), "KeyError: 'x'"),
        (OSError(13, "Permission denied", "/a/b/c"), "PermissionError: Permission denied"),
        (ValueError("at http://host/a/b and 3/4"), "ValueError: at http://host/a/b and 3/4"),
        (ValueError("file:///etc/mesh/key and '/opt/x/y.bin'"), "ValueError: key and 'y.bin'"),
        (ValueError("a\n  b"), "ValueError: a b"),
    ],
)
def test_texts_of_errors_are_short_and_name_no_folder(error: BaseException, text: str) -> None:
    assert said(error) == text


def test_an_error_that_cannot_be_shown_is_named(tmp_path: Path) -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    assert said(Bad()) == "Bad"
