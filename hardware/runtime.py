"""The seam an agent runs models through: a place where sessions live. Two implementations, one contract suite.

``worker_runtime`` keeps them in a process of their own, ``inline_runtime`` in this one (DESIGN D6). Not here: which
models are loaded where, restarts, warm-up, deadlines: the agent's (``edge``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from hardware.backend import Loaded, LoadOptions, RawTensor
from hardware.parts import Parts


class Runtime(Protocol):
    """Belongs to one event loop; every call is made on it."""

    on_death: Callable[[str], None] | None
    """Called once, on the loop, with the reason, when the runtime dies by anything but :meth:`close`."""

    async def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        """Open the model file at ``path`` under ``key``, any text of the caller's that is not in use yet.

        Raises ``ModelRefused``, ``BackendUnavailable``, ``DeviceOutOfMemory`` or ``WorkerDied``.
        """

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> asyncio.Future[list[RawTensor]]:
        """Run a loaded model; no ``outputs`` means all, in declared order.

        Every failure arrives through the future: ``NotLoaded``, ``InvalidInput``, ``TensorTooLarge``, ``RunFailed``,
        ``DeviceOutOfMemory``, ``WorkerDied``. The result's memory is the caller's own. At most ``options.instances`` of
        a model go on at the same time; more wait in order. Cancelling the future gives up the answer, not the run.
        """

    def stream(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Parts:
        """As :meth:`run`, of a decoupled model, which answers any number of times.

        A model that answers once and is asked for a stream fails with ``InvalidInput``, as does a decoupled one that is
        asked for a run.
        """

    def abandon(self, run: asyncio.Future[list[RawTensor]]) -> None:
        """Nobody wants this run any more: it is not begun, or ended early where its backend can. Its future fails with
        ``RunFailed``, or is answered if the run was quicker. Of a stream it is ``Parts.ended``."""

    async def unload(self, key: str) -> None:
        """Close the model once the runs before this call are done; raises ``NotLoaded``."""

    async def close(self) -> None:
        """Fail what is pending with ``WorkerDied`` and release everything. Safe to call again."""

    @property
    def alive(self) -> bool: ...

    @property
    def pid(self) -> int:
        """The process the models run in."""
