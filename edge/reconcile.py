"""What to load and what to unload, so that a node serves what its repository says.

New before old: what serves goes only when something that replaces it is READY, so a bad new version changes nothing for
callers. Pure: values in, a plan out. Not here: the repository (``repository``), acting on the plan (``control``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge.repository import StoredModel
from mesh.values import InstanceState


class Standing(NamedTuple):
    """One version as it stands on this node."""

    stored: StoredModel
    state: InstanceState
    evicted: bool = False

    @property
    def leaving(self) -> bool:
        return self.state == "DRAINING" and not self.evicted


class Changes(NamedTuple):
    """``load`` are positions in what is wanted, ``unload`` in what stands."""

    load: tuple[int, ...]
    unload: tuple[int, ...]


def reconcile(wanted: Sequence[StoredModel], standing: Sequence[Standing]) -> Changes:
    """Compare the versions of one model. ``wanted`` is empty where the model is to go altogether."""
    kept = [None if s.leaving else next((i for i, w in enumerate(wanted) if w.same(s.stored)), None) for s in standing]
    load = tuple(i for i in range(len(wanted)) if i not in kept)
    ready = [wanted[i] for i, s in zip(kept, standing, strict=True) if i is not None and s.state == "READY"]
    unload = tuple(
        at
        for at, (i, s) in enumerate(zip(kept, standing, strict=True))
        if i is None and not s.leaving and _may_go(s, wanted, ready)
    )
    return Changes(load, unload)


def _may_go(old: Standing, wanted: Sequence[StoredModel], ready: Sequence[StoredModel]) -> bool:
    """Whether nobody misses ``old``, which is not wanted any more."""
    if not wanted or (old.state != "READY" and not old.evicted):
        return True
    version = old.stored.identity.version
    if any(w.identity.version == version for w in wanted):  # other bytes or declarations under the same number
        return any(w.identity.version == version for w in ready)
    return bool(ready)
