"""When would a node answer? The estimator of policy.md section 6.2, as pure functions of values.

A candidate's answer is predicted as network + queue + service + learned bias. ``now`` is an argument; nothing here
reads a clock or knows a simulator, so that it can move to ``mesh.estimator``. Every part has a switch in ``Dials``, for
ablations. Not here: which candidate to take (``proposed``), the record of own sends (``proposed_policy``), links.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp
from typing import NamedTuple

Profile = tuple[float, float, int]
"""A run of n rows takes a + c·n ms, n at most B: (a, c, B)."""


LOADING = 4.0
"""A single row that takes this many times its profile waits for its model to be loaded."""


@dataclass(frozen=True, slots=True)
class Dials:
    """All constants of the policy; section 6's values are the defaults. Times in ms unless named otherwise."""

    gamma: float = 0.10
    """Regret: share of the SLO that a cheaper tier may be slower than the best."""
    near: float = 0.08
    """Share of the SLO within which candidates of one tier count as equal, and two of them are drawn."""
    z: float = 1.0
    """Standard deviations that a feasible prediction keeps to the deadline."""
    company: int = 3
    """Rows that share a run of our own sends, at most B."""
    most_others: float = 1.3
    """Largest work rate of others that is believed, in seconds a second."""
    learn: float = 0.05
    lowest_bias: float = -20.0
    highest_bias: float = 100.0
    shed_ratio: float = 1.3
    """Sheddable requests are refused where the best prediction is this many times the time left."""
    shed_from: int = 3
    """Priority classes from this number on are sheddable; 1 is the highest class, 0 means none was given."""
    explore: float = 0.01
    """Share of idle-time decisions (the best prediction within a quarter of the time left) that try the stalest of the
    candidates which fit with three times ``z`` to spare."""
    stale_s: float = 3.0
    """Age from which a report is not dead-reckoned any more."""
    peak_tau_s: float = 10.0
    doubt_answers: int = 5
    doubt_tau_s: float = 5.0
    """A node's last ``doubt_answers`` answers, all later than predicted, raise its prediction by the least excess; that
    fades with this time constant from the last of them, so that the node is tried again."""
    own: bool = True
    others: bool = True
    edf: bool = True
    batches: bool = True
    slowdown: bool = True
    loads: bool = True
    bias: bool = True
    sigma: bool = True
    floors: bool = True
    draw_two: bool = True
    fallback: bool = True
    tiers: bool = True


class Ask(NamedTuple):
    """What is to be placed: an absolute deadline on the router's clock, and the whole time the caller gave it."""

    model: int
    deadline_s: float
    slo_ms: float
    priority: int = 0


class Load(NamedTuple):
    """What a node said last, its moment translated to the router's clock."""

    taken_s: float
    free_ms: float
    slowdown: float
    arriving: float
    """Work arriving there from everybody, in seconds a second at its present speed."""
    queue: Sequence[tuple[int, float, float, int]]
    """(model, earliest and latest deadline in seconds on the router's clock, rows): equal where a node tells exactly,
    the edges of a histogram's bin where it summarises."""
    profiles: Sequence[Profile]
    """Per model at usual speed."""
    service_ms: Sequence[float] = ()
    """Per model, one row alone at present, loading included, as the node has learned it; empty if it does not say."""

    def factor(self, model: int) -> float:
        """What a run costs there at present over its profile: the slowdown, or what the node has learned itself, unless
        that holds a load.
        """
        if not self.service_ms or self.loading(model):
            return self.slowdown
        return self.service_ms[model] / _alone_ms(self.profiles[model])

    def loading(self, model: int) -> bool:
        """Whether the time for one row says that the model must be loaded first."""
        limit = LOADING * self.slowdown * _alone_ms(self.profiles[model])
        return bool(self.service_ms) and self.service_ms[model] >= limit


def _alone_ms(profile: Profile) -> float:
    return max(profile[0] + profile[1], 1e-9)


class Sent(NamedTuple):
    """One of our own requests on its way or unanswered there."""

    arrives_s: float
    model: int
    deadline_s: float


class Learned:
    """What our own answers taught of one node: bias and spread of predictions, doubt, and a peak-sensitive average."""

    __slots__ = ("_excess", "_last_s", "_peak_s", "bias_ms", "peak_ms", "sigma_ms")

    def __init__(self, doubt_answers: int = 5) -> None:
        self.bias_ms = self.sigma_ms = self.peak_ms = 0.0
        self._excess: deque[float] = deque(maxlen=doubt_answers)
        self._last_s = self._peak_s = 0.0

    def answered(self, seen_ms: float, predicted_ms: float, slo_ms: float, now: float, dials: Dials) -> None:
        """``predicted_ms`` without bias, at the time of sending; a failure is seen as twice the SLO, and so is more."""
        residual = min(seen_ms, max(2.0 * slo_ms, predicted_ms)) - predicted_ms
        self.bias_ms += dials.learn * (residual - self.bias_ms)
        self.bias_ms = min(max(self.bias_ms, dials.lowest_bias), dials.highest_bias)
        self.sigma_ms += dials.learn * (abs(residual) - self.sigma_ms)
        self._excess.append(residual)
        self._last_s = now
        kept = exp(-max(now - self._peak_s, 0.0) / dials.peak_tau_s)
        self.peak_ms = seen_ms if seen_ms > self.peak_ms else self.peak_ms * kept + seen_ms * (1.0 - kept)
        self._peak_s = now

    def peak(self, now: float, dials: Dials) -> float:
        """Peak-EWMA of answers in ms: a higher one is believed at once, and it fades to 0 with time."""
        return self.peak_ms * exp(-max(now - self._peak_s, 0.0) / dials.peak_tau_s)

    def doubt_ms(self, now: float, dials: Dials) -> float:
        """By how much all of the last answers exceeded what the node's reports made us predict; 0 until it is full."""
        if len(self._excess) < dials.doubt_answers:
            return 0.0
        return max(min(self._excess), 0.0) * exp(-max(now - self._last_s, 0.0) / dials.doubt_tau_s)


class Candidate(NamedTuple):
    """One node that may run it. ``tier`` is its cost: 0 here, 1 on the LAN, 2 across the WAN."""

    tier: int
    up_ms: float
    down_ms: float
    profile: Profile
    """Of the model asked for, at usual speed as believed."""
    load: Load | None
    own: Sequence[Sent]
    """Our own unanswered sends that reach it after its report was taken, in order of arrival."""
    own_arriving: float
    """Our own share of ``load.arriving``."""
    in_flight: int
    learned: Learned


class Estimate(NamedTuple):
    """The parts of a prediction, in ms."""

    network_ms: float
    wait_ms: float
    service_ms: float
    bias_ms: float
    sigma_ms: float
    stale: bool

    @property
    def raw_ms(self) -> float:
        return self.network_ms + self.wait_ms + self.service_ms

    @property
    def total_ms(self) -> float:
        """Never below the network and the run alone."""
        return max(self.raw_ms + self.bias_ms, self.network_ms + self.service_ms)


def estimate(ask: Ask, candidate: Candidate, now: float, dials: Dials) -> Estimate:
    """Predict one candidate. Without a report, or with one too old, by peak-EWMA · (in flight + 1)."""
    load, learned = candidate.load, candidate.learned
    network = candidate.up_ms + candidate.down_ms
    a, c, _ = candidate.profile
    service = a + c
    if load is not None:
        loading = load.loading(ask.model)
        if loading:
            service = load.service_ms[ask.model] if dials.loads else service
        elif dials.slowdown:
            service *= load.factor(ask.model)
    sigma = learned.sigma_ms if dials.sigma else 0.0
    if load is None or (dials.fallback and now - load.taken_s > dials.stale_s):
        cost = learned.peak(now, dials) * (candidate.in_flight + 1)
        return Estimate(network, max(cost - network - service, 0.0), service, 0.0, sigma, True)
    arrival_s = now + candidate.up_ms / 1e3
    wait = wait_ms(ask, load, candidate, arrival_s, dials)
    bias = learned.bias_ms if dials.bias else 0.0
    if dials.floors:
        bias = max(bias, learned.doubt_ms(now, dials))
    return Estimate(network, wait, service, bias, sigma, False)


def wait_ms(ask: Ask, load: Load, candidate: Candidate, arrival_s: float, dials: Dials) -> float:
    """The work ahead when the request arrives: Lindley's walk from the report on.

    What is queued with an earlier deadline, less the time that passes, plus others' arrivals at their rate, plus our
    own sends as they arrive. ``slowdown`` enters each term once, others' rate has it already.
    """
    rows: dict[int, float] = {}
    for model, earliest_s, latest_s, count in load.queue:
        share = _share_before(earliest_s, latest_s, ask.deadline_s) if dials.edf else 1.0
        if share > 0.0:
            rows[model] = rows.get(model, 0.0) + share * count
    work = load.free_ms
    for model, waiting in rows.items():
        factor = load.factor(model) if dials.slowdown else 1.0
        work += factor * _runs_ms(load.profiles[model], waiting, dials)
    others = min(max(load.arriving - candidate.own_arriving, 0.0), dials.most_others) if dials.others else 0.0
    slope = others - 1.0
    at = load.taken_s
    for sent in candidate.own if dials.own else ():
        if sent.arrives_s > arrival_s:
            break
        work = max(work + slope * (sent.arrives_s - at) * 1e3, 0.0)
        at = sent.arrives_s
        if not dials.edf or sent.deadline_s <= ask.deadline_s:
            factor = load.factor(sent.model) if dials.slowdown else 1.0
            work += factor * _row_ms(load.profiles[sent.model], dials)
    return max(work + slope * (arrival_s - at) * 1e3, 0.0)


def _share_before(earliest_s: float, latest_s: float, deadline_s: float) -> float:
    """Share of deadlines spread evenly between two moments that come no later than ours."""
    if latest_s <= deadline_s:
        return 1.0
    return 0.0 if earliest_s >= deadline_s else (deadline_s - earliest_s) / (latest_s - earliest_s)


def _runs_ms(profile: Profile, rows: float, dials: Dials) -> float:
    """In the fewest runs; less than a row, which is the chance of one, takes that share of a run."""
    a, c, most = profile
    runs = min(rows, ceil(rows / most)) if dials.batches else rows
    return runs * a + rows * c


def _row_ms(profile: Profile, dials: Dials) -> float:
    a, c, most = profile
    return a / min(most, dials.company) + c if dials.batches else a + c
