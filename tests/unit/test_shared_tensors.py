"""Tensors of a request in shared memory: copied off the loop where they are large, and kept in reach while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Limits, WireBody
from mesh.shared_memory import Piece, SharedMemory
from mesh.shared_tensors import ON_LOOP, fetch

LARGE = 2 * ON_LOOP


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    (tmp_path / "in").write_bytes(b"i" * LARGE)
    (tmp_path / "out").write_bytes(b"." * LARGE)
    memory = SharedMemory(enabled=True, folder=tmp_path)
    for name in ("in", "out"):
        memory.register(name, name, 0, LARGE)
    yield memory
    memory.close()


def place(region: str, size: int) -> dict[str, Any]:
    return {"shared_memory_region": region, "shared_memory_byte_size": size}


def asking(size: int) -> InferRequest:
    inputs = (Tensor("X", "UINT8", (size,), b"", place("in", size)),)
    outputs = (RequestedOutput("Y", True, place("out", size)),)
    return InferRequest("m", "", "", {}, inputs, outputs, binary_default=True, wire=None)


def answer(request: InferRequest, size: int) -> WireBody:
    outputs = (Tensor("Y", "UINT8", (size,), b"o" * size),)
    return encode_response(InferResponse("m", "1", "", {}, outputs), request)


@pytest.mark.parametrize(("size", "on_loop"), [(16, True), (LARGE, False)])
async def test_large_copies_hold_up_nobody(
    memory: SharedMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, on_loop: bool
) -> None:
    threads: list[bool] = []
    read, write = Piece.read, Piece.write

    def seen_reading(piece: Piece) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return read(piece)

    def seen_writing(piece: Piece, data: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        write(piece, data)

    monkeypatch.setattr(Piece, "read", seen_reading)
    monkeypatch.setattr(Piece, "write", seen_writing)
    request, outputs = await fetch(asking(size), memory, Limits(), None)
    assert bytes(request.inputs[0].data) == b"i" * size
    assert outputs is not None
    body = await outputs.deliver(answer(request, size))
    assert (tmp_path / "out").read_bytes() == b"o" * size + b"." * (LARGE - size)
    assert decode_response(body.joined(), body.header_length).outputs[0].parameters == place("out", size)
    assert threads == [on_loop, on_loop]


async def test_a_region_that_is_let_go_of_while_it_runs_loses_no_answer(memory: SharedMemory, tmp_path: Path) -> None:
    request, outputs = await fetch(asking(16), memory, Limits(), None)
    memory.unregister()
    (tmp_path / "other").write_bytes(bytes(16))
    memory.register("out", "other", 0, 16)
    assert outputs is not None
    await outputs.deliver(answer(request, 16))
    assert (tmp_path / "out").read_bytes().startswith(b"o" * 16 + b".")
    assert (tmp_path / "other").read_bytes() == bytes(16)


async def test_a_file_that_is_cut_off_while_it_runs_is_said(memory: SharedMemory, tmp_path: Path) -> None:
    request, outputs = await fetch(asking(LARGE), memory, Limits(), None)
    assert outputs is not None
    (tmp_path / "out").write_bytes(b"short")
    with pytest.raises(InvalidRequest, match="shorter than it was registered"):
        await outputs.deliver(answer(request, LARGE))
    assert (tmp_path / "out").read_bytes() == b"short"


async def test_limits_are_of_what_is_read_and_not_of_the_room_for_outputs(memory: SharedMemory, tmp_path: Path) -> None:
    limits = Limits(max_body_bytes=16)
    with pytest.raises(PayloadTooLarge, match="17 bytes, over the limit of 16"):
        await fetch(asking(17), memory, limits, None)
    request = asking(16)
    request.outputs = (RequestedOutput("Y", True, place("out", LARGE)),)
    _, outputs = await fetch(request, memory, limits, None)
    assert outputs is not None
    await outputs.deliver(answer(request, 16))
    assert (tmp_path / "out").read_bytes().startswith(b"o" * 16 + b".")


async def test_nothing_is_written_where_one_output_does_not_fit(memory: SharedMemory, tmp_path: Path) -> None:
    request = asking(16)
    second = place("out", 15) | {"shared_memory_offset": 16}
    request.outputs = (*request.outputs, RequestedOutput("Z", True, second))
    _, outputs = await fetch(request, memory, Limits(), None)
    assert outputs is not None
    tensors = tuple(Tensor(name, "UINT8", (16,), b"o" * 16) for name in "YZ")
    with pytest.raises(InvalidRequest, match="'Z' \\(15 bytes\\) should be at least 16 bytes"):
        await outputs.deliver(encode_response(InferResponse("m", "1", "", {}, tensors), request))
    assert (tmp_path / "out").read_bytes() == b"." * LARGE
