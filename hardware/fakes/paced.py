"""A device of a chosen speed: the real ONNX Runtime, each run of which holds the thread until a profile's time is over.

For benchmarks of routing, in which a mesh of boxes of very different speed must fit on one machine: the answer is the
model's own, only its time is made up. A run of n rows ends ``a + c * n`` milliseconds after it began, or when the model
itself is done if that is later. ``FAKE_PACED_PROFILES`` is JSON, ``{"graph name": [a, c]}``; a model that it does not
name is not held. The file ``FAKE_PACED_SLOWDOWN``, where the variable names one that exists, holds "begin end factor",
moments of the monotonic clock between which runs that begin take ``factor`` times as long. What is called off is held
to its end: a GPU does not stop either. Not here: what a run costs (the benchmark says). No setting of the product leads
here.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

PROFILES = "FAKE_PACED_PROFILES"
SLOWDOWN = "FAKE_PACED_SLOWDOWN"


def held_ms(profile: tuple[float, float], rows: int, factor: float = 1.0) -> float:
    """How long a run of so many rows lasts."""
    a, c = profile
    return (a + c * rows) * factor


def slowdown(path: str, now: float) -> float:
    """The factor that the file names for this moment; 1 where there is no file."""
    try:
        begin, end, factor = map(float, Path(path).read_text().split())
    except FileNotFoundError:
        return 1.0
    return factor if begin <= now < end else 1.0


class _OfSomeSpeed:
    """Laid over the real ``InferenceSession``."""

    def __init__(self, path: str, *positional: Any, **more: Any) -> None:
        super().__init__(path, *positional, **more)  # type: ignore[call-arg]
        real: Any = super()
        profile = json.loads(os.environ.get(PROFILES, "{}")).get(real.get_modelmeta().graph_name)
        self._profile: tuple[float, float] | None = tuple(profile) if profile is not None else None
        self._slowdown = os.environ.get(SLOWDOWN, "")

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        began = time.monotonic()
        real: Any = super()
        answer = real.run(output_names, input_feed, run_options)
        if self._profile is not None:
            rows = next(iter(input_feed.values())).shape[0]
            factor = slowdown(self._slowdown, began) if self._slowdown else 1.0
            left_s = held_ms(self._profile, rows, factor) / 1e3 - (time.monotonic() - began)
            time.sleep(max(left_s, 0.0))
        return answer


def paced(real: ModuleType) -> ModuleType:
    """A module with everything of ``real``, whose sessions take their time."""
    module = ModuleType(real.__name__, real.__doc__)
    module.__dict__.update(real.__dict__)
    session = type("InferenceSession", (_OfSomeSpeed, real.InferenceSession), {})
    module.__dict__.update(__fake__=True, InferenceSession=session)
    return module
