"""Where a request may run: privacy, as its parameters and its model declare it.

``mesh_stay`` ("node", "site", "region") keeps it near the door it came to; ``mesh_node``, ``mesh_site`` and
``mesh_tier`` name a place. Pure. Not here: who enforces it (``router``), how a model declares it
(``edge.model_config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mesh.errors import InvalidRequest
from mesh.oip.wire import quoted
from mesh.values import Tier

STAYS = ("", "region", "site", "node")
"""From anywhere to the strictest."""
TIERS = ("", "edge", "cloud")


class Place(NamedTuple):
    """Where a node stands. An empty region is no region: nothing else is in it but the node's own site."""

    node: str
    site: str
    region: str
    tier: Tier


class Pin(NamedTuple):
    """Empty fields allow everything."""

    stay: str = ""
    node: str = ""
    site: str = ""
    tier: str = ""

    @classmethod
    def of(cls, parameters: Mapping[str, object], declared: str = "") -> Pin | None:
        """The strictest of what a request and its model say; None where both say nothing.

        Raises ``InvalidRequest``.
        """
        stay, tier = _one_of(parameters, "mesh_stay", STAYS), _one_of(parameters, "mesh_tier", TIERS)
        if declared not in STAYS:  # of a later version: rather too strict than too lax
            declared = "node"
        strictest = max(stay, declared, key=STAYS.index)
        pin = cls(strictest, _word(parameters, "mesh_node"), _word(parameters, "mesh_site"), tier)
        return pin if any(pin) else None

    def allows(self, here: Place, there: Place) -> bool:
        """Whether a request at the node ``here`` may go to ``there``."""
        if self.node not in ("", there.node) or self.site not in ("", there.site) or self.tier not in ("", there.tier):
            return False
        if self.stay == "node":
            return there.node == here.node
        if not self.stay or there.site == here.site:
            return True
        return self.stay == "region" and here.region != "" and there.region == here.region


def _one_of(parameters: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRequest(f"parameter {name!r} is {quoted(value)}, not one of {', '.join(allowed[1:])}")
    return value


def _word(parameters: Mapping[str, object], name: str) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequest(f"parameter {name!r} is not a string")
    return value
