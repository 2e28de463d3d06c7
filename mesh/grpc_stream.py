"""``ModelStreamInfer``: a stream of requests, each answered once or many times on the stream of answers.

Requests run side by side, those of one sequence one after the other; no more are read than may run. What fails is
answered on the stream, which goes on. Not here: the messages (``grpc_codec``, ``grpc_reply``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from mesh.dataplane import Dataplane, unexpected
from mesh.errors import Draining, MeshError
from mesh.grpc_door import CALLS, GrpcDoor
from mesh.grpc_errors import code_of, trailers
from mesh.grpc_reply import encode_end, encode_failure, encode_part
from mesh.lifecycle import Tasks
from mesh.oip.request import InferRequest

MOST = 64
"""Requests of one stream that run at a time."""
EMPTY_FINAL = "triton_enable_empty_final_response"

METHOD = CALLS["ModelStreamInfer"]


class Stream:
    """One call of ``ModelStreamInfer``. ``leaving`` is set when the door reads no more of it."""

    def __init__(self, door: GrpcDoor, dataplane: Dataplane, context: Any, leaving: asyncio.Event) -> None:
        self._door = door
        self._dataplane = dataplane
        self._context = context
        self._leaving = leaving
        self._tasks = Tasks("grpc stream")
        self._running: set[asyncio.Task[Any]] = set()
        self._free = asyncio.Semaphore(MOST)
        self._writing = asyncio.Lock()
        self._last: dict[object, asyncio.Task[Any]] = {}
        """The latest request of each sequence."""

    async def serve(self, messages: Any) -> None:
        """Returns when the caller sends no more and every request was answered; leaving it ends what runs."""
        async with self._tasks:
            reading = self._tasks.start(self._read(messages), "reading")
            leaving = self._tasks.start(self._leaving.wait(), "leaving")
            await asyncio.wait([reading, leaving], return_when=asyncio.FIRST_COMPLETED)
            cut = not reading.done()
            if cut:
                reading.cancel()
                await asyncio.wait([reading])
            if self._running:
                await asyncio.wait(self._running)
            if cut:
                error = Draining("the node is draining: open the stream elsewhere")
                await self._context.abort(code_of(error), error.text, trailers(error))

    async def _read(self, messages: Any) -> None:
        async for data in messages:
            await self._free.acquire()
            task = self._tasks.start(self._answer(data, time.monotonic()), "request")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(self, data: bytes, arrived: float) -> None:
        request_id = ""
        try:
            message = METHOD.parse(data, self._dataplane.limits)
            request_id = message.id
            request = self._door.read(message, self._context)
            await self._in_turn(request)
            await self._pass_on(request, arrived)
        except MeshError as error:
            await self._write(encode_failure(error.text, request_id))
        except Exception:  # noqa: BLE001 - a door answers whatever happens; logged under an id
            await self._write(encode_failure(unexpected(METHOD.name).text, request_id))
        finally:
            self._free.release()

    async def _in_turn(self, request: InferRequest) -> None:
        """Requests of a sequence go on one after the other, whatever became of those before."""
        sequence = request.parameters.get("sequence_id")
        if not sequence:
            return
        key, task = (request.model, sequence), asyncio.current_task()
        before = self._last.get(key)
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self._last[key] = task
        task.add_done_callback(lambda done: self._last.pop(key, None) if self._last.get(key) is done else None)
        if before is not None:
            await asyncio.wait([before])

    async def _pass_on(self, request: InferRequest, arrived: float) -> None:
        """Every answer says whether it is the last; where a model answers any number of times nobody knows until the
        end, which is told by a part of its own if the caller wants it."""
        wants_end = bool(request.parameters.pop(EMPTY_FINAL, False))
        decoupled = self._dataplane.decoupled(request)
        async with contextlib.aclosing(self._dataplane.stream(request, arrived, None, want_load=False)) as replies:
            async for reply in replies:
                await self._write(encode_part(reply, final=not decoupled))
        if decoupled and wants_end:
            await self._write(encode_end(request.model, request.version, request.id))

    async def _write(self, part: bytes) -> None:
        async with self._writing:
            await self._context.write(part)
