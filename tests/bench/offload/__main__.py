"""``python -m tests.bench.offload``: every policy in every scenario, on paired seeds, in virtual time.

``attainment`` counts every arrival; ``goodput99`` is the rate, in requests a second, up to which 99 % of them are in
time. Not here: what is run (experiment.py), the scenarios, the policies.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterable, Sequence

from tests.bench.offload import ours, policies
from tests.bench.offload.experiment import Factory, compare
from tests.bench.offload.scenarios import MAIN, SCENARIOS
from tests.bench.offload.verdicts import verdicts
from tests.bench.report import Row, show

COLUMNS = (
    "scenario", "policy", "goodput99", "goodput99_low", "goodput99_high", "ratio", "ratio_low", "ratio_high",
    "attainment", "attainment_ci", "attainment_diff", "attainment_diff_ci", "p50_ms", "p99_ms", "wan_mb", "wasted",
    "predicted_error", "by_prediction",
)  # fmt: skip
"""Of the table for people; the document has all figures."""
QUICK_S = 15.0


def factories(names: Iterable[str], *, published: bool) -> dict[str, Factory]:
    """The policies of these names, with tuned parameters unless published ones are asked for."""
    tuned = {} if published else policies.tuned()

    def factory(name: str) -> Factory:
        return ours.POLICIES.get(name) or (lambda: policies.make(name, tuned.get(name)))

    return {name: factory(name) for name in names}


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
    parser.add_argument("--goodput-seeds", type=int, help="seeds of goodput, 0 for none; as many as --seeds")
    parser.add_argument("--published", action="store_true", help="published parameters in place of tuned ones")
    parser.add_argument("--quick", action="store_true", help="coarse: 2 seeds of 15 s")
    arguments = parser.parse_args()
    names = matching(arguments.policy, [*ours.POLICIES, *policies.NAMES])
    scenarios = matching(arguments.scenario, SCENARIOS)
    count = 2 if arguments.quick else arguments.seeds
    goodput = count if arguments.goodput_seeds is None else min(arguments.goodput_seeds, count)
    began = time.monotonic()
    rows = compare(
        scenarios,
        factories(names, published=arguments.published),
        range(1, count + 1),
        range(1, goodput + 1),
        QUICK_S if arguments.quick else None,
        lambda cell: print(f"{time.monotonic() - began:6.0f} s  {cell}", file=sys.stderr),
    )
    notes = [f"{name}: {SCENARIOS[name].about}" for name in scenarios]
    notes += [f"seeds 1 to {count}, goodput on 1 to {goodput}; _ci is half a 95 % interval"]
    notes += ["ratio and diff are to peak-ewma on the same seeds; intervals of goodput and ratio are bootstraps"]
    notes += verdicts(rows)
    show(rows if arguments.json else list(map(_short, rows)), notes, as_json=arguments.json)


def _short(row: Row) -> Row:
    return {column: row.get(column) for column in COLUMNS}


if __name__ == "__main__":
    main()
