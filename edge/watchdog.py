"""The watchdog: who answered nothing for a while is asked for an inference, so that READY stays true (DESIGN D9).

It asks through the queue behind everybody else, with the inputs of the warm-up, and only who has no request at the
moment: traffic is the better proof. Not here: runs that hang under traffic (``executor``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from edge.executor import Executor
from edge.instance import Instance
from edge.settings import ModelsSettings
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InstanceLost, MeshError, ModelNotReady, Overloaded

log = logging.getLogger(__name__)

LAST = 1 << 30
"""A class of priority behind all others."""
LOOKS = 10
"""Times that an idle model is looked at in ``watchdog_s``."""


class Watchdog:
    """``give_up`` ends and restarts what an instance runs in."""

    def __init__(
        self,
        settings: ModelsSettings,
        executor: Executor,
        instances: Callable[[], Iterable[Instance]],
        give_up: Callable[[Instance, str], None],
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._instances = instances
        self._give_up = give_up

    async def run(self) -> None:
        """Until cancelled; returns at once where the watchdog is off."""
        idle_s = self._settings.watchdog_s
        while idle_s > 0:
            await asyncio.sleep(idle_s / LOOKS)
            now = time.monotonic()
            for instance in [i for i in self._instances() if is_due(i, now, idle_s)]:
                await self._ask(instance)

    async def _ask(self, instance: Instance) -> None:
        warmed, served = instance.warmed, instance.served
        if warmed is None or not is_due(instance, time.monotonic(), self._settings.watchdog_s):
            return
        runtime = served.runtime
        deadline = Deadline.after_ms(self._settings.watchdog_limit_s * 1e3)
        try:
            await self._answer(instance, warmed.inputs, deadline)
        except (Overloaded, ModelNotReady, InstanceLost):
            return  # traffic came, or it is being seen to already
        except DeadlineExceeded:
            if runtime is None or served.runtime is not runtime or self._executor.oldest(runtime) is not served:
                return  # it only waited for others
            why = f"it did not answer the watchdog within {self._settings.watchdog_limit_s:g} s"
        except MeshError as error:
            why = f"it failed the watchdog's inference: {error.text}"
        else:
            instance.checked += 1
            return
        if served.runtime is runtime and instance.state == "READY":
            log.error("model %s: %s", instance.name, why)
            self._give_up(instance, why)

    async def _answer(self, instance: Instance, inputs: list[RawTensor], deadline: Deadline) -> None:
        """One inference; of a decoupled model its first answer, or its end without any."""
        executor, served = self._executor, instance.served
        if instance.loaded is None or not instance.loaded.decoupled:
            await executor.infer(served, inputs, (), deadline, LAST)
            return
        answers_of = executor.streams.stream
        async with contextlib.aclosing(answers_of(served, inputs, (), deadline, LAST, probe=True)) as answers:
            await anext(answers, None)


def is_due(instance: Instance, now: float, idle_s: float) -> bool:
    """Whether nothing was asked of it, and nothing answered, for so long."""
    last = max(instance.served.last_done, instance.served.last_used, instance.ready_at)
    return instance.state == "READY" and instance.served.in_flight == 0 and now - last >= idle_s
