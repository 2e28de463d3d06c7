"""The right answers: those that are known, else those of ONNX Runtime on the CPU, in a worker and on one thread.

Not here: how far others may be from them (``compare``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hardware.acceptance.compare import Array, values
from hardware.acceptance.place import Desk, Opened, Place
from hardware.acceptance.subjects import Subject
from hardware.backend import LoadOptions, RawTensor
from hardware.errors import HardwareError, InvalidInput, RunFailed

UNLOAD_S = 60.0


class Reference:
    """Enter it to use it: its worker ends with it."""

    def __init__(self, desk: Desk) -> None:
        self._place = Place(desk, "onnxruntime-cpu")
        self._opened: dict[str, Opened] = {}

    async def __aenter__(self) -> Reference:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._place.__aexit__(None, None, None)

    def kill(self) -> None:
        """End the worker, which hangs."""
        self._place.kill()

    async def answer(self, subject: Subject, request: Sequence[RawTensor], *, known: bool = False) -> list[Array]:
        """With ``known`` the known answer, where there is one. Raises ``HardwareError``."""
        if known and subject.answer is not None:
            return [
                given.astype("f4") if given.dtype.kind == "f" else given for given in subject.answer(*values(request))
            ]
        return await (await self._open(subject)).ask(request)

    async def fitted(self, subject: Subject) -> Subject:
        """With sizes for what is free that the model takes. Raises ``HardwareError``."""
        opened = await self._open(subject)
        failed: HardwareError = RunFailed("no input was tried")
        for size in subject.sizes():
            sized = subject.with_size(size)
            try:
                await opened.ask(sized.request())
            except (InvalidInput, RunFailed) as error:
                failed = error
            else:
                return sized
        raise RunFailed(f"no input was found that it takes, declare [warmup] in model.toml: {failed.text}")

    async def done_with(self, subject: Subject) -> None:
        opened = self._opened.pop(subject.name, None)
        if opened is None or not opened.runtime.alive:
            return
        unloading = asyncio.ensure_future(opened.runtime.unload(opened.key))
        await asyncio.wait({unloading}, timeout=UNLOAD_S)
        if not unloading.done():  # behind a run that hangs
            self.kill()
        with contextlib.suppress(HardwareError):  # whatever it died of was told where it was asked
            await unloading

    async def _open(self, subject: Subject) -> Opened:
        opened = self._opened.get(subject.name)
        if opened is None or not opened.runtime.alive:
            opened = await self._place.load(subject, LoadOptions(threads=1))
            self._opened[subject.name] = opened
        return opened
