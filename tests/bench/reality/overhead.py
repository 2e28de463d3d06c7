"""What the machine and the software around a model add to a request, measured on a mesh that does nothing else.

Nodes without models pass everything on: one at a site whose other nodes hold it shows the LAN hop, the whole of another
site the hop over the WAN. What is left of a latency after the model's time and the wires' is the overhead, and the
simulation is given it. Not here: the simulation (``simulated``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.bench.offload.environment import Environment
from tests.bench.reality.fleet import Fleet, Unusable
from tests.bench.reality.load import Arrival, Outcome
from tests.bench.reality.scenarios import Case
from tests.bench.reality.testbed import Bed

GAP_S = 0.25
COUNT = 15
"""Requests each way."""
PATIENT = 20.0
"""Times the deadline: a narrow wire is no place for some models, but can be measured with them."""
WARM = 3
"""Of these, at the beginning, do not count: they open connections."""


@dataclass(frozen=True)
class Overhead:
    """Milliseconds beyond model and wire: of a request that runs where it was asked, and of one that is passed on."""

    local_ms: float
    lan_ms: float
    wan_ms: float

    def told(self) -> str:
        return (
            f"an idle mesh adds {self.local_ms:.1f} ms to a local request, {self.lan_ms:.1f} ms to one over the LAN, "
            f"{self.wan_ms:.1f} ms to one over the WAN (beyond run, delay and transfer); the simulation adds these too"
        )


async def measured(bed: Bed, case: Case) -> Overhead:
    """Run a mesh for it, with time enough for every way. Raises ``Unusable`` where requests did not go as they must."""
    models = tuple(replace(model, slo_ms=PATIENT * model.slo_ms) for model in case.scenario.models)
    world = replace(case, scenario=replace(case.scenario, models=models)).environment(1)
    near = [n for n in world.edges if world.nodes[n].site == 0]
    asking, holder = near[-2:]
    far = next(n for n in world.edges if world.nodes[n].site == 1)
    async with Fleet(bed, world, "ours", empty=[n for n in world.edges if n != holder]) as fleet:
        doors = (holder, asking, far)
        arrivals = [Arrival(n, n * GAP_S, doors[n % 3], 0) for n in range(3 * COUNT)]
        async with fleet.loaded(arrivals) as load:
            outcomes = await load.outcomes()
    local, lan, wan = (_median_ms(outcomes[way::3], route) for way, route in enumerate(("local", "peer", "cloud")))
    a, c, _ = world.profiles[holder][0]
    cloud_a, cloud_c, _ = world.profiles[-1][0]
    return Overhead(local - a - c, lan - a - c, wan - cloud_a - cloud_c - wire_ms(world))


def _median_ms(outcomes: Sequence[Outcome], route: str) -> float:
    took = [o.latency_ms for o in outcomes[WARM:] if o.status == 200 and o.route == route]
    if len(took) < COUNT // 2:
        raise Unusable(f"of {len(outcomes)} requests that must go {route}, only {len(took)} did: {outcomes[-1]}")
    return statistics.median(took)


def wire_ms(world: Environment) -> float:
    """Delay and transfer of one request of the first model to the cloud and back, on an idle wire."""
    model, wan = world.scenario.models[0], world.scenario.wan
    up, down = wan.mbit * 125.0, wan.mbit * wan.down * 125.0
    return wan.rtt_ms + model.nbytes / up + model.reply_bytes / down
