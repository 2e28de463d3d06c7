"""Stand-in for ``cuda.bindings.runtime``: the one fake runtime of this process. Not here: what it does (``cudart``)."""

from __future__ import annotations

from typing import Any

from hardware.fakes import cudart

__fake__ = True


def __getattr__(name: str) -> Any:
    if name.startswith("cuda"):
        return getattr(cudart.current(), name)
    raise AttributeError(name)
