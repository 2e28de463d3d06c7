"""Everything that happens to a mesh whatever its routers do: arrivals, bandwidth, heat, wrong profiles, from one seed.

Each cause has a stream of its own, so that the same seed means the same world for every policy. Not here: what the
mesh makes of it (world.py), runs' noise and jitter, which are drawn as things happen.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right

from edge.latency import Latency
from tests.bench.offload.policy import Node, Request
from tests.bench.offload.scenario import Profile, Scenario

SHAPES = ((1,),)
"""All requests of a model are alike."""
STEP_S = 0.1
"""Resolution of a rate of arrivals."""
PHI = 0.9
"""How much of a second's bandwidth the next one keeps."""


def stream(seed: int, cause: str, index: int = 0) -> random.Random:
    """A source of luck for one cause."""
    return random.Random(f"{seed}/{cause}/{index}")


def learned(profile: Profile) -> Latency:
    """What a node knows of a model after its warm-up."""
    a, c, most = profile
    sizes = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})
    latency = Latency()
    latency.measured(SHAPES, [(rows, a + c * rows) for rows in sizes])
    return latency


def unit_ms(profile: Profile) -> float:
    """A row's share of the run that costs least per row."""
    latency = learned(profile)
    best = latency.best_rows(SHAPES, profile[2])
    return latency.expected_ms(SHAPES, best) / best


class Trace:
    """A rate in bytes per second, constant over each second; its last value holds for ever."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self._sums = [0.0]
        for rate in rates:
            self._sums.append(self._sums[-1] + rate)
        self._last = max(rates[-1], 1.0)

    def rate(self, at: float) -> float:
        return self.rates[min(int(at), len(self.rates) - 1)]

    def carried(self, at: float) -> float:
        """Bytes that fit through until then."""
        second = int(at)
        if second >= len(self.rates):
            return self._sums[-1] + (at - len(self.rates)) * self._last
        return self._sums[second] + (at - second) * self.rates[second]

    def finish(self, start: float, nbytes: float) -> float:
        """When the last of so many bytes is through, the first one entering at `start`."""
        target = self.carried(start) + nbytes
        above = bisect_left(self._sums, target)
        if above == len(self._sums):
            return len(self.rates) + (target - self._sums[-1]) / self._last
        if above == 0:
            return start
        return max(above - 1 + (target - self._sums[above - 1]) / self.rates[above - 1], start)


class Steps:
    """A factor that is 1 but for some spans of time; of spans that overlap the larger factor counts."""

    def __init__(self, spans: list[tuple[float, float, float]]) -> None:
        edges = sorted({edge for begin, end, _ in spans for edge in (begin, end)})
        self._edges = edges
        self._values = [1.0, *(max([f for b, e, f in spans if b <= edge < e], default=1.0) for edge in edges)]

    def at(self, now: float) -> float:
        return self._values[bisect_right(self._edges, now)] if self._edges else 1.0


class Environment:
    """One scenario drawn with one seed, the load scaled by `scale`."""

    def __init__(self, scenario: Scenario, seed: int, scale: float = 1.0) -> None:
        self.scenario = scenario
        self.seed = seed
        sites = [*scenario.sites, scenario.cloud]
        boxes = [(site, kind) for site, kinds in enumerate(sites) for kind in kinds]
        self.cloud_site = len(scenario.sites)
        self.nodes = [self._node(index, site, kind) for index, (site, kind) in enumerate(boxes)]
        self.edges = [node.index for node in self.nodes if node.tier == "edge"]
        self.profiles = [self._true(node) for node in self.nodes]
        """What runs really take."""
        self.up = [self._trace(site) for site in range(self.cloud_site)]
        self.down = [Trace([rate * scenario.wan.down for rate in trace.rates]) for trace in self.up]
        self.heat = self._heat()
        self.rate = scale * scenario.load.rho * self._capacity()
        """Mean requests a second of all origins."""
        self.requests = _arrivals(self)

    def _node(self, index: int, site: int, kind: str) -> Node:
        believed = tuple(self.scenario.boxes[kind][model.name] for model in self.scenario.models)
        return Node(index, site, "cloud" if site == self.cloud_site else "edge", believed)

    def _true(self, node: Node) -> tuple[Profile, ...]:
        misfit, luck = self.scenario.misfit, stream(self.seed, "misfit", node.index)
        true = []
        for a, c, most in node.profiles:
            error = math.exp(luck.gauss(0.0, misfit.speed)) if misfit.speed else 1.0
            slope = c * misfit.slope
            true.append((max(a + c - slope, 0.0) * error, slope * error, most))
        return tuple(true)

    def _trace(self, site: int) -> Trace:
        scenario = self.scenario
        wan, luck = scenario.wan, stream(self.seed, "bandwidth", site)
        seconds = int(scenario.seconds) + 30
        sigma = math.sqrt(math.log(1.0 + wan.cv**2))
        x, rates, dark = luck.gauss(0.0, 1.0), [], 0
        starts = wan.outage_share / max(wan.outage_s * (1.0 - wan.outage_share), 1e-9)
        for second in range(seconds):
            rates.append(wan.mbit * 125_000.0 * math.exp(sigma * x - sigma**2 / 2.0))
            x = PHI * x + math.sqrt(1.0 - PHI**2) * luck.gauss(0.0, 1.0)
            chance = luck.random()
            dark = max(dark - 1, 0) or (round(wan.outage_s) if chance < starts else 0)
            if dark and second < seconds - 1:
                rates[-1] = 0.0
        for begin, lasts_s, where in wan.outages:
            if where in (site, -1):
                first = int(begin * scenario.seconds)
                rates[first : first + int(lasts_s)] = [0.0] * int(lasts_s)
        for fault in scenario.faults:
            if fault.kind == "link" and self.nodes[fault.node].site == site:
                first = int(fault.at * scenario.seconds)
                for second in range(first, min(first + int(fault.lasts_s), seconds)):
                    rates[second] /= fault.factor
        return Trace(rates)

    def _heat(self) -> list[Steps]:
        heat = self.scenario.heat
        spans: list[list[tuple[float, float, float]]] = [[] for _ in self.nodes]
        if heat is not None:
            places = [node.site for node in self.nodes] if heat.by_site else [node.index for node in self.nodes]
            for place in sorted({places[index] for index in self.edges}):
                luck, at = stream(self.seed, "thermal", place), 0.0
                while (at := at + luck.expovariate(1.0 / heat.every_s)) < self.scenario.seconds:
                    span = (at, at + luck.uniform(*heat.lasts_s), luck.uniform(*heat.factor))
                    for index in self.edges:
                        if places[index] == place:
                            spans[index].append(span)
        for fault in self.scenario.faults:
            if fault.kind == "slow":
                begin = fault.at * self.scenario.seconds
                spans[fault.node].append((begin, begin + fault.lasts_s, fault.factor))
        return [Steps(of) for of in spans]

    def _capacity(self) -> float:
        """Requests a second that the edge can do, by what is believed, in the mix of models that is asked for."""
        shares = popularity(self.scenario)
        return sum(
            1e3 / sum(share * unit_ms(profile) for share, profile in zip(shares, self.nodes[i].profiles, strict=True))
            for i in self.edges
        )


def popularity(scenario: Scenario) -> list[float]:
    weights = [(rank + 1.0) ** -scenario.load.zipf for rank in range(len(scenario.models))]
    return [weight / sum(weights) for weight in weights]


def _arrivals(environment: Environment) -> list[Request]:
    scenario = environment.scenario
    load, models = scenario.load, scenario.models
    shares = popularity(scenario)
    weights = [(environment.nodes[i].site + 1.0) ** -load.skew for i in environment.edges]
    drawn: list[tuple[float, int, int, int]] = []
    for origin, weight in zip(environment.edges, weights, strict=True):
        luck = stream(environment.seed, "arrivals", origin)
        rate = environment.rate * weight / sum(weights)
        for born in _moments(scenario, environment.nodes[origin].site, rate, luck):
            model = luck.choices(range(len(models)), shares)[0]
            level = 1 + luck.choices(range(len(load.priorities)), load.priorities)[0] if load.priorities else 0
            drawn.append((born, origin, model, level))
    drawn.sort()
    return [
        Request(n, m, origin, born, born + models[m].slo_ms / 1e3, models[m].nbytes, models[m].reply_bytes, level)
        for n, (born, origin, m, level) in enumerate(drawn)
    ]


def _moments(scenario: Scenario, site: int, rate: float, luck: random.Random) -> list[float]:
    """Arrivals of one origin: gamma gaps of mean 1, carried over to where the rate's integral reaches them."""
    load, steps = scenario.load, int(scenario.seconds / STEP_S)
    rates = [rate * factor for factor in _shape(scenario, site)]
    cvs = [load.cv] * steps
    if load.window_s:
        sigma = math.sqrt(math.log(1.0 + load.window_cv**2))
        width = max(int(load.window_s / STEP_S), 1)
        for begin in range(0, steps, width):
            factor = math.exp(sigma * luck.gauss(0.0, 1.0) - sigma**2 / 2.0)
            cv = luck.uniform(1.0, load.cv)
            for step in range(begin, min(begin + width, steps)):
                rates[step] *= factor
                cvs[step] = cv
    moments, work, step, done = [], 0.0, 0, 0.0
    work = _gap(luck, cvs[0])
    while step < steps:
        room = rates[step] * STEP_S
        if done + room <= work:
            done += room
            step += 1
            continue
        moments.append((step + (work - done) / room) * STEP_S)
        work += _gap(luck, cvs[step])
    return moments


def _gap(luck: random.Random, cv: float) -> float:
    return luck.gammavariate(1.0 / cv**2, cv**2)


def _shape(scenario: Scenario, site: int) -> list[float]:
    """Factors of the mean rate by step, of mean 1 but for the spikes, which come on top."""
    load, steps = scenario.load, int(scenario.seconds / STEP_S)
    swing = (load.swing - 1.0) / (load.swing + 1.0)
    factors = [1.0 - swing * math.cos(2.0 * math.pi * step / steps) for step in range(steps)]
    for begin, lasts_s, factor, where in load.spikes:
        if where in (site, -1):
            first = int(begin * steps)
            for step in range(first, min(first + round(lasts_s / STEP_S), steps)):
                factors[step] *= factor
    return factors
