"""What the SDK takes for a request and gives as an answer: every kind of array, what is refused, what travels on."""

from __future__ import annotations

import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mesh.errors import BY_CODE, InvalidRequest, MeshError
from mesh.hop import Reply
from mesh.oip.request import decode_request
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Limits
from mesh.result import Result, make_request, read_result

Array = np.ndarray[Any, Any]
GRID = np.arange(24).reshape(2, 3, 4)
ARRAYS: dict[str, Array] = {
    "columns first": np.asfortranarray(GRID),
    "every other": GRID[:, ::2, ::-1],
    "transposed": GRID.T,
    "one value everywhere": np.broadcast_to(np.float32(1.5), (3, 4)),
    "big-endian": GRID.astype(">f8"),
    "big-endian half": GRID.astype(">f2"),
    "a scalar": np.array(7, np.int16),
    "nothing": np.zeros((0, 3), np.float32),
    "no rows of nothing": np.zeros((2, 0), ">i4"),
    "truth": np.array([[True, False]]),
    "half": np.array([np.inf, -0.0, np.nan], np.float16),
    "read-only": np.frombuffer(b"abcd", np.uint8),
    "not aligned": np.frombuffer(b"\0" * 9, np.uint8)[1:].view("<i4"),
}
TEXTS: dict[str, Array] = {
    "bytes": np.array([[b"a", b"bc"]]),
    "texts": np.array(["", "\u00e9\U0001f600"]),
    "objects": np.array([b"\0", "x", bytearray(b"yz")], dtype=object),
    "one text": np.array("alone"),
    "none": np.array([], dtype=object),
}
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    TEXTS["texts of any length"] = np.array(["a", "", "\u00e9"], dtype=np.dtypes.StringDType())


def there(inputs: Any, **options: Any) -> dict[str, Tensor]:
    """The inputs as a door reads them."""
    body = make_request("m", "", inputs, (), None, **options).body()
    return {t.name: t for t in decode_request("m", "", body.joined(), body.header_length, Limits()).inputs}


def back(*outputs: Tensor) -> Result:
    """What becomes of outputs that a door answers."""
    request = make_request("m", "", {"X": np.zeros(1)}, (), None)
    body = encode_response(InferResponse("m", "1", "", {"a": 1}, outputs), request)
    return read_result(Reply(body, "edge-1", "peer", 1))


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_go_as_they_are_and_come_back(array: Array) -> None:
    sent = there({"X": array})["X"]
    got = back(sent)["X"]
    assert (sent.shape, got.shape, got.dtype) == (array.shape, array.shape, array.dtype.newbyteorder("<"))
    assert got.tobytes() == array.astype(got.dtype).tobytes()


@pytest.mark.parametrize("array", TEXTS.values(), ids=TEXTS.keys())
def test_texts_go_as_utf8_and_come_back_as_bytes(array: Array) -> None:
    got = back(there({"X": array})["X"])["X"]
    wanted = [item.encode() if isinstance(item, str) else bytes(item) for item in array.reshape(-1).tolist()]
    assert (got.shape, got.dtype, got.reshape(-1).tolist()) == (array.shape, object, wanted)


def test_bfloat16_goes_as_such_and_comes_back_as_its_bits() -> None:
    array = np.array([[1.0, -2.0]], ml_dtypes.bfloat16)
    sent = there({"X": array})["X"]
    assert sent.datatype == "BF16"
    assert back(sent)["X"].view(ml_dtypes.bfloat16).tolist() == array.tolist()


def test_what_numpy_makes_an_array_of_is_one() -> None:
    assert there({"X": [[1, 2], [3, 4]]})["X"].numpy().tolist() == [[1, 2], [3, 4]]
    assert there([Tensor.from_numpy("X", np.zeros(1, np.uint8))])["X"].datatype == "UINT8"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"X": np.zeros(2, "M8[s]")}, r"input 'X': the protocol has no datatype for numpy's datetime64\[s\]"),
        ({"X": np.zeros(2, np.complex64)}, "input 'X': .*complex64"),
        ({"X": np.zeros(2, [("a", "i4")])}, "input 'X': "),
        ({"X": [[1, 2], [3]]}, "input 'X': "),
        ({"X": None}, "'X'.*NoneType"),
        ({"X": np.array([1, "a"], object)}, "'X'.*int"),
        ({"X": np.array(["\ud800"])}, "'X'.*UTF-8"),
        (np.zeros(2), "inputs are arrays by their names, or a list of tensors, got ndarray"),
        ([np.zeros(2)], "inputs are arrays by their names"),
        (None, "got NoneType"),
        ("X", "got str"),
    ],
)
def test_what_is_no_input_is_refused_by_name(inputs: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        there(inputs)


def test_what_would_be_misunderstood_is_refused() -> None:
    inputs = {"X": np.zeros(1)}
    with pytest.raises(InvalidRequest, match="a list of names, got the text 'OUTPUT0'"):
        make_request("m", "", inputs, "OUTPUT0", None)
    with pytest.raises(InvalidRequest, match="deadline_ms"):
        make_request("m", "", inputs, (), {"timeout": 1_000})
    for value in ([1], None, float("nan"), 2**64):
        with pytest.raises(InvalidRequest, match="'a'"):
            make_request("m", "", inputs, (), {"a": value}).body()


def test_the_callers_parameters_are_not_changed() -> None:
    parameters = {"priority": 1}
    request = make_request("m", "", {"X": np.zeros(1)}, (), parameters)
    request.parameters["timeout"] = 1
    assert parameters == {"priority": 1}


def test_a_result_goes_to_another_process_whole() -> None:
    result = back(there({"X": ARRAYS["half"]})["X"], there({"T": TEXTS["texts"]})["T"])
    again = pickle.loads(pickle.dumps(result))
    assert (again["X"].tobytes(), again["T"].tolist()) == (result["X"].tobytes(), result["T"].tolist())
    assert (again.model, again.version, again.node, again.route, again.hops) == ("m", "1", "edge-1", "peer", 1)
    assert again.parameters == {"a": 1}
    assert repr(again).startswith("Result(outputs={'X': array(")


def test_results_are_compared_as_objects_and_not_by_arrays() -> None:
    one, other = (back(there({"X": ARRAYS["half"]})["X"]) for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2


def test_outputs_are_read_only() -> None:
    got = back(there({"X": ARRAYS["half"]})["X"])["X"]
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1


@pytest.mark.parametrize("kind", dict.fromkeys(BY_CODE.values()), ids=lambda kind: kind.__name__)
def test_errors_go_to_another_process_whole(kind: type[MeshError]) -> None:
    again = pickle.loads(pickle.dumps(kind("why", retry_after_s=2.5)))
    assert (type(again), again.text, again.retry_after_s, str(again)) == (kind, "why", 2.5, "why")
