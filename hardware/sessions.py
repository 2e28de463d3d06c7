"""The open sessions of one process, by key, and the explicit choice of the backend that opens them.

Models are loaded and unloaded on one thread, run on any. Not here: the backends, processes, threads.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import cast

from hardware.backend import Interrupt, Loaded, LoadOptions, RawTensor, Session, StreamingSession
from hardware.errors import BackendUnavailable, InvalidInput, ModelRefused, NotLoaded


def open_session(path: str, options: LoadOptions) -> Session:
    """Open a model with the backend it asks for, which is imported only now."""
    if options.backend.startswith("onnxruntime-"):
        from hardware import onnx_backend

        return onnx_backend.open_session(path, options)
    if options.backend == "tensorrt":
        from hardware import tensorrt_session

        return tensorrt_session.open_session(path, options)
    if options.backend == "python":
        from hardware import python_step

        return python_step.open_session(path, options)
    raise BackendUnavailable(f"there is no backend '{options.backend}'")


class Sessions:
    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        if key in self._open:
            raise ModelRefused(f"'{key}' is loaded already")
        session = open_session(path, options)
        self._open[key] = session
        return session.loaded

    def run(
        self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None = None
    ) -> list[RawTensor]:
        session = self._at(key)
        if session.loaded.decoupled:
            raise InvalidInput("the model answers any number of times, and was asked for one answer")
        return session.run(inputs, outputs, interrupt)

    def stream(
        self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]
    ) -> Generator[list[RawTensor], None, None]:
        session = self._at(key)
        if not session.loaded.decoupled:
            raise InvalidInput("the model answers once, and was asked for a stream")
        return cast(StreamingSession, session).stream(inputs, outputs)

    def _at(self, key: str) -> Session:
        session = self._open.get(key)
        if session is None:
            raise NotLoaded(f"'{key}' is not loaded")
        return session

    def unload(self, key: str) -> None:
        session = self._open.pop(key, None)
        if session is None:
            raise NotLoaded(f"'{key}' is not loaded")
        session.close()

    def discard(self, key: str) -> None:
        """Unload whatever is there."""
        if key in self._open:
            self.unload(key)

    def close(self) -> None:
        for key in list(self._open):
            self.unload(key)
