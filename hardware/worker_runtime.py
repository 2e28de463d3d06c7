"""A runtime in a worker process: crashes, leaks and hangs of a backend stay in there (DESIGN D6).

Tensors lie in the slots of two sealed arenas, messages go over a ``channel``. A run takes a slot or waits for one,
first come first served; the slot is free again when its reply was read or the worker is dead, never when the caller
gives up or abandons it. Results are copied out before they are looked at. Not here: the runs in their slots
(``worker_calls``), restarts and deadlines (the agent's), the process itself (``worker_process``), its other side
(``worker``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from hardware.backend import Loaded, LoadOptions, RawTensor, check_inputs
from hardware.channel import Channel
from hardware.errors import (
    BackendUnavailable,
    DeviceFault,
    HardwareError,
    NotLoaded,
    WorkerDied,
    from_code,
)
from hardware.frames import (
    DEVICE_FAULT_STATUS,
    Done,
    Failed,
    Load,
    Opened,
    Part,
    Ready,
    Refused,
    Reply,
    Request,
    Unload,
)
from hardware.parts import Parts
from hardware.worker_calls import Call, Calls, Results
from hardware.worker_process import WorkerOptions, WorkerProcess

_READY_TICKET = 0


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
        self._calls = Calls(self._options.slots)
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
        self._channel = Channel(process.pipes, self._on_reply, self._on_read, self._on_broken)
        self._calls.connected(process, self._channel)
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
        self._begin(Call(future, key, inputs, outputs))
        return future

    def stream(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Parts:
        parts = Parts(self._loop.create_future())
        self._begin(Call(parts.ended, key, inputs, outputs, parts))
        return parts

    def _begin(self, call: Call) -> None:
        try:
            if not self.alive:
                raise self._gone()
            loaded = self._loaded.get(call.key)
            if loaded is None:
                raise NotLoaded(f"'{call.key}' is not loaded")
            check_inputs(loaded.signature, call.inputs)
            self._calls.begin(call)
        except HardwareError as error:
            call.future.set_exception(error)

    def abandon(self, run: asyncio.Future[Results]) -> None:
        if self._calls.abandon(run):
            self._unload_idle()

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

    def _on_read(self) -> None:
        if self.alive:
            self._calls.begin_waiting()
        if self._leaving:
            self._unload_idle()

    def _unload_idle(self) -> None:
        """Unload what is leaving and has no run left, given up ones included: else the worker would wait for them."""
        for key in self._leaving.keys() - self._calls.busy():
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
            if (error := self._calls.ended(reply)) is not None:
                self._judge(error)
            return
        if isinstance(reply, Part):
            self._calls.part(reply)
            return
        answer = self._tickets.pop(_READY_TICKET if isinstance(reply, Ready) else reply.ticket, None)
        if answer is None:
            raise ValueError("nobody asked")
        if isinstance(reply, Refused):
            refused = from_code(reply.code, reply.text)
            if not answer.done():
                answer.set_exception(refused)
            self._judge(refused)
        elif not answer.done():
            answer.set_result(reply.loaded if isinstance(reply, Opened) else None)

    def _judge(self, error: HardwareError) -> None:
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
        self._calls.fail(make)
        pending = [*self._tickets.values(), *self._leaving.values()]
        self._leaving.clear()
        for future in pending:
            if not future.done():
                future.set_exception(make())
