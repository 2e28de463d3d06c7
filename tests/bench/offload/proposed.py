"""Predicted completion, bounded regret: the rule of policy.md section 6.3, as a pure function of values.

The cheapest tier among the near-best and feasible candidates counts; of that tier two of the near-best are drawn and
the better one is taken. ``now`` and luck are arguments, so that it can move to ``mesh.balancer``. Not here: the
prediction (``proposed_estimate``), who is a candidate, keeping the record of own sends (``proposed_policy``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.offload.proposed_estimate import Ask, Candidate, Dials, Estimate, estimate

if TYPE_CHECKING:
    from random import Random


IDLE = 0.25
"""A best prediction within this share of the time left means that there is room to explore."""


class Choice(NamedTuple):
    """Position of the candidate taken, None for a refusal; all estimates, and why."""

    at: int | None
    estimates: Sequence[Estimate]
    reason: str


def choose(ask: Ask, candidates: Sequence[Candidate], now: float, luck: Random, dials: Dials) -> Choice:
    """Section 6.3. Nobody at all is a refusal; so is a sheddable request that would be far too late everywhere."""
    estimates = [estimate(ask, candidate, now, dials) for candidate in candidates]
    if not estimates:
        return Choice(None, estimates, "no candidates")
    totals = [each.total_ms for each in estimates]
    left_ms = (ask.deadline_s - now) * 1e3
    best = min(totals)
    fits = [i for i, total in enumerate(totals) if total + dials.z * estimates[i].sigma_ms <= left_ms]
    near = [i for i in fits if totals[i] <= best + (dials.gamma * ask.slo_ms if dials.tiers else 0.0)]
    if not near:
        if ask.priority >= dials.shed_from and best > dials.shed_ratio * left_ms:
            return Choice(None, estimates, "shed")
        return Choice(totals.index(best), estimates, "none fits")
    if dials.explore > 0.0 and best <= IDLE * left_ms and luck.random() < dials.explore:
        safe = [i for i in fits if totals[i] + 3.0 * dials.z * estimates[i].sigma_ms <= left_ms]
        if safe:
            return Choice(min(safe, key=lambda i: _taken_s(candidates[i])), estimates, "explored")
    if dials.tiers:
        cheapest = min([candidates[i].tier for i in near])
        near = [i for i in near if candidates[i].tier == cheapest]
    return Choice(_draw(ask, near if dials.tiers else fits, totals, luck, dials), estimates, "near-best")


def _draw(ask: Ask, among: Sequence[int], totals: Sequence[float], luck: Random, dials: Dials) -> int:
    """The better of two drawn from those near the best of them, or the best."""
    if dials.draw_two:
        limit = min([totals[i] for i in among]) + dials.near * ask.slo_ms
        among = [i for i in among if totals[i] <= limit]
        if len(among) > 1:
            among = luck.sample(among, 2)
    return min(among, key=lambda i: totals[i])


def _taken_s(candidate: Candidate) -> float:
    return -inf if candidate.load is None else candidate.load.taken_s
