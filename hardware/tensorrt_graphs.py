"""CUDA graphs of one instance: for the input shapes used most, a context of its own and what it puts on the stream.

NVIDIA's documentation leaves it undefined what a graph does once the context it was captured from has been told another
shape, so each graph keeps a context that is never told anything else. A graph is only ever faster, never needed:
whatever fails about one turns it off for its shapes, and the run goes the plain way. Not here: what is captured
(``EngineContext.enqueue``), the copies around it (``tensorrt_instance``).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from hardware.cuda import Cuda, Graph, Stream
from hardware.errors import DeviceFault, HardwareError
from hardware.tensorrt_context import EngineContext

log = logging.getLogger(__name__)

GRAPHS = 8
"""Most graphs that one instance keeps; the one unused for longest gives way."""
KNOWN = 256
"""Most shapes that are remembered: those seen once, and those that failed."""

Key = tuple[int, tuple[tuple[int, ...], ...]]
"""Profile and the shape of each input."""


class Captured:
    """A context kept for one key, and its graph once there is one."""

    def __init__(self, key: Key, context: EngineContext) -> None:
        self.key = key
        self.context = context
        self.graph: Graph | None = None

    def drop_graph(self) -> None:
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def close(self) -> None:
        self.drop_graph()
        self.context.close()


class Graphs:
    """``open_context`` makes a context that shares its memory with the instance's others."""

    def __init__(self, cuda: Cuda, open_context: Callable[[], EngineContext]) -> None:
        self._cuda = cuda
        self._open_context = open_context
        self._captured: OrderedDict[Key, Captured] = OrderedDict()
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._off: OrderedDict[Key, None] = OrderedDict()

    def find(self, key: Key) -> Captured | None:
        """The keeper of these shapes, made when they come for the second time; None to go the plain way.

        To be called while the stream is idle: another shape's graph may be closed for it.
        """
        found = self._captured.get(key)
        if found is not None:
            self._captured.move_to_end(key)
            return found
        if key in self._off or not self._again(key):
            return None
        while len(self._captured) >= GRAPHS:
            self._captured.popitem(last=False)[1].close()
        try:
            captured = Captured(key, self._open_context())
        except DeviceFault:
            raise
        except HardwareError as error:
            self._turn_off(key, error)
            return None
        self._captured[key] = captured
        return captured

    def capture(self, captured: Captured, stream: Stream) -> None:
        """Record a graph after a plain run of the context; raises ``DeviceFault`` alone."""
        captured.drop_graph()
        try:
            captured.graph = self._cuda.capture(stream, lambda: captured.context.enqueue(stream))
        except DeviceFault:
            raise
        except HardwareError as error:
            self._turn_off(captured.key, error)

    def forget(self) -> None:
        """Close everything that depends on a context whose state is unknown after a failure."""
        while self._captured:
            self._captured.popitem()[1].close()

    def _again(self, key: Key) -> bool:
        if key in self._seen:
            del self._seen[key]
            return True
        _remember(self._seen, key)
        return False

    def _turn_off(self, key: Key, error: HardwareError) -> None:
        log.warning("no CUDA graph for input shapes %s: %s", key[1], error.text)
        _remember(self._off, key)
        captured = self._captured.pop(key, None)
        if captured is not None:
            captured.close()


def _remember(keys: OrderedDict[Key, None], key: Key) -> None:
    keys[key] = None
    if len(keys) > KNOWN:
        keys.popitem(last=False)
