"""A runtime in a worker process: crashes, leaks and hangs of a backend stay in there (DESIGN D6).

Tensors lie in the slots of two sealed arenas, messages go over a ``channel``. A run takes a slot or waits for one,
first come first served; the slot is free again when its reply was read or the worker is dead, never when the caller
gives up or abandons it. Results are copied out before they are looked at. Not here: restarts and deadlines (the
agent's), the process itself (``worker_process``), its other side (``worker``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from hardware.arena import Slot, SlotTable, copy_out, put
from hardware.backend import Loaded, LoadOptions, RawTensor, check_inputs
from hardware.channel import Channel
from hardware.errors import (
    BackendUnavailable,
    DeviceFault,
    HardwareError,
    NotLoaded,
    RunFailed,
    WorkerDied,
    from_code,
)
from hardware.frames import DEVICE_FAULT_STATUS, Done, Failed, Load, Opened, Ready, Refused, Reply, Request, Run, Unload
from hardware.worker_process import WorkerOptions, WorkerProcess

_READY_TICKET = 0

Results = list[RawTensor]


class _Call(NamedTuple):
    """A run as it was asked for."""

    future: asyncio.Future[Results]
    key: str
    inputs: Sequence[RawTensor]
    outputs: Sequence[str]


class WorkerRuntime:
    """See :class:`hardware.runtime.Runtime`. One object is one process: after a death, start a new object.

    Resident memory beside the models is what the largest runs wrote into each slot that was ever in use at once, at
    most ``2 * slots * slot_bytes``.
    """

    def __init__(self, options: WorkerOptions | None = None, on_death: Callable[[str], None] | None = None) -> None:
        self.on_death = on_death
        self._options = options or WorkerOptions()
        self._alive = False
        """Whether the process is there; of use it is until it is lost or closing."""
        self._started = False
        self._lost = False
        self._closing = False
        self._fault = ""
        self._gone: Callable[[], HardwareError] = lambda: NotLoaded("the runtime is not started")
        self._slots = SlotTable(self._options.slots)
        self._running: dict[Slot, tuple[asyncio.Future[Results], str]] = {}
        """Future and key of the run in each slot; its inputs are copied, and let go."""
        self._waiting: deque[_Call] = deque()
        self._loaded: dict[str, Loaded] = {}
        self._leaving: dict[str, asyncio.Future[Any]] = {}
        """Models to be unloaded when their last runs are answered."""
        self._tickets: dict[int, asyncio.Future[Any]] = {}
        self._last_ticket = _READY_TICKET

    async def start(self) -> None:
        """Spawn the process and return once it listens; raises ``BackendUnavailable`` or ``WorkerDied``."""
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        ready = self._tickets[_READY_TICKET] = self._loop.create_future()
        try:
            self._process = process = WorkerProcess(self._options)
        except OSError as error:
            raise BackendUnavailable(f"a worker process cannot be started: {error.strerror}") from error
        self._alive = True
        self._channel = Channel(process.pipes, self._on_reply, self._dispatch_waiting, self._on_broken)
        self._loop.add_reader(process.exit_fd, self._on_exit)
        try:
            await ready
        except BaseException:
            self.kill()
            await self.close()
            raise
        self._started = True

    async def __aenter__(self) -> WorkerRuntime:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def alive(self) -> bool:
        return self._alive and not self._closing and not self._lost

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int | None:
        """Memory of the worker, without the arenas it shares with this process; None unless it is alive. Blocks."""
        return self._process.resident_bytes() if self._alive else None

    async def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        answer = self._ask(lambda ticket: Load(ticket, key, path, options))
        try:
            loaded: Loaded = await answer
        except asyncio.CancelledError:
            with contextlib.suppress(HardwareError):  # nobody would ever unload it
                self._ask(lambda ticket: Unload(ticket, key)).cancel()
            raise
        self._loaded[key] = loaded
        return loaded

    async def unload(self, key: str) -> None:
        if self.alive and self._loaded.pop(key, None) is None:
            raise NotLoaded(f"'{key}' is not loaded")
        if not self.alive:
            raise self._gone()
        answer = self._leaving[key] = self._loop.create_future()
        self._unload_idle()
        await answer

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[Results]:
        future: asyncio.Future[Results] = self._loop.create_future()
        call = _Call(future, key, inputs, outputs)
        try:
            if not self.alive:
                raise self._gone()
            loaded = self._loaded.get(key)
            if loaded is None:
                raise NotLoaded(f"'{key}' is not loaded")
            check_inputs(loaded.signature, inputs)
            slot = self._slots.take()
            if slot is None:
                self._waiting.append(call)
            else:
                self._dispatch(slot, call)
        except HardwareError as error:
            future.set_exception(error)
        return future

    def abandon(self, run: asyncio.Future[Results]) -> None:
        for slot, (future, _) in self._running.items():
            if future is run:
                self._channel.abandon(slot)
                return
        for call in self._waiting:
            if call.future is run:
                self._waiting.remove(call)
                if not run.done():
                    run.set_exception(RunFailed("the run was abandoned before it began"))
                self._unload_idle()
                return

    def kill(self) -> None:
        """End the process now, for one that hangs: everything in it fails, and ``on_death`` is called."""
        if self._alive:
            self._process.kill()

    async def close(self) -> None:
        if not self._alive:
            return
        if not self._closing:
            self._closing = True
            self._gone = lambda: NotLoaded("the runtime is closed")
            self._fail_all(lambda: WorkerDied("the runtime was closed"))
            self._channel.hang_up()
        try:
            await asyncio.wait({self._exited}, timeout=self._options.close_grace_s)
        finally:
            self.kill()
        await asyncio.shield(self._exited)

    def _dispatch(self, slot: Slot, call: _Call) -> None:
        """Hand ``call`` to the worker in ``slot``, which is given back where that fails."""
        try:
            placed = put(self._process.inputs.slot(slot.number), call.inputs)
            request = Run(slot.number, slot.generation, call.key, placed, list(call.outputs))
            self._channel.send(request, at_once=not self._running)
        except BaseException:
            self._slots.release(slot)
            raise
        self._running[slot] = call.future, call.key

    def _dispatch_waiting(self) -> None:
        while self._waiting and self.alive:
            if self._waiting[0].future.done():  # given up while it waited
                self._waiting.popleft()
                continue
            slot = self._slots.take()
            if slot is None:
                return
            call = self._waiting.popleft()
            try:
                self._dispatch(slot, call)
            except HardwareError as error:
                call.future.set_exception(error)
        if self._leaving:
            self._unload_idle()

    def _unload_idle(self) -> None:
        """Unload what is leaving and has no run left, given up ones included: else the worker would wait for them."""
        busy = {key for _, key in self._running.values()} | {call.key for call in self._waiting}
        for key in self._leaving.keys() - busy:
            self._ask(partial(Unload, key=key), self._leaving.pop(key))

    def _ask(self, request: Callable[[int], Request], answer: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a request that needs no slot."""
        if not self.alive:
            raise self._gone()
        self._last_ticket += 1
        self._channel.send(request(self._last_ticket), at_once=True)
        answer = self._tickets[self._last_ticket] = answer or self._loop.create_future()
        return answer

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, (Done, Failed)):
            self._on_run_reply(reply)
            return
        answer = self._tickets.pop(_READY_TICKET if isinstance(reply, Ready) else reply.ticket, None)
        if answer is None:
            raise ValueError("nobody asked")
        if isinstance(reply, Refused):
            self._fail(answer, from_code(reply.code, reply.text))
        elif not answer.done():
            answer.set_result(reply.loaded if isinstance(reply, Opened) else None)

    def _on_run_reply(self, reply: Done | Failed) -> None:
        slot = Slot(reply.slot, reply.generation)
        future, _ = self._running.get(slot, (None, ""))
        if future is None:
            raise ValueError(f"slot {slot.number} is not in use")
        if isinstance(reply, Failed):
            self._fail(future, from_code(reply.code, reply.text))
        elif not future.done():
            future.set_result(copy_out(self._process.outputs.slot(slot.number), reply.outputs))
        del self._running[slot]
        self._slots.release(slot)

    def _fail(self, future: asyncio.Future[Any], error: HardwareError) -> None:
        if not future.done():
            future.set_exception(error)
        if isinstance(error, DeviceFault):  # the worker's last words: it is ending
            text = f"the worker process ended itself after a device fault: {error.text}"
            self._lose(WorkerDied(text, exit_code=DEVICE_FAULT_STATUS), lambda: DeviceFault(error.text))

    def _on_broken(self, reason: str) -> None:
        """A worker that does not speak is of no use; a hang-up is nearly always the first sign of its end."""
        self._fault = reason
        self._process.kill(hung_up=not reason)

    def _on_exit(self) -> None:
        """The process has ended: take the replies it still wrote, fail what it leaves, release everything."""
        self._loop.remove_reader(self._process.exit_fd)
        self._alive = False
        self._channel.drain()
        self._channel.close()
        end = self._process.reap()
        end.text = f"{end.text} {self._fault}".rstrip()
        self._lose(end)
        self._exited.set_result(None)

    def _lose(self, death: WorkerDied, answer: Callable[[], HardwareError] | None = None) -> None:
        """Tell everybody, once: what is pending by ``answer`` (if it is not the death itself), and ``on_death``."""
        if self._lost:
            return
        self._lost = True
        if not self._closing:
            self._gone = lambda: WorkerDied(death.text, exit_code=death.exit_code, signal=death.signal)
        self._fail_all(answer or self._gone)
        if self.on_death is not None and self._started and not self._closing:
            self.on_death(death.text)

    def _fail_all(self, make: Callable[[], HardwareError]) -> None:
        """Fail every pending future; slots stay taken until their replies are read."""
        runs = [future for future, _ in self._running.values()] + [call.future for call in self._waiting]
        pending = [*runs, *self._tickets.values(), *self._leaving.values()]
        self._waiting.clear()
        self._leaving.clear()
        for future in pending:
            if not future.done():
                future.set_exception(make())
