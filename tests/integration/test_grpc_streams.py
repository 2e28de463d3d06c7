"""``ModelStreamInfer``, watches and reflection at the edges: many answers, none, errors, callers that leave, a drain.

The model is scripted (``tests.streams``); calls are plain gRPC, so that every message is seen. Not here: Triton's own
client and sequences on a stream (``test_grpc``), streams between nodes (``test_streams``).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from mesh.grpc_protocol import message_class
from mesh.grpc_stream import MOST
from mesh.lifecycle import Counted
from mesh.messages import ModelLoad
from tests.builders import DIGEST
from tests.fakes import until
from tests.integration.doors import Door
from tests.nats import soon
from tests.streams import COUNT, CountingModels, counting_node

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
MB = 1 << 20
STUCK = 60
"""Answers of a megabyte that may be on their way to somebody who does not read."""
LONG_S = 600
"""A grace that no test lives to see the end of."""
PLAIN = ModelLoad("plain", "1", DIGEST, "READY", service_ms=5.0)


class Call:
    """One call of ``ModelStreamInfer``."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float | None = None) -> None:
        self.call = channel.stream_stream(STREAM)(timeout=timeout)

    async def ask(self, times: int, request_id: str = "", model: str = COUNT, **parameters: int | str | bool) -> None:
        message = service_pb2.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[b"\0"])
        message.inputs.add(name="X", datatype="UINT8", shape=[1])
        for name, value in ({"times": times} | parameters).items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
            setattr(message.parameters[name], kind, value)
        await self.send(message.SerializeToString())

    async def send(self, data: bytes) -> None:
        await soon(self.call.write(data))

    async def part(self) -> Any:
        """The next one; None at the end of a stream that ended well."""
        data = await soon(self.call.read())
        return None if data is grpc.aio.EOF else service_pb2.ModelStreamInferResponse.FromString(data)

    async def number(self) -> int:
        part = await self.part()
        assert not part.error_message, part.error_message
        return int(struct.unpack("<q", part.infer_response.raw_output_contents[0])[0])

    async def to_the_end(self) -> None:
        while await self.part() is not None:
            pass


@dataclass
class Served:
    models: CountingModels
    door: Door
    channel: grpc.aio.Channel
    leaving: contextlib.AsyncExitStack
    """The node's: close it to have it drain."""

    def stream(self, timeout: float | None = None) -> Call:
        return Call(self.channel, timeout)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    models = CountingModels()
    models.loads.append(PLAIN)
    async with contextlib.AsyncExitStack() as leaving:
        node = counting_node(models, "holder", grpc={"listen": "127.0.0.1:0"}, http={"grace_s": LONG_S})
        door = await leaving.enter_async_context(node)
        async with grpc.aio.insecure_channel(door.grpc) as channel:
            yield Served(models, door, channel, leaving)


def final(part: Any) -> bool:
    parameter = part.infer_response.parameters["triton_final_response"]
    assert parameter.WhichOneof("parameter_choice") == "bool_param"
    return bool(parameter.bool_param)


@pytest.mark.parametrize("times", [0, 1, 300])
async def test_every_answer_comes_in_order_and_the_end_is_told_if_wanted(served: Served, times: int) -> None:
    stream = served.stream()
    await stream.ask(times, "7", triton_enable_empty_final_response=True)
    for number in range(times):
        part = await stream.part()
        answer = part.infer_response
        assert struct.unpack("<q", answer.raw_output_contents[0]) == (number,)
        assert (answer.model_name, answer.id, final(part)) == (COUNT, "7", False)
    last = await stream.part()
    assert (last.infer_response.model_name, last.infer_response.id, final(last)) == (COUNT, "7", True)
    assert not last.infer_response.outputs
    await stream.ask(2)
    assert [await stream.number() for _ in range(2)] == [0, 1]
    await stream.call.done_writing()
    assert await stream.part() is None
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_the_answer_of_an_ordinary_model_is_the_last_one(served: Served) -> None:
    stream = served.stream()
    await stream.ask(0, model="plain", triton_enable_empty_final_response=True)
    assert final(await stream.part())
    await stream.call.done_writing()
    assert await stream.part() is None


async def test_an_error_is_of_its_request_and_the_stream_goes_on(served: Served) -> None:
    stream = served.stream()
    await stream.ask(5, "7", fail_at=2)
    assert [await stream.number() for _ in range(2)] == [0, 1]
    failed = await stream.part()
    assert (failed.error_message, failed.infer_response.id) == ("it fails at 2", "7")
    await stream.send(b"\xff\xff")
    assert "no inference.ModelInferRequest" in (await stream.part()).error_message
    await stream.send(service_pb2.ModelInferRequest(model_name=COUNT, id="8").SerializeToString())
    failed = await stream.part()
    assert (failed.error_message, failed.infer_response.id) == ("the request has no inputs", "8")
    await stream.ask(1, model="nobody")
    assert "Request for unknown model" in (await stream.part()).error_message
    await stream.ask(1)
    assert await stream.number() == 0
    stream.call.cancel()


async def test_what_goes_wrong_unexpectedly_is_not_told_to_the_world(served: Served) -> None:
    message = service_pb2.ModelInferRequest(model_name=COUNT, id="7", raw_input_contents=[b"\0"])
    message.inputs.add(name="X", datatype="UINT8", shape=[1])  # the model expects 'times' and has a KeyError
    stream = served.stream()
    await stream.send(message.SerializeToString())
    part = await stream.part()
    assert part.error_message.startswith("internal error, see the log")
    assert (part.infer_response.id, "times" in part.error_message) == ("7", False)
    stream.call.cancel()


async def test_only_so_many_run_at_a_time(served: Served) -> None:
    stream = served.stream()
    for number in range(3 * MOST):
        await stream.ask(1, str(number), hold_at=0)
    await until(lambda: served.models.begun == MOST)
    await served.door.until_open(MOST)
    other = served.stream()  # time for one more to begin, if anything allows it
    await other.ask(1)
    assert await other.number() == 0
    assert served.models.begun == MOST + 1
    served.models.go.set()
    ids = {(await stream.part()).infer_response.id for _ in range(3 * MOST)}
    assert ids == {str(number) for number in range(3 * MOST)}
    stream.call.cancel()
    other.call.cancel()


async def test_steps_of_a_sequence_wait_for_each_other_and_for_nobody_else(served: Served) -> None:
    stream = served.stream()
    for number in range(3):
        await stream.ask(1, f"a{number}", sequence_id="a", hold_at=0)
    await stream.ask(1, "b0", sequence_id="b")
    assert (await stream.part()).infer_response.id == "b0"
    assert served.models.begun == 2
    served.models.go.set()
    assert [(await stream.part()).infer_response.id for _ in range(3)] == ["a0", "a1", "a2"]
    stream.call.cancel()


async def test_who_does_not_read_holds_back_who_makes_the_answers(served: Served) -> None:
    stream, other = served.stream(), served.stream()
    await stream.ask(200, pad=MB)
    assert await stream.number() == 0
    for _ in range(3):  # time for the first to get further, if anything allows it
        await other.ask(100)
        assert [await other.number() for _ in range(100)] == list(range(100))
    assert served.models.produced - 300 < STUCK
    assert [await stream.number() for _ in range(199)] == list(range(1, 200))
    stream.call.cancel()
    other.call.cancel()


@pytest.mark.parametrize("hold_at", [0, 3])
async def test_who_leaves_ends_what_runs(served: Served, caplog: pytest.LogCaptureFixture, hold_at: int) -> None:
    stream = served.stream()
    for _ in range(3):
        await stream.ask(5, hold_at=hold_at)
    for _ in range(3 * hold_at):
        await stream.number()
    await until(lambda: served.models.running == 3)
    stream.call.cancel()
    await soon(served.models.ended())
    await served.door.until_open(0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@contextlib.asynccontextmanager
async def passed_on_until(deaf: asyncio.Event, door: str) -> AsyncIterator[str]:
    """An address that passes all on to the door, and from then on nothing, but hangs up on nobody."""
    host, port = door.split(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not deaf.is_set():
                writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        writers.extend((writer, back))
        with going.one(), contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, back), pump(there, writer))

    going, writers = Counted(), list[asyncio.StreamWriter]()
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()
        assert await going.idle(LONG_S) == 0


async def test_who_loses_its_power_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.grpc_server.PING_AFTER_S", 0.2)
    monkeypatch.setattr("mesh.grpc_server.PING_S", 0.2)
    models, deaf = CountingModels(), asyncio.Event()
    async with (
        counting_node(models, "holder", grpc={"listen": "127.0.0.1:0"}) as door,
        passed_on_until(deaf, door.grpc) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stream = Call(channel)
        await stream.ask(2, hold_at=1, timeout=600_000_000)
        assert await stream.number() == 0
        deaf.set()
        await soon(models.ended())
        stream.call.cancel()


@pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_stream_may_be_compressed(served: Served, coding: grpc.Compression) -> None:
    async with grpc.aio.insecure_channel(served.door.grpc, compression=coding) as channel:
        stream = Call(channel)
        for _ in range(2):
            await stream.ask(3, pad=MB // 8, more="x" * 100_000)
            assert [await stream.number() for _ in range(3)] == [0, 1, 2]
        await stream.call.done_writing()
        await stream.to_the_end()


async def test_the_deadline_of_the_call_is_that_of_its_requests(served: Served) -> None:
    stream = served.stream(timeout=0.5)
    await stream.ask(1, hold_at=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.to_the_end()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(served.models.ended())
    stream = served.stream()
    await stream.ask(1, hold_at=0, timeout=100_000)
    assert "deadline" in (await stream.part()).error_message
    stream.call.cancel()


async def test_a_drain_answers_what_runs_and_ends_streams_without_end(served: Served) -> None:
    busy, idle = served.stream(), served.stream()
    await busy.ask(4, hold_at=2)
    assert [await busy.number() for _ in range(2)] == [0, 1]
    await idle.ask(1)
    assert await idle.number() == 0
    asked, said = (message_class(f"grpc.health.v1.HealthCheck{kind}") for kind in ("Request", "Response"))
    watch = served.channel.unary_stream(WATCH)(asked().SerializeToString())
    assert said.FromString(await soon(watch.read())).status == 1
    reflect = served.channel.stream_stream(REFLECT)()
    await reflect.write(b"")
    assert await soon(reflect.read())

    closing = asyncio.ensure_future(served.leaving.aclose())
    assert said.FromString(await soon(watch.read())).status == 2
    served.models.go.set()
    assert [await busy.number() for _ in range(2)] == [2, 3]
    for stream in (busy, idle):
        with pytest.raises(grpc.aio.AioRpcError, match="draining") as caught:
            await stream.part()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(caught.value.trailing_metadata())["mesh-error"] == "draining"
    assert await soon(watch.read()) is grpc.aio.EOF
    assert await soon(reflect.read()) is grpc.aio.EOF
    await soon(closing)


async def test_a_grace_that_is_over_cuts_what_runs() -> None:
    models = CountingModels()
    async with contextlib.AsyncExitStack() as leaving:
        node = counting_node(models, "holder", grpc={"listen": "127.0.0.1:0"}, http={"grace_s": 0})
        door = await leaving.enter_async_context(node)
        async with grpc.aio.insecure_channel(door.grpc) as channel:
            stream = Call(channel)
            await stream.ask(1, hold_at=0)
            await until(lambda: models.running == 1)
            await soon(leaving.aclose())
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.part()
    await soon(models.ended())


async def test_a_watcher_is_told_who_is_not_known(served: Served) -> None:
    asked, said = (message_class(f"grpc.health.v1.HealthCheck{kind}") for kind in ("Request", "Response"))
    watch = served.channel.unary_stream(WATCH)(asked(service="nothing").SerializeToString())
    assert said.FromString(await soon(watch.read())).status == 3
    watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_stream(WATCH)(b"\xff\xff").read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
