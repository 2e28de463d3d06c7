"""Requests merged and answers taken apart: every datatype, no copy, and nothing given to the wrong caller."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.batch import merge, rows_of, shapes_of, split
from hardware.backend import ITEM_BYTES, RawTensor
from hardware.errors import InvalidInput, RunFailed

texts = st.lists(st.binary(max_size=9), min_size=1, max_size=5)


def packed(elements: Sequence[bytes]) -> bytes:
    return b"".join([len(element).to_bytes(4, "little") + element for element in elements])


def x(*shape: int, data: bytes | None = None, datatype: str = "UINT8", name: str = "X") -> RawTensor:
    count = ITEM_BYTES.get(datatype, 4)
    for dim in shape:
        count *= dim
    return RawTensor(name, datatype, shape, bytes(count) if data is None else data)


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ([x(3, 2)], 3),
        ([x(3, 2), x(3)], 3),
        ([x(3, 2), x(2, 2)], 0),
        ([x(3), x()], 0),
        ([x()], 0),
        ([x(0, 4)], 0),
        ([], 0),
    ],
)
def test_rows_are_the_first_dimension_that_all_inputs_share(inputs: list[RawTensor], rows: int) -> None:
    assert rows_of(inputs) == rows


def test_all_dimensions_but_the_first_must_agree() -> None:
    assert shapes_of([x(3, 2, 4), x(3)]) == ((2, 4), ())


@given(
    datatype=st.sampled_from(sorted(ITEM_BYTES)), counts=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    tail=st.lists(st.integers(0, 3), max_size=2), luck=st.randoms(use_true_random=False),
)  # fmt: skip
def test_numbers_come_back_to_whom_they_belong(datatype: str, counts: list[int], tail: list[int], luck: object) -> None:
    width = ITEM_BYTES[datatype]
    for dim in tail:
        width *= dim
    payloads = [luck.randbytes(count * width) for count in counts]  # type: ignore[attr-defined]
    requests = [[x(count, *tail, data=data, datatype=datatype)] for count, data in zip(counts, payloads, strict=True)]
    (merged,) = merge(requests)
    assert merged.shape == (sum(counts), *tail)
    assert merged.whole == b"".join(payloads)
    answers = split([RawTensor("Y", datatype, merged.shape, merged.whole)], counts)
    assert [bytes(answer.whole) for (answer,) in answers] == payloads
    assert [answer.shape for (answer,) in answers] == [(count, *tail) for count in counts]


@given(requests=st.lists(texts, min_size=1, max_size=5))
def test_texts_of_any_length_come_back_to_whom_they_belong(requests: list[list[bytes]]) -> None:
    (merged,) = merge([[x(len(texts), 1, data=packed(texts), datatype="BYTES")] for texts in requests])
    counts = [len(texts) for texts in requests]
    answers = split([RawTensor("Y", "BYTES", merged.shape, merged.whole)], counts)
    assert [bytes(answer.whole) for (answer,) in answers] == [packed(texts) for texts in requests]


def test_texts_of_several_a_row_are_counted() -> None:
    whole = packed([b"a", b"", b"ccc", b"dd", b"e", b"ffffff"])
    first, second = split([RawTensor("Y", "BYTES", (3, 2), whole)], [1, 2])
    assert bytes(first[0].whole) == packed([b"a", b""])
    assert bytes(second[0].whole) == packed([b"ccc", b"dd", b"e", b"ffffff"])


def test_several_inputs_and_outputs_keep_their_order() -> None:
    merged = merge([[x(1, data=b"a", name="A"), x(1, data=b"b", name="B")], [x(1, data=b"c"), x(1, data=b"d")]])
    assert [(tensor.name, tensor.whole) for tensor in merged] == [("A", b"ac"), ("B", b"bd")]
    answers = split([x(2, data=b"yz", name="Y"), x(2, data=b"vw", name="V")], [1, 1])
    assert [[(t.name, bytes(t.whole)) for t in answer] for answer in answers] == [
        [("Y", b"y"), ("V", b"v")],
        [("Y", b"z"), ("V", b"w")],
    ]


def test_neither_merging_nor_splitting_copies() -> None:
    buffers = bytearray(b"ab"), memoryview(b"cd"), (b"e", b"f")
    (merged,) = merge([[RawTensor("X", "UINT8", (2,), data)] for data in buffers])
    assert isinstance(merged.data, tuple)
    assert merged.data[0] is buffers[0]
    assert merged.data[1] is buffers[1]
    assert merged.data[2:] == (b"e", b"f")
    output = bytearray(6)
    answers = split([RawTensor("Y", "UINT8", (6,), output)], [4, 2])
    output[5] = 7
    assert bytes(answers[1][0].whole) == b"\x00\x07"


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_wrong_sizes_are_refused_even_where_they_add_up(datatype: str) -> None:
    size = ITEM_BYTES[datatype]
    requests = [[x(1, 2, data=bytes(3 * size), datatype=datatype)], [x(1, 2, data=bytes(size), datatype=datatype)]]
    with pytest.raises(InvalidInput, match=f"'X' has {3 * size} bytes"):
        merge(requests)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (4, 1), (6, 3)])
def test_an_output_of_other_rows_belongs_to_nobody(shape: tuple[int, ...]) -> None:
    with pytest.raises(RunFailed, match="for a batch of 3"):
        split([x(3, name="GOOD"), x(*shape, name="BAD")], [1, 2])


@pytest.mark.parametrize(
    "output",
    [
        x(3, 2, data=bytes(7)),
        x(3, 2, data=bytes(5)),
        x(3, data=packed([b"a", b"b"]), datatype="BYTES"),
        x(3, data=packed([b"a", b"b", b"c", b"d"]), datatype="BYTES"),
        x(3, data=packed([b"a", b"b", b"c"])[:-1], datatype="BYTES"),
    ],
)
def test_an_output_that_is_not_what_its_shape_says_belongs_to_nobody(output: RawTensor) -> None:
    with pytest.raises(RunFailed, match="not those of its shape"):
        split([output], [1, 2])
