"""The SDK for code without an event loop: the calls of :class:`mesh.client.Client`, on a loop in a thread of their own.

Any thread may call, one client serves them all. Not here: what the calls do.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from mesh.client import Client
from mesh.client_calls import NOT_OPEN
from mesh.client_sequence import ClientSequence
from mesh.loop_thread import LoopThread
from mesh.nats_bus import NatsOptions
from mesh.result import Inputs, Result
from mesh.values import ModelMetadata


class SyncClient:
    """A context manager; arguments and errors are those of :class:`mesh.client.Client`.

    Left open it ends with the interpreter. It does not survive ``os.fork``: open one in each process.
    """

    def __init__(
        self,
        *urls: str,
        mesh: str | None = None,
        deadline_ms: float = 10_000.0,
        retry_ratio: float = 0.1,
        nats_token: str = "",
        nats: NatsOptions | None = None,
    ) -> None:
        self._make = functools.partial(
            Client, *urls, mesh=mesh, deadline_ms=deadline_ms, retry_ratio=retry_ratio, nats_token=nats_token, nats=nats
        )
        self._thread = LoopThread("mesh-client")
        self._client: Client | None = None

    def __enter__(self) -> SyncClient:
        self._thread.start()
        atexit.register(self._thread.leave)
        try:
            self._client = self._thread.call(self._open())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self._thread.leave)
        client, self._client = self._client, None
        try:
            if client is not None and self._thread.open:
                self._thread.call(client.__aexit__(None, None, None))
        finally:
            self._thread.stop()

    async def _open(self) -> Client:
        return await self._make().__aenter__()

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Result:
        """As :meth:`Client.infer`."""
        return self._thread.call(
            self._opened.infer(
                model, inputs, version=version, outputs=outputs, deadline_ms=deadline_ms, parameters=parameters
            )
        )

    def stream(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Generator[Result, None, None]:
        """As :meth:`Client.stream`: a generator, leaving the loop over it ends the run."""
        answers = _Answers(
            self._opened.stream(
                model, inputs, version=version, outputs=outputs, deadline_ms=deadline_ms, parameters=parameters
            )
        )
        try:
            while (answer := self._thread.call(answers.next())) is not None:
                yield answer
        finally:
            self._thread.end(answers.close())

    def sequence(
        self, model: str, *, version: str = "", sequence_id: int | str = 0, deadline_ms: float | None = None
    ) -> SyncSequence:
        """As :meth:`Client.sequence`, for ``with``."""
        sequence = self._opened.sequence(model, version=version, sequence_id=sequence_id, deadline_ms=deadline_ms)
        return SyncSequence(self._thread, sequence)

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """As :meth:`Client.metadata`."""
        return self._thread.call(self._opened.metadata(model, version))

    def nodes(self) -> list[dict[str, Any]]:
        """As :meth:`Client.nodes`."""
        return self._thread.call(self._opened.nodes())

    def models(self) -> list[str]:
        """As :meth:`Client.models`."""
        return self._thread.call(self._opened.models())

    @property
    def doors(self) -> list[str]:
        """As :attr:`Client.doors`."""
        return self._thread.call(_doors(self._opened))

    @property
    def _opened(self) -> Client:
        if self._client is None:
            raise RuntimeError(NOT_OPEN)
        return self._client


class SyncSequence:
    """A sequence in plain code, for ``with``. Steps of several threads go one by one."""

    def __init__(self, thread: LoopThread, sequence: ClientSequence) -> None:
        self._thread = thread
        self._sequence = sequence
        self.id = sequence.id

    def __enter__(self) -> SyncSequence:
        return self

    def __exit__(self, *_: object) -> None:
        """As :meth:`ClientSequence.__aexit__`."""
        self._thread.end(self._sequence.__aexit__())

    def infer(
        self,
        inputs: Inputs,
        *,
        end: bool = False,
        outputs: Sequence[str] = (),
        deadline_ms: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Result:
        """As :meth:`ClientSequence.infer`."""
        return self._thread.call(
            self._sequence.infer(inputs, end=end, outputs=outputs, deadline_ms=deadline_ms, parameters=parameters)
        )


class _Answers:
    """Of one stream, on the loop's side: Ctrl-C may want it closed while an answer is still awaited."""

    def __init__(self, answers: AsyncGenerator[Result, None]) -> None:
        self._answers = answers
        self._waiting: asyncio.Task[Any] | None = None

    async def next(self) -> Result | None:
        """None at the end."""
        self._waiting = asyncio.current_task()
        try:
            return await anext(self._answers, None)
        finally:
            self._waiting = None

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
        await self._answers.aclose()


async def _doors(client: Client) -> list[str]:
    return client.doors
