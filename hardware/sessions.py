"""The open sessions of one process, by key, and the explicit choice of the backend that opens them.

Used by both runtimes, each on one thread. Not here: the backends, processes, threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from hardware.backend import Loaded, LoadOptions, RawTensor, Session
from hardware.errors import BackendUnavailable, ModelRefused, NotLoaded


def open_session(path: str, options: LoadOptions) -> Session:
    """Open a model with the backend it asks for, which is imported only now."""
    if options.backend.startswith("onnxruntime-"):
        from hardware import onnx_backend

        return onnx_backend.open_session(path, options)
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

    def get(self, key: str) -> Session:
        session = self._open.get(key)
        if session is None:
            raise NotLoaded(f"'{key}' is not loaded")
        return session

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> list[RawTensor]:
        return self.get(key).run(inputs, outputs)

    def unload(self, key: str) -> None:
        self.get(key)
        del self._open[key]

    def discard(self, key: str) -> None:
        """Unload whatever is there."""
        self._open.pop(key, None)

    def terminate(self) -> None:
        """Make every run in progress fail; for closing, the sessions are of no use after."""
        for session in list(self._open.values()):
            session.terminate()

    def close(self) -> None:
        self._open.clear()
