"""The policies of the comparison by name: the product's, with its own defaults, and all others, with tuned parameters.

Not here: any rule; tuning (tuning.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from mesh.balancer import OURS
from tests.bench.offload import policies
from tests.bench.offload.ablations import POLICIES
from tests.bench.offload.ours import Ours
from tests.bench.offload.policy import Policy

Factory = Callable[[], Policy]
"""Makes one policy for one router. It goes to other processes, so it must be a class or a partial function."""

REFERENCE = "omniscient"
"""It knows the truth; not a bound."""
PRODUCT = "ours"
DIAL = ("ours-fastest", "ours", "ours-thrifty")
"""The operator's dial, from fastest to cheapest, as far as there are such policies."""


def names() -> list[str]:
    return [*POLICIES, *(name for name in policies.NAMES if name not in POLICIES)]


def is_ours(name: str) -> bool:
    return name == PRODUCT or name.startswith(f"{PRODUCT}-")


def is_part(name: str) -> bool:
    """Whether it is ours with something taken away, or its dial turned."""
    return name.startswith(f"{PRODUCT}-")


def is_baseline(name: str) -> bool:
    """Whether it is a published rule: not ours, a part of ours, or one that knows the truth."""
    return not is_ours(name) and name != REFERENCE


def factory(name: str, *, published: bool = False) -> Factory:
    return partial(_make, name, published)


def with_parameters(name: str, parameters: Mapping[str, Any]) -> Policy:
    """A policy of other parameters than its own; those of the product's are fields of `mesh.balancer.Policy`."""
    if name in POLICIES:
        return Ours(name, replace(OURS, **parameters))
    return policies.make(name, parameters)


def _make(name: str, published: bool) -> Policy:
    if name in POLICIES:
        return POLICIES[name]()
    return policies.make(name, None if published else _tuned().get(name))


@lru_cache(maxsize=1)
def _tuned() -> dict[str, dict[str, Any]]:
    return policies.tuned()
