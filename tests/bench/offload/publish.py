"""``python -m tests.bench.offload.publish``: run everything and write the page, the document and the pictures.

`--from` draws and words again what was measured before. Not here: what is run (experiment.py, faults.py, curves.py),
how it is told (document.py, markdown.py, plots.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench.offload import curves, faults, lineup
from tests.bench.offload.document import Document, document, without_times
from tests.bench.offload.experiment import compare
from tests.bench.offload.markdown import markdown
from tests.bench.offload.plots import plots
from tests.bench.offload.scenarios import MAIN
from tests.bench.offload.work import Work, workers

QUICK_S = 6.0
QUICK_POLICIES = ("ours", "peak-ewma", "prequal-net", "omniscient")
QUICK_SCENARIOS = ("S1", "S2", "S5")


def measured(arguments: argparse.Namespace, work: Work) -> Document:
    """Everything: the comparison, the faults, the curves and the bounds."""
    quick: bool = arguments.quick
    seconds = arguments.seconds or (QUICK_S if quick else None)
    names = [name for name in lineup.names() if not quick or name in QUICK_POLICIES]
    scenarios = QUICK_SCENARIOS if quick else MAIN
    seeds = _seeds(2 if quick else arguments.seeds)
    goodput_seeds = _seeds(1 if quick else min(arguments.goodput_seeds, arguments.seeds))
    found = compare(scenarios, {name: lineup.factory(name) for name in names}, seeds, goodput_seeds, seconds, work)
    told = without_times(document(found, seconds=seconds))
    of_faults = {name: lineup.factory(name) for name in faults.POLICIES}
    told["faults"] = faults.faults(faults.NAMES, of_faults, _seeds(1) if quick else seeds, seconds, work)
    told["fault_notes"] = list(faults.NOTES)
    of_curves = {name: lineup.factory(name) for name in curves.POLICIES}
    some = [name for name in curves.SCENARIOS if name in scenarios]
    told["curves"] = curves.curves(some, of_curves, goodput_seeds, seconds, work)
    told["bounds"] = curves.bounds(scenarios, _seeds(1 if quick else arguments.bound_seeds), seconds, work)
    return told


def _seeds(count: int) -> Sequence[int]:
    return range(1, count + 1)


def write(told: Document, folder: Path) -> None:
    """`offload.json`, the pictures, and `offload.md` that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "offload.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    (folder / "offload.md").write_text(markdown(told, plots(told, folder)))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--from", type=Path, dest="source", help="a document measured before; nothing is run")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--goodput-seeds", type=int, default=5)
    parser.add_argument("--bound-seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="of every run, in place of the scenario's own")
    parser.add_argument("--jobs", type=int, help="processes; as many as there are cores")
    parser.add_argument("--quick", action="store_true", help="few policies, scenarios and seeds, short runs")
    arguments = parser.parse_args(given)
    if arguments.source is not None:
        write(json.loads(arguments.source.read_text()), arguments.to)
        return
    with workers(arguments.jobs, tells=True) as work:
        told = measured(arguments, work)
    write(told, arguments.to)


if __name__ == "__main__":
    main()
