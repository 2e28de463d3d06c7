"""Which node runs a request: predicted completion, cheapest tier among the near-best, inside the deadline.

Pure functions of values: ``now`` (seconds of a monotonic clock) and the source of luck are arguments, so that the same
code decides in the product and in a simulation. Not here: the prediction (``estimator``), who is a candidate
(``ways``), what happens when the chosen node fails (``retry``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from mesh.estimator import Ask, Estimate, Estimates, estimate
from mesh.messages import ModelLoad
from mesh.outlook import SUSPECT_MS, Column, Outlook
from mesh.values import ModelIdentity, ModelRef, Route

if TYPE_CHECKING:
    from random import Random

COST: dict[Route, float] = {"local": 0.0, "peer": 1.0, "cloud": 2.0}
"""Tiers, the cheapest first."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The dials of :func:`decide`.

    A dearer tier must win by more than a band, the least of ``near_budget`` of the time given and of ``near_ratio`` of
    the best prediction, but ``near_ms`` at least where the budget allows. The first bound is the regret a caller with
    a tight deadline can bear. The second is needed because deadlines are often defaults: a twentieth of 10 s would keep
    a 4 ms request in a local queue for half a second.
    """

    near_budget: float = 0.05
    near_ratio: float = 0.5
    near_ms: float = 2.0
    """Predictions closer than this, in ms, are taken as equal: reports and clocks are no better."""
    shed_from: int = 3
    """Classes of priority from this one on are refused where the best prediction is ``shed_ratio`` times what is left:
    no bytes are sent for what will be too late. Without a priority a request is never refused."""
    shed_ratio: float = 1.3

    def band_ms(self, best_ms: float, given_ms: float) -> float:
        return max(min(self.near_budget * given_ms, max(self.near_ms, self.near_ratio * best_ms)), 0.0)


OURS = Policy()


@dataclass(frozen=True, slots=True)
class Considered:
    """One candidate of a decision, and why it was or was not the one."""

    node: str
    estimate: Estimate
    feasible: bool
    """Predicted inside the deadline."""
    why: str


class Decision:
    """Where to send a request. ``slot`` is None when it is refused or there is nowhere; ``reason`` says why.

    ``considered`` is worded when it is read, with the figures of the moment of the decision.
    """

    __slots__ = ("_estimates", "_left_ms", "_limit_ms", "_outlook", "_policy", "reason", "slot", "wait_ms")

    def __init__(
        self,
        slot: int | None,
        reason: str,
        estimates: Estimates,
        outlook: Outlook,
        policy: Policy,
        left_ms: float,
        limit_ms: float,
        wait_ms: float = 0.0,
    ) -> None:
        self.slot = slot
        self.reason = reason
        self.wait_ms = wait_ms
        """Of a refusal: when to try again."""
        self._estimates, self._outlook, self._policy = estimates, outlook, policy
        self._left_ms, self._limit_ms = left_ms, limit_ms

    @property
    def node(self) -> str | None:
        return None if self.slot is None else self._outlook.names[self.slot]

    @property
    def estimate(self) -> Estimate:
        """Of the chosen one."""
        assert self.slot is not None  # noqa: S101 - asked for what was chosen
        return self._estimates.at(self.slot)

    @property
    def recall_ms(self) -> float:
        """What the best of the others would need, from the moment on at which the chosen one gives the request back;
        0 where none would be in time even now."""
        if self.slot is None or len(self._estimates.total) < 2:
            return 0.0
        total = self._estimates.total.copy()
        total[self.slot] = inf
        other = float(total.min())
        return other + float(self._outlook.half[self.slot]) if other <= self._left_ms else 0.0

    @property
    def considered(self) -> list[Considered]:
        return [self._word(slot) for slot in np.flatnonzero(np.isfinite(self._estimates.total)).tolist()]

    def _word(self, slot: int) -> Considered:
        predicted = self._estimates.at(slot)
        feasible = predicted.total_ms <= self._left_ms
        return Considered(self._outlook.names[slot], predicted, feasible, self._why(slot, predicted, feasible))

    def _why(self, slot: int, predicted: Estimate, feasible: bool) -> str:
        if slot == self.slot:
            return "chosen"
        if self._estimates.penalty[slot] >= SUSPECT_MS:
            return "suspect"
        if not feasible:
            late = predicted.total_ms - self._left_ms
            return f"{late:.1f} ms past the deadline"
        if predicted.total_ms > self._limit_ms:
            return f"{predicted.total_ms - self._limit_ms:.1f} ms beyond the near-best"
        chosen = self.slot
        same = chosen is None or self._outlook.cost[slot] == self._outlook.cost[chosen]
        return "not the best of its tier" if same else "a dearer tier"


def decide(
    ask: Ask, outlook: Outlook, now: float, rng: Random, policy: Policy = OURS, without: Sequence[int] = ()
) -> Decision:
    """Choose where to run a request; the slots of ``without`` are not asked.

    All slots are scanned. Of those near the best and inside the deadline the cheapest tier (local, peer, cloud) counts,
    and of it the best. With none inside the deadline the best prediction is taken, unless the request may be shed.
    Suspect nodes come last.
    """
    predicted = estimate(outlook, ask, now)
    total = predicted.total
    for slot in without:
        total[slot] = inf
    slot = int(total.argmin())
    best = float(total[slot])
    if best == inf:
        return Decision(None, "no candidates", predicted, outlook, policy, ask.left_ms, 0.0)
    limit = best + policy.band_ms(best, ask.given_ms)
    near = (total <= limit).nonzero()[0]
    near = near[total[near] <= ask.left_ms]
    if len(near):
        slot, reason = _of_cheapest_tier(near, total, outlook.cost, rng)
    elif ask.priority >= policy.shed_from and SUSPECT_MS > best > policy.shed_ratio * ask.left_ms:
        late = best - ask.left_ms
        return Decision(
            None, "it would be far too late everywhere", predicted, outlook, policy, ask.left_ms, limit, late
        )
    else:
        reason = "only suspect nodes are left" if best >= SUSPECT_MS else "no candidate inside the deadline"
    return Decision(slot, reason, predicted, outlook, policy, ask.left_ms, limit)


_REASONS = {cost: f"{route} is the cheapest tier near the best" for route, cost in COST.items()}


def _of_cheapest_tier(near: np.ndarray, total: Column, cost: Column, rng: Random) -> tuple[int, str]:
    """The best of the cheapest tier; of equals any, or routers that see the same would all take the first named."""
    costs = cost[near]
    cheapest = costs[costs.argmin()]
    near = near[costs == cheapest]
    totals = total[near]
    best = near[totals == totals[totals.argmin()]]
    slot = best[0] if len(best) == 1 else best[int(rng.random() * len(best))]
    return int(slot), _REASONS[float(cheapest)]


def resolve(ref: ModelRef, views: Iterable[tuple[str, ModelLoad]], local: ModelIdentity | None) -> ModelIdentity | None:
    """Settle which model is meant, version and bytes, before anything is sent (DESIGN D15); None if nobody holds it.

    ``local`` is what this very door would serve under the name, and wins if it is of the version asked for: a box's
    answers do not change with its neighbours. Else the version is the one asked for or the highest number, and of its
    digests the one that most nodes hold. Nodes where it is READY count; the others only when it is READY nowhere.
    """
    if local is not None and local.name == ref.name and ref.version in ("", local.version):
        return local
    held = [(node, m) for node, m in views if m.name == ref.name and ref.version in ("", m.version)]
    held = [(node, m) for node, m in held if m.state == "READY"] or held
    if not held:
        return None
    version = max((m.version for _, m in held), key=_version_order)
    nodes: dict[str, set[str]] = {}
    for node, m in held:
        if m.version == version:
            nodes.setdefault(m.digest, set()).add(node)
    digest = min(nodes, key=lambda digest: (-len(nodes[digest]), digest))
    return ModelIdentity(ref.name, version, digest)


def _version_order(version: str) -> tuple[int, str, str]:
    """Numbers by value, above all that is not a number; without ``int``, which refuses very long ones."""
    if not (version.isascii() and version.isdigit()):
        return -1, "", version
    digits = version.lstrip("0")
    return len(digits), digits, version
