"""``python -m tests.bench.offload``: every policy in every scenario, on paired seeds, in virtual time.

``attainment`` counts every arrival; ``goodput99`` is the rate, in requests a second, up to which 99 % of them are in
time. Not here: what is run (experiment.py), the scenarios, the policies, the page (publish.py).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterable, Sequence

from tests.bench.offload import lineup
from tests.bench.offload.document import document
from tests.bench.offload.experiment import compare
from tests.bench.offload.scenarios import MAIN, SCENARIOS
from tests.bench.offload.work import workers
from tests.bench.report import Row, show, table

COLUMNS = (
    "scenario", "policy", "goodput99", "goodput99_low", "goodput99_high", "ratio", "ratio_low", "ratio_high",
    "attainment", "attainment_ci", "attainment_diff", "attainment_diff_ci", "p50_ms", "p99_ms", "p999_ms", "wan_mb",
    "wasted", "predicted_error", "by_prediction",
)  # fmt: skip
"""Of the table for people; the document has all figures."""
QUICK_S = 15.0


def matching(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names that a pattern stands for, as ``S4*``; ends the program where one stands for none."""
    names, found = list(names), []
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            sys.exit(f"no {pattern!r} among {', '.join(names)}")
        found += [name for name in matches if name not in found]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scenario", nargs="*", default=list(MAIN), help="names or patterns, as S4*; S1 to S11")
    parser.add_argument("--policy", nargs="*", default=["*"], help="names or patterns; all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--goodput-seeds", type=int, default=5, help="seeds of goodput, 0 for none")
    parser.add_argument("--seconds", type=float, help="of every run, in place of the scenario's own")
    parser.add_argument("--jobs", type=int, help="processes; as many as there are cores")
    parser.add_argument("--published", action="store_true", help="published parameters in place of tuned ones")
    parser.add_argument("--quick", action="store_true", help="coarse: 2 seeds of 15 s")
    arguments = parser.parse_args()
    names = matching(arguments.policy, lineup.names())
    scenarios = matching(arguments.scenario, SCENARIOS)
    count = 2 if arguments.quick else arguments.seeds
    seeds, goodput_seeds = range(1, count + 1), range(1, min(arguments.goodput_seeds, count) + 1)
    factories = {name: lineup.factory(name, published=arguments.published) for name in names}
    seconds = arguments.seconds or (QUICK_S if arguments.quick else None)
    with workers(arguments.jobs, tells=True) as work:
        found = compare(scenarios, factories, seeds, goodput_seeds, seconds, work)
    told = document(found, published=arguments.published, seconds=seconds)
    if arguments.json:
        print(json.dumps(told, indent=1, allow_nan=False))
        return
    for part in ("verdicts", "parts"):
        if told[part]:
            print(table(told[part]), end="\n\n")
    show(list(map(_short, told["rows"])), [*told["notes"], f"seeds 1 to {count}"], as_json=False)


def _short(row: Row) -> Row:
    return {column: row.get(column) for column in COLUMNS}


if __name__ == "__main__":
    main()
