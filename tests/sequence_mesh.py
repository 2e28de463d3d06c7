"""Nodes that hold sequences of the model ``chain``, and a way to them on which all goes wrong that can.

The nodes are real (``edge.sequences``), requests and answers travel in their wire form; only the model is computed
here, and the router is a choice among what is left. Not here: what is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from edge.sequence_config import ControlsConfig, SequenceConfig, StateConfig
from edge.sequences import Sequences
from hardware.backend import RawTensor, Signature, TensorInfo
from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    Draining,
    InferenceFailed,
    MeshError,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    Overloaded,
    PayloadTooLarge,
)
from mesh.hop import Context, Reply
from mesh.oip.request import InferRequest, Limits, decode_request, encode_request
from mesh.oip.response import InferResponse, decode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.sequence_steps import Step
from mesh.sequencer import Sequencer
from mesh.settings import SequencesSettings
from mesh.values import ModelIdentity
from tests.builders import an_identity
from tests.sequence_models import FACTOR, FIRST, LAST, MODULUS

CHAIN = an_identity("chain")
CONFIG = SequenceConfig(
    state=(StateConfig(input="SEEN", output="SEEN_OUT", initial=7),), controls=ControlsConfig(start="START", end="END")
)
FAULTS = (
    "lost before it ran", "lost after it ran", "unreachable", "late before it ran", "late after it ran", "delayed",
    "delayed and late", "failed", "draining", "busy", "restarted", "answer too large", "twice", "an old one comes",
    "all old ones come",
)  # fmt: skip


def _info(name: str, datatype: str) -> TensorInfo:
    return TensorInfo(name, datatype, (-1, 1))


def an_instance(config: SequenceConfig = CONFIG, identity: ModelIdentity = CHAIN) -> Any:
    inputs = (_info("INPUT", "INT64"), _info("SEEN", "INT64"), _info("START", "INT32"), _info("END", "FP32"))
    signature = Signature(inputs, (_info("OUTPUT", "INT64"), _info("SEEN_OUT", "INT64")))
    return SimpleNamespace(
        stored=SimpleNamespace(config=SimpleNamespace(sequence=config)),
        identity=identity,
        name=f"{identity.name}/{identity.version}",
        loaded=SimpleNamespace(signature=signature),
    )


class Node:
    """``failing`` makes the next run fail, ``garbled`` its answer too short; ``holding`` keeps runs from ending."""

    def __init__(self, name: str, settings: SequencesSettings | None = None) -> None:
        self.name = name
        self.settings = settings or SequencesSettings()
        self.sequences = Sequences(self.settings)
        self.failing = self.garbled = False
        self.holding: asyncio.Event | None = None
        self.runs: list[int] = []
        """INPUT of every run that began."""

    def restart(self) -> None:
        self.sequences = Sequences(self.settings)

    async def infer(self, request: InferRequest, config: SequenceConfig = CONFIG) -> WireBody:
        deadline = Deadline.after_ms(60_000)
        return await self.sequences.infer(cast(Any, an_instance(config)), over_the_wire(request), deadline, self.run)

    async def run(self, inputs: Sequence[RawTensor], names: Sequence[str]) -> list[RawTensor]:
        given = {t.name: Tensor(*t[:3], t.whole).numpy() for t in inputs}
        self.runs.append(int(given["INPUT"][0, 0]))
        await asyncio.sleep(0)
        if self.holding is not None:
            await self.holding.wait()
        if self.failing:
            self.failing = False
            raise InferenceFailed("as told")
        after = (given["SEEN"] * FACTOR + given["INPUT"]) % MODULUS
        shown = after + FIRST * given["START"].astype(np.int64) + LAST * given["END"].astype(np.int64)
        outputs = {"OUTPUT": shown, "SEEN_OUT": after}
        most, self.garbled = 4 if self.garbled else 8, False
        return [RawTensor(name, "INT64", (1, 1), outputs[name].tobytes()[:most]) for name in names]


class DoorNode:
    """A door in the place of a node, as the SDK's own sequencer sees it."""

    def __init__(self, name: str, make: Callable[[], Sequencer]) -> None:
        self.name = name
        self._make = make
        self.sequences = make()
        self.failing = False

    def restart(self) -> None:
        self.sequences = self._make()

    async def infer(self, request: InferRequest) -> WireBody:
        if self.failing:
            self.failing = False
            raise InferenceFailed("as told")
        return (await ask(self.sequences, request)).body


class Mesh:
    """``script`` is what goes wrong with each request in turn; behind its end nothing does."""

    def __init__(
        self, *names: str, script: Sequence[tuple[str, int]] = (), doors: Callable[[], Sequencer] | None = None
    ) -> None:
        self.nodes: dict[str, Any] = {name: Node(name) if doors is None else DoorNode(name, doors) for name in names}
        self._script = list(reversed(script))
        self.errors: dict[str, MeshError] = {}
        """What a node answers for good, as one that is gone."""
        self._old: list[tuple[Any, InferRequest]] = []
        self.asked: list[tuple[str, Step]] = []

    def script(self, *faults: tuple[str, int]) -> None:
        """What goes wrong with the next requests."""
        self._script = list(reversed(faults))

    def door(self, **settings: Any) -> Sequencer:
        return Sequencer(self.infer, SequencesSettings(**settings))

    async def infer(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        fault, luck = self._script.pop() if self._script else ("", 0)
        able = [name for name in self.nodes if name not in context.avoid and context.keep in ("", name)]
        if not able:
            raise NoReadyInstance("no node is left")
        node = self.nodes[able[luck % len(able)]]
        step = Step.of(request.parameters)
        assert step is not None
        self.asked.append((node.name, step))
        if (error := self.errors.get(node.name)) is not None:
            raise error
        body = await self._meet(fault, luck, node, msgspec.structs.replace(request, wire=None))
        return Reply(body, node.name, "peer", 1, via=node.name)

    async def _meet(self, fault: str, luck: int, node: Any, request: InferRequest) -> WireBody:
        match fault:
            case "unreachable":
                raise NodeUnreachable("as told")
            case "draining":
                raise Draining("as told")
            case "busy":
                raise Overloaded("as told")
            case "lost before it ran":
                raise NodeLost("as told")
            case "late before it ran":
                raise DeadlineExceeded("as told")
            case "delayed" | "delayed and late":
                self._old.append((node, request))
                raise NodeLost("as told") if fault == "delayed" else DeadlineExceeded("as told")
            case "restarted":
                node.restart()
            case "failed":
                node.failing = True
            case "an old one comes" if self._old:
                await self._arrive(luck % len(self._old))
            case "all old ones come":
                await self.settle()
        return await self._run(fault, node, request)

    async def _run(self, fault: str, node: Any, request: InferRequest) -> WireBody:
        body = await node.infer(request)
        match fault:
            case "twice":
                body = await node.infer(request)
            case "lost after it ran":
                self._old.append((node, request))  # whoever sent it may have sent it twice
                raise NodeLost("as told")
            case "late after it ran":
                raise DeadlineExceeded("as told")
            case "answer too large":
                raise PayloadTooLarge("as told")
        return body  # type: ignore[no-any-return]

    async def settle(self) -> None:
        """Whatever is under way arrives."""
        while self._old:
            await self._arrive(0)

    async def _arrive(self, at: int) -> None:
        """What was under way for long; nobody waits for the answer."""
        node, request = self._old.pop(at)
        await asyncio.gather(node.infer(request), return_exceptions=True)


def a_step(value: int, *, binary: bool = True, sequence: int | str = 1, **parameters: Any) -> InferRequest:
    tensor = Tensor("INPUT", "INT64", (1, 1), int(value).to_bytes(8, "little"))
    return InferRequest("chain", "", "", {"sequence_id": sequence, **parameters}, (tensor,), (), binary, None)


def over_the_wire(request: InferRequest) -> InferRequest:
    wire = encode_request(request)
    return decode_request(request.model, request.version, wire.joined(), wire.header_length, Limits())


async def ask(door: Sequencer, request: InferRequest, identity: ModelIdentity = CHAIN) -> Reply:
    request = over_the_wire(request)
    step = Step.of(request.parameters)
    assert step is not None
    return await door.infer(request, identity, Context(Deadline.after_ms(60_000)), step)


def read(reply: Reply) -> InferResponse:
    return decode_response(reply.body.joined(), reply.body.header_length)


def shown(reply: Reply) -> int:
    """The OUTPUT, which must be all there is."""
    (tensor,) = read(reply).outputs
    assert tensor.name == "OUTPUT"
    return int(tensor.numpy()[0, 0])
