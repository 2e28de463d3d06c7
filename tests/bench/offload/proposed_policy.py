"""The proposed rule in the bench: keeps the record of own sends and answers, turns a World's view into candidates.

Not here: the rule itself (``proposed``), the prediction (``proposed_estimate``).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from math import exp
from typing import NamedTuple

from tests.bench.offload.policy import Report, Request, World
from tests.bench.offload.profiles import best_row_ms
from tests.bench.offload.proposed import Choice, choose
from tests.bench.offload.proposed_estimate import Ask, Candidate, Dials, Learned, Load, Sent

RATE_TAU_S = 0.5
"""Time constant of the arrival rate that nodes report; our own share is averaged alike."""
EQUAL_BYTES = 8 * 1024
"""What a round trip weighs against bytes where only their sum is known: splits a network time into there and back."""
BINS = tuple(25.0 * 2**power for power in range(8))
"""Upper edges in ms of the histogram of time left in a report (policy.md 6.1)."""
FORGET_S = 5.0
"""A send that nobody answered this long after its deadline is forgotten."""

ABLATIONS: Mapping[str, Dials] = {
    "proposed": Dials(),
    "proposed-no-own": Dials(own=False),
    "proposed-no-others": Dials(others=False),
    "proposed-no-edf": Dials(edf=False),
    "proposed-no-batches": Dials(batches=False),
    "proposed-no-slowdown": Dials(slowdown=False),
    "proposed-no-loads": Dials(loads=False),
    "proposed-no-bias": Dials(bias=False),
    "proposed-no-sigma": Dials(sigma=False),
    "proposed-no-floors": Dials(floors=False),
    "proposed-no-draw": Dials(draw_two=False),
    "proposed-no-fallback": Dials(fallback=False),
    "proposed-no-tiers": Dials(tiers=False),
    "proposed-no-explore": Dials(explore=0.0),
    "proposed-fastest": Dials(gamma=0.0),
    "proposed-thrifty": Dials(gamma=0.4),
}


class _Unanswered(NamedTuple):
    sent: Sent
    raw_ms: float


class _Far:
    """What this router remembers of one node."""

    __slots__ = ("arrivals", "learned", "own_arriving", "taken_s", "unanswered")

    def __init__(self, dials: Dials) -> None:
        self.learned = Learned(dials.doubt_answers)
        self.unanswered: dict[int, _Unanswered] = {}
        self.arrivals: deque[tuple[float, float]] = deque(maxlen=512)
        """(when, nominal seconds of work) of our own sends' predicted arrivals."""
        self.taken_s = -1.0
        self.own_arriving = 0.0

    def own_rate(self, taken_s: float, now: float) -> float:
        """Our own nominal work rate at the node when it took its report; computed once a report, and not at all where
        no time has passed since, as for the router's own node.
        """
        if now - taken_s < 1e-3:
            return 0.0
        if taken_s != self.taken_s:
            self.taken_s = taken_s
            while self.arrivals and self.arrivals[0][0] < taken_s - 6.0 * RATE_TAU_S:
                self.arrivals.popleft()
            shares = [work * exp((at - taken_s) / RATE_TAU_S) for at, work in self.arrivals if at <= taken_s]
            self.own_arriving = sum(shares) / RATE_TAU_S
        return self.own_arriving

    def since(self, taken_s: float, now: float) -> list[Sent]:
        """Own sends that the report cannot know, in order of arrival."""
        lost = [i for i, each in self.unanswered.items() if now - each.sent.deadline_s > FORGET_S]
        for each in lost:
            del self.unanswered[each]
        fresh: list[Sent] = []
        for entry in self.unanswered.values():
            if entry.sent.arrives_s > taken_s:
                insort(fresh, entry.sent)
        return fresh


class Proposed:
    """One router's proposed policy; ``last`` is its latest choice with all parts."""

    def __init__(self, dials: Dials | None = None, name: str = "proposed") -> None:
        self.name = name
        self.dials = dials or Dials()
        self.last = Choice(None, (), "")
        self.predicted_ms: float | None = None
        self.sigma_ms = 0.0
        """Of the latest choice, for the bench's prediction error and calibration."""
        self._far: dict[int, _Far] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        slo_ms = (request.deadline_s - request.born_s) * 1e3
        ask = Ask(request.model, request.deadline_s, slo_ms, request.priority)
        candidates = [self._candidate(request, node, world) for node in nodes]
        choice = self.last = choose(ask, candidates, world.now, world.luck, self.dials)
        if choice.at is None:
            return None
        node, taken, predicted = nodes[choice.at], candidates[choice.at], choice.estimates[choice.at]
        self.predicted_ms, self.sigma_ms = predicted.total_ms, predicted.sigma_ms
        far, arrives_s = self._far[node], world.now + taken.up_ms / 1e3
        sent = Sent(arrives_s, request.model, request.deadline_s)
        far.unanswered[request.id] = _Unanswered(sent, predicted.raw_ms)
        far.arrivals.append((arrives_s, best_row_ms(taken.profile) / 1e3))
        return node

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        far = self._far.get(node)
        entry = None if far is None else far.unanswered.pop(request.id, None)
        if far is None or entry is None:
            return
        slo_ms = (request.deadline_s - request.born_s) * 1e3
        seen_ms = took_ms if ok else max(took_ms, 2.0 * slo_ms)
        far.learned.answered(seen_ms, entry.raw_ms, slo_ms, world.now, self.dials)

    def _candidate(self, request: Request, node: int, world: World) -> Candidate:
        far = self._far.get(node)
        if far is None:
            far = self._far[node] = _Far(self.dials)
        facts, report = world.nodes[node], world.report(node)
        network_ms = world.network_ms(node, request)
        both = request.nbytes + request.reply_bytes + 2 * EQUAL_BYTES
        up_ms = network_ms * (request.nbytes + EQUAL_BYTES) / both
        load, own, rate = None, [], 0.0
        if report is not None:
            load = _load(report, facts.profiles)
            own, rate = far.since(report.taken_s, world.now), far.own_rate(report.taken_s, world.now) * report.slowdown
        return Candidate(
            _tier(request, node, world),
            up_ms,
            network_ms - up_ms,
            facts.profiles[request.model],
            load,
            own,
            rate,
            world.in_flight(node),
            far.learned,
        )


def _load(report: Report, profiles: tuple[tuple[float, float, int], ...]) -> Load:
    return Load(
        report.taken_s,
        report.free_ms,
        report.slowdown,
        report.arrivals_per_s,
        [_waiting(report.taken_s, *entry) for entry in report.queue],
        profiles,
        report.service_ms,
    )


def _waiting(taken_s: float, model: int, left_ms: float, rows: int) -> tuple[int, float, float, int]:
    """An entry of a report's queue: the upper edge of one of its bins, each twice the one before, or an exact time."""
    latest_s = taken_s + left_ms / 1e3
    if left_ms not in BINS:
        return model, latest_s, latest_s, rows
    return model, taken_s + (left_ms / 2e3 if left_ms > BINS[0] else 0.0), latest_s, rows


def _tier(request: Request, node: int, world: World) -> int:
    """0 here, 1 in the site, 2 across the WAN: the cloud, and other sites' boxes as well."""
    if node == request.origin:
        return 0
    facts = world.nodes[node]
    return 1 if facts.tier == "edge" and facts.site == world.nodes[request.origin].site else 2
