"""Several doors of which the bus chooses any: a step is taken by the door that holds its sequence, or by none."""

from __future__ import annotations

import asyncio

import pytest

from mesh.deadline import Deadline
from mesh.errors import SequenceUnknown
from mesh.hop import Context, Reply
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.sequence_doors import SequenceDoors
from mesh.sequence_steps import Step
from mesh.sequencer import Sequencer
from mesh.values import ModelIdentity
from tests.fakes import until

MODEL = ModelIdentity("m", "1", "d")


def request(**parameters: object) -> InferRequest:
    tensor = Tensor("X", "UINT8", (1,), b"\0")
    return InferRequest("m", "1", "", {"sequence_id": 7} | parameters, (tensor,), (), True, None)


async def answered(asked: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
    response = InferResponse("m", "1", "", {}, (Tensor("Y", "UINT8", (1,), b"\0"),))
    return Reply(encode_response(response, asked), "node", via="node")


async def take(sequencer: Sequencer, asked: InferRequest) -> None:
    step = Step.of(asked.parameters)
    assert step is not None
    await sequencer.infer(asked, MODEL, Context(Deadline.after_ms(60_000)), step)


async def test_an_older_sequence_of_the_same_id_is_not_stepped_elsewhere() -> None:
    broker = MemoryBroker()
    one, two = Sequencer(answered), Sequencer(answered)
    async with MemoryBus(broker) as bus, MemoryBus(broker) as other:
        at_one, at_two = SequenceDoors(bus, "one", one), SequenceDoors(other, "two", two)
        async with at_one.listening(), at_two.listening():
            await at_one.begins(request(sequence_start=True))
            for _ in range(10):  # heard before anything else comes, as on the bus
                await asyncio.sleep(0)
            await take(one, request(sequence_start=True))
            await take(one, request())
            await at_two.begins(request(sequence_start=True))  # the device begins anew, and comes to the other door
            await take(two, request(sequence_start=True))
            await until(lambda: len(one) == 0)
            with pytest.raises(SequenceUnknown):
                await take(one, request())
            await take(two, request())
            await at_one.begins(request())  # no start: nobody forgets anything
            await bus.publish("mesh.v1.sequence.begun", b"nonsense")
            await take(two, request())
