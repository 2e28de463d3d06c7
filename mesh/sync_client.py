"""The SDK for code without an event loop: the calls of :class:`mesh.client.Client`, on a thread of their own.

Not here: what the calls do.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from mesh.client import Client
from mesh.client_sequence import ClientSequence
from mesh.result import Inputs, Result
from mesh.values import ModelMetadata

T = TypeVar("T")


class SyncClient:
    """A context manager; arguments are those of :class:`mesh.client.Client`."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self._make = functools.partial(Client, *urls, **options)
        self._client: Client | None = None

    def __enter__(self) -> SyncClient:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mesh-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._call(self._enter())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        client, self._client = self._client, None
        try:
            if client is not None:
                self._call(client.__aexit__(None, None, None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _enter(self) -> Client:
        return await self._make().__aenter__()

    def infer(self, model: str, inputs: Inputs, **options: Any) -> Result:
        """As :meth:`Client.infer`."""
        return self._call(self._opened.infer(model, inputs, **options))

    def stream(self, model: str, inputs: Inputs, **options: Any) -> Iterator[Result]:
        """As :meth:`Client.stream`: a generator, closing it ends the run."""
        answers = self._opened.stream(model, inputs, **options)
        try:
            while (answer := self._call(_next(answers))) is not None:
                yield answer
        finally:
            self._call(answers.aclose())

    def sequence(self, model: str, **options: Any) -> SyncSequence:
        """As :meth:`Client.sequence`, for ``with``."""
        return SyncSequence(self._call, self._opened.sequence(model, **options))

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        return self._call(self._opened.metadata(model, version))

    def nodes(self) -> list[dict[str, Any]]:
        return self._call(self._opened.nodes())

    def models(self) -> list[str]:
        return self._call(self._opened.models())

    @property
    def _opened(self) -> Client:
        if self._client is None:
            raise RuntimeError("the client is not open: use it in a with statement")
        return self._client

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C ends the work too
            future.cancel()
            raise


class SyncSequence:
    """A sequence in plain code, for ``with``."""

    def __init__(self, call: Callable[[Coroutine[Any, Any, Result]], Result], sequence: ClientSequence) -> None:
        self._call = call
        self._sequence = sequence
        self.id = sequence.id

    def __enter__(self) -> SyncSequence:
        return self

    def __exit__(self, *_: object) -> None:
        """As :meth:`ClientSequence.__aexit__`."""

    def infer(self, inputs: Inputs, **options: Any) -> Result:
        """As :meth:`ClientSequence.infer`."""
        return self._call(self._sequence.infer(inputs, **options))


async def _next(answers: AsyncIterator[T]) -> T | None:
    """None at the end."""
    async for answer in answers:
        return answer
    return None
