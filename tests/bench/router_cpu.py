"""``python -m tests.bench.router_cpu``: what the process of a cloud router costs, by how many nodes the mesh has.

A real nats-server, a real ``mesh-cloud``, and two real agents with doors of their own that run the models in process;
beside them 0 to 1,000 stand-in nodes (``fleet``) that report every second and hold the same models, but have too much
to do to be chosen. Every number of nodes gets a mesh of its own. In each the router's CPU is measured before the first
request (``idle_percent`` of a core), under closed loops, and with small requests at a fixed rate; what a request costs
is net of the idle cost. Not here: what one decision costs (``decisions``), what a hop adds (``hops``).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.bench import loadgen
from tests.bench.loadgen import Job, Sample, Window
from tests.bench.models import ADD, POOL, Answer, Model
from tests.bench.report import Row, machine, show
from tests.bench.router_mesh import AGENTS, Mesh, Spent, a_mesh
from tests.bench.stats import in_round, paired_ratio

NODES = (0, 100, 1_000)
CELLS = tuple(itertools.product((ADD, POOL), (1, 8)))
RATE = 2_000.0
RATE_CONNECTIONS = 64
KEPT_UP = 0.99
"""Share of the rate that must be answered for the run to count."""
SATURATED = 95.0
"""Percent of all cores from which on a figure says more of the machine than of the router."""


@dataclass(frozen=True)
class Plan:
    """How many meshes of each size, and how long each measurement takes."""

    rounds: int
    idle_s: float
    window: Window
    at_rate: Window


FULL = Plan(3, 10.0, Window(2.0, 0.5), Window(5.0, 1.0))
QUICK = Plan(1, 3.0, Window(0.6, 0.2), Window(1.0, 0.3))


@dataclass(frozen=True)
class Loaded:
    """One measurement under load."""

    sample: Sample
    spent: Spent
    idle_percent: float
    """Of that very mesh."""

    @property
    def cpu_us(self) -> float:
        """Of the router for a request, without what it costs idle."""
        idle_s = self.spent.seconds * self.idle_percent / 100.0
        return (self.spent.router_s - idle_s) / self.sample.answered * 1e6

    @property
    def percent_at_rate(self) -> float:
        """Of a core, at :data:`RATE`, the idle cost included."""
        return self.idle_percent + 100.0 * RATE * self.cpu_us / 1e6


@dataclass(frozen=True)
class ByReal:
    """The answer is right, and a real agent gave it."""

    model: Model

    def __call__(self, head: bytes, body: bytes) -> str:
        wrong = [Answer(self.model, name)(head, body) for name in AGENTS]
        return "" if "" in wrong else wrong[0]


@dataclass(frozen=True)
class Round:
    """All measurements of one mesh."""

    idle: Spent
    loops: dict[tuple[Model, int], Loaded]
    at_rate: Loaded
    silent: int
    """Stand-ins that the router did not think ready any more at the end."""
    retries: float
    """Requests that it sent a second time."""


def under_load(
    mesh: Mesh,
    load: ProcessPoolExecutor,
    idle: Spent,
    model: Model,
    connections: int,
    window: Window,
    rate: float = 0.0,
) -> Loaded:
    """One measurement. Raises ``RuntimeError`` on a wrong or missing reply."""
    router, taken = mesh.router, list[Sample]()
    request = model.http(model.path, router.address)
    job = Job(router.host, router.port, request, ByReal(model), connections, window, rate=rate)
    spent = mesh.spending(lambda: taken.append(load.submit(loadgen.run, job).result()))
    sample = taken[0]
    if sample.errors or not sample.requests:
        raise RuntimeError(f"{model.name}, {connections} connections, rate {rate}: {sample}")
    return Loaded(sample, spent, idle.router_percent)


def one_round(nodes: int, plan: Plan, load: ProcessPoolExecutor) -> Round:
    """A mesh from its start to its end."""
    with a_mesh(nodes) as mesh:
        idle = mesh.spending(lambda: time.sleep(plan.idle_s))
        loops = {cell: under_load(mesh, load, idle, *cell, plan.window) for cell in CELLS}
        at_rate = under_load(mesh, load, idle, ADD, RATE_CONNECTIONS, plan.at_rate, RATE)
        silent = nodes + len(AGENTS) - mesh.ready_agents()
        return Round(idle, loops, at_rate, silent, mesh.retries())


Results = dict[int, list[Round]]


def measure(plan: Plan) -> Results:
    """All rounds; a mesh for each number of nodes, one after the other."""
    results: Results = {nodes: [] for nodes in NODES}
    with loadgen.own_process() as load:
        load.submit(int).result()  # started, before anything is measured
        for number in range(plan.rounds):
            for nodes in in_round(NODES, number):
                results[nodes].append(one_round(nodes, plan, load))
    return results


def loop_rows(results: Results) -> list[Row]:
    return [loop_row(results, nodes, cell) for cell in CELLS for nodes in NODES]


def loop_row(results: Results, nodes: int, cell: tuple[Model, int]) -> Row:
    taken = [one.loops[cell] for one in results[nodes]]
    alone = [one.loops[cell] for one in results[NODES[0]]]
    return {
        "nodes": nodes,
        "request_bytes": cell[0].nbytes,
        "connections": cell[1],
        "requests_per_s": median(taken, lambda one: one.sample.per_second),
        "p50_ms": median(taken, lambda one: one.sample.p50_ms),
        "p99_ms": median(taken, lambda one: one.sample.p99_ms),
        "cpu_us": median(taken, lambda one: one.cpu_us),
        "ratio": paired_ratio([one.cpu_us for one in taken], [one.cpu_us for one in alone]),
        "idle_percent": median(taken, lambda one: one.idle_percent),
        "percent_of_a_core_at_2000_per_s": median(taken, lambda one: one.percent_at_rate),
        "machine_percent": median(taken, lambda one: one.spent.machine_percent),
        "others_percent": median(taken, lambda one: one.spent.others_percent),
    }


def rate_row(nodes: int, rounds: Sequence[Round]) -> Row:
    """Of the rounds that count, or of all, where none does, with what was wrong."""
    sound = [one.at_rate for one in rounds if not spoilt(one.at_rate)]
    taken = sound or [one.at_rate for one in rounds]
    return {
        "nodes": nodes,
        "offered_per_s": RATE,
        "requests_per_s": median(taken, lambda one: one.sample.per_second),
        "p50_ms": median(taken, lambda one: one.sample.p50_ms),
        "p99_ms": median(taken, lambda one: one.sample.p99_ms),
        "router_percent": median(taken, lambda one: one.spent.router_percent),
        "machine_percent": median(taken, lambda one: one.spent.machine_percent),
        "others_percent": median(taken, lambda one: one.spent.others_percent),
        "valid": "yes" if sound else spoilt(taken[0]),
    }


def spoilt(one: Loaded) -> str:
    """Why a run at the rate says nothing of the router; empty if it does."""
    if one.spent.machine_percent > SATURATED:
        return f"no: the machine was {one.spent.machine_percent:.0f} % busy"
    if one.sample.per_second < KEPT_UP * RATE:
        return f"no: {one.sample.per_second:.0f} requests/s were answered"
    return ""


def median(taken: Sequence[Loaded], value: Callable[[Loaded], float]) -> float:
    return statistics.median(map(value, taken))


def notes(results: Results, plan: Plan, before: str) -> list[str]:
    few, most = NODES[0], NODES[-1]
    idle = {nodes: statistics.median(one.idle.router_percent for one in rounds) for nodes, rounds in results.items()}
    per_report_us = (idle[most] - idle[few]) / 100.0 / (most - few) * 1e6
    listed = ", ".join(f"{percent:.2f} % with {nodes}" for nodes, percent in idle.items())
    said = [
        before,
        f"{plan.rounds} meshes of each size, order reversed each round; medians",
        f"idle {plan.idle_s} s; a loop {plan.window.seconds} s; at the rate {plan.at_rate.seconds} s",
        "cpu_us: CPU (user and system) of the router's process for a request, its idle cost taken off",
        f"ratio: cpu_us beside that with {few} nodes, paired by round",
        "percent_of_a_core_at_2000_per_s: 2,000 such requests and the idle cost; one process cannot have more than 100",
        f"idle, of a core: {listed}; that is {per_report_us:.0f} us for a heartbeat",
        "machine_percent, and others_percent by what is not of the benchmark, are of all cores",
        f"a run at the rate counts if the machine was at most {SATURATED:g} % busy and {KEPT_UP:.0%} answered",
    ]
    for nodes, rounds in results.items():
        lost, again = max(one.silent for one in rounds), sum(one.retries for one in rounds)
        said.append(f"with {nodes} nodes {again:g} requests were sent a second time; {lost} nodes not ready at the end")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.router_cpu", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="about a minute, coarse")
    arguments = parser.parse_args()
    before = machine()
    plan = QUICK if arguments.quick else FULL
    results = measure(plan)
    rows = [*loop_rows(results), *(rate_row(nodes, rounds) for nodes, rounds in results.items())]
    show(rows, notes(results, plan, before), as_json=arguments.json)


if __name__ == "__main__":
    main()
