"""The scenarios that run both ways, as values of the simulator: five boxes at two sites and one in the cloud.

All times are :data:`SLOWER` times those of ``tests.bench.offload.scenarios``, and bandwidths as many times lower, so
that what the benchmark's own machine adds to a request stays small beside its deadline and a whole mesh fits on two
cores. The wires are steady: nothing here draws bandwidth or heat. Not here: running them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.bench.offload.environment import Environment, Steps
from tests.bench.offload.scenario import Load, Model, Profile, Reports, Scenario, Wan
from tests.bench.offload.scenarios import BOXES, DETECT, SEGMENT

SLOWER = 3.0
SITES = (("nano", "nx", "agx"), ("nano", "nx"))
CLOUD = ("cloud",)


def _slower_model(model: Model) -> Model:
    return replace(model, slo_ms=SLOWER * model.slo_ms)


def _slower_box(box: dict[str, Profile]) -> dict[str, Profile]:
    return {name: (SLOWER * a, SLOWER * c, most) for name, (a, c, most) in box.items()}


@dataclass(frozen=True)
class Slowdown:
    """One node takes ``factor`` times as long between two shares of the run."""

    node: int
    begin: float
    end: float
    factor: float


@dataclass(frozen=True)
class Case:
    """A scenario and what is beside it."""

    scenario: Scenario
    slowdown: Slowdown | None = None

    def environment(self, seed: int) -> Environment:
        """Draw it with one seed: the arrivals are those of both the simulation and the real run."""
        drawn = Environment(self.scenario, seed)
        slow = self.slowdown
        if slow is not None:
            seconds = self.scenario.seconds
            drawn.heat[slow.node] = Steps([(slow.begin * seconds, slow.end * seconds, slow.factor)])
        return drawn

    def lasting(self, seconds: float) -> Case:
        return replace(self, scenario=replace(self.scenario, seconds=seconds))


_BASE = Scenario(
    "",
    "",
    (_slower_model(DETECT), _slower_model(SEGMENT)),
    SITES,
    CLOUD,
    {name: _slower_box(box) for name, box in BOXES.items()},
    Load(rho=0.8),
    Wan(mbit=50.0 / SLOWER, cv=0.0, rtt_ms=40.0 * SLOWER),
    reports=Reports(),
    noise=0.01,
    seconds=25.0,
)
_BURSTS = Load(rho=0.5, cv=4.0, skew=0.7)

CASES: dict[str, Case] = {
    case.scenario.name: case
    for case in (
        Case(replace(_BASE, name="poisson", about="Poisson arrivals, each node with as many")),
        Case(replace(_BASE, name="bursts", about="gamma CV 4, skewed sites", load=_BURSTS)),
        Case(
            replace(
                _BASE,
                name="narrow",
                about="10 Mbit/s up (scaled), only the larger deadline fits through; gamma CV 2",
                load=replace(_BURSTS, cv=2.0),
                wan=Wan(mbit=10.0 / SLOWER, cv=0.0, rtt_ms=60.0 * SLOWER),
            )
        ),
        Case(
            replace(_BASE, name="slowed", about="Poisson; the fastest edge node takes 3 times as long half of the run"),
            Slowdown(2, 0.3, 0.8, 3.0),
        ),
    )
}
MAIN = ("poisson", "bursts", "narrow")
