"""A model that answers as often as it is told, and a node that holds it, in this process or in one of its own.

The node is whole but for the models. Not here: models that stream for real (``edge``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InferenceFailed
from mesh.holdings import Holdings
from mesh.lifecycle import within
from mesh.messages import ModelLoad
from mesh.node import Node
from mesh.node_id import NodeIdentity
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.settings import MeshSettings
from mesh.values import ModelIdentity
from tests.builders import DIGEST
from tests.fakes import ScriptedModels, until
from tests.integration.doors import Door
from tests.nats import PATIENCE_S

COUNT = "count"
LOAD = ModelLoad(COUNT, "1", DIGEST, "READY", service_ms=5.0, decoupled=True)


class CountingModels(ScriptedModels):
    """One model, ``count``: it answers 0, 1, 2... up to the request's parameter ``times``, each with ``pad`` bytes.

    With the parameter ``fail_at`` or ``hold_at`` it fails, or waits for ``go``, in place of answering that number.
    """

    def __init__(self) -> None:
        super().__init__(LOAD)
        self.produced = 0
        self.running = 0
        self.begun = 0
        self.go = asyncio.Event()

    async def stream(
        self, request: InferRequest, identity: ModelIdentity, deadline: Deadline
    ) -> AsyncGenerator[WireBody, None]:
        said = request.parameters
        self.begun += 1
        self.running += 1
        try:
            for number in range(said["times"]):
                if number == said.get("hold_at"):
                    await self._held(deadline)
                if number == said.get("fail_at"):
                    raise InferenceFailed(f"it fails at {number}")
                deadline.check()
                self.produced += 1
                yield _answer(request, identity, number, said.get("pad", 0))
                await asyncio.sleep(0)
            if said["times"] == said.get("hold_at"):
                await self._held(deadline)
        finally:
            self.running -= 1

    async def _held(self, deadline: Deadline) -> None:
        try:
            await within(deadline.left_s(), self.go.wait())
        except asyncio.TimeoutError:
            raise DeadlineExceeded("it was still held at the deadline") from None

    async def ended(self) -> None:
        """Return once nothing runs."""
        await until(lambda: self.running == 0)


def _answer(request: InferRequest, identity: ModelIdentity, number: int, pad: int) -> WireBody:
    outputs = (
        Tensor("N", "INT64", (1,), struct.pack("<q", number)),
        Tensor("PAD", "UINT8", (pad,), bytes(pad)),
    )
    return encode_response(InferResponse(identity.name, identity.version, request.id, {}, outputs), request)


def asked(times: int, **parameters: int) -> dict[str, Any]:
    """A request as JSON."""
    tensor = {"name": "X", "datatype": "UINT8", "shape": [1], "data": [0]}
    return {"inputs": [tensor], "parameters": {"times": times} | parameters}


@contextlib.asynccontextmanager
async def counting_node(
    models: CountingModels, name: str, *, nats: str = "", **groups: Mapping[str, Any]
) -> AsyncIterator[Door]:
    """Serve ``models``; drained when left."""
    settings = {
        "node": {"name": name},
        "http": {"listen": "127.0.0.1:0", "grace_s": 5} | dict(groups.pop("http", {})),
        "nats": {"url": nats},
        "discovery": {"enabled": False} | dict(groups.pop("discovery", {})),
        **groups,
    }
    holdings = Holdings(local=models, models=lambda: tuple(models.loads), work=models.work)
    node = Node(MeshSettings.model_validate(settings), NodeIdentity(uuid.uuid4().hex, 1), "agent", holdings)
    async with node.running() as address:
        node.changed()
        try:
            yield Door(address, node.bound.grpc)
        finally:
            models.draining = True
            await node.drain()


@contextlib.asynccontextmanager
async def counting_process(
    name: str, *, nats: str = "", **groups: Mapping[str, Any]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Door]]:
    """The same in a process that may be killed."""
    said = json.dumps({"name": name, "nats": nats, **groups})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.streams", said, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        yield process, Door(line.decode().strip())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve(said: dict[str, Any]) -> None:
    models = CountingModels()
    async with counting_node(models, said.pop("name"), **said) as door:
        print(door.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
