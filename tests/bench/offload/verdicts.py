"""What a comparison comes to: ours beside the best of the others, scenario by scenario and together, with intervals.

The base is the best tuned baseline of each scenario, whichever it is, chosen on the mean of all seeds. Each interval
is a bootstrap over the seeds, which are paired; it does not choose the base again, which favours the base. No
measuring here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.offload.experiment import Cell, Comparison
from tests.bench.offload.goodput import draws, middle
from tests.bench.offload.lineup import DIAL, PRODUCT, REFERENCE, is_baseline, is_ours
from tests.bench.offload.rows import attainment, best_baseline, goodput, mean
from tests.bench.report import Row

GAIN_IN = ("S2", "S3", "S4", "S5", "S8", "S9", "S10")
"""Where routing by prediction should pay."""
NO_LOSS_IN = ("S1", "S6", "S7")
"""Where it must not lose."""
GAIN, NO_LOSS, CLOSED, SAVED = 1.2, 0.98, 0.85, 2.0
"""The aims: ratios of goodput, share of the gap, ratio of WAN bytes."""
NOTHING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """One claim, in one scenario or in several together."""

    claim: str
    scenario: str
    against: str
    value: float | None
    low: float | None = None
    high: float | None = None
    aim: float | None = None
    """At least that much; None where nothing is aimed at."""

    def row(self) -> Row:
        met = None if self.aim is None or self.value is None else self.value >= self.aim
        return {
            "claim": self.claim, "scenario": self.scenario, "against": self.against, "value": self.value,
            "low": self.low, "high": self.high, "aim": self.aim, "met": "-" if met is None else "yes" if met else "no",
        }  # fmt: skip


Resampled = Callable[["Sequence[int] | None"], "float | None"]
"""A value from seeds drawn with repetition, or from all of them; None where it has no meaning."""


def verdicts(found: Comparison, product: str = PRODUCT) -> list[Verdict]:
    """All that can be said with the scenarios and policies at hand."""
    said: list[Verdict] = []
    ratios: dict[str, Resampled] = {}
    gaps: dict[str, list[tuple[Resampled, Resampled]]] = {"goodput99": [], "attainment": []}
    for scenario in found.scenarios():
        cells = found.of(scenario)
        mine = cells.get(product)
        base = best_baseline(cells)
        if mine is None or base is None:
            continue
        if mine.goodput is not None and goodput(base) > 0.0:
            ratios[scenario] = _ratio(mine, base)
            aim = NO_LOSS if scenario in NO_LOSS_IN else None
            said.append(_say("goodput99 over best baseline", scenario, base.policy, ratios[scenario], found, aim))
        for figure in gaps:
            said += _closed(figure, cells, mine, found, gaps[figure])
        said += _saved(cells, mine, found)
    return said + _together(ratios, gaps, found)


def parts(found: Comparison, product: str = PRODUCT) -> list[Row]:
    """Every variant of ours over ours, all scenarios together: what a part of the rule, or a turn of the dial, does."""
    scenarios = [name for name in found.scenarios() if product in found.of(name)]
    variants = dict.fromkeys(policy for _, policy in found.cells if is_ours(policy) and policy != product)
    said: list[Row] = []
    for policy in variants:
        pairs = [(found.of(name)[policy], found.of(name)[product]) for name in scenarios if policy in found.of(name)]
        searched = [pair for pair in pairs if pair[0].goodput and pair[1].goodput and goodput(pair[1]) > 0.0]
        ratio = _say("goodput99", "all", product, _geometric([_ratio(*pair) for pair in searched]), found)
        points = _say("attainment", "all", product, _difference(pairs, "attainment"), found)
        wan = _say("WAN bytes", "all", product, _difference(pairs, "wan_kb_per_good"), found)
        row: dict[str, str | int | float | None] = {"policy": policy}
        for name, verdict in (("goodput99_ratio", ratio), ("attainment_diff", points), ("wan_kb_per_good_diff", wan)):
            row |= {name: verdict.value, f"{name}_low": verdict.low, f"{name}_high": verdict.high}
        worst = min(pairs, key=lambda pair: attainment(pair[0]) - attainment(pair[1]))
        row |= {"worst_in": worst[0].scenario, "worst_diff": attainment(worst[0]) - attainment(worst[1])}
        said.append(row)
    return said


def _difference(pairs: Sequence[tuple[Cell, Cell]], figure: str) -> Resampled:
    values = [(_value(mine, figure), _value(base, figure)) for mine, base in pairs]
    return lambda seeds: statistics.fmean([mine(seeds) - base(seeds) for mine, base in values])


def pareto(found: Comparison, scenario: str) -> list[Row]:
    """Misses and WAN bytes of every policy, and whether none is better in both; the dial of ours comes first."""
    cells = found.of(scenario)
    points = {name: (100.0 - attainment(cell), mean(cell, "wan_kb_per_good")) for name, cell in cells.items()}
    names = [name for name in DIAL if name in points]
    names += [name for name in points if name not in names and (is_baseline(name) or name == REFERENCE)]
    judged = [points[name] for name in names if name != REFERENCE]
    return [
        {
            "scenario": scenario,
            "policy": name,
            "missed": points[name][0],
            "wan_kb_per_good": points[name][1],
            "front": "yes" if not any(_dominates(other, points[name]) for other in judged) else "no",
        }
        for name in names
    ]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def _say(
    claim: str, scenario: str, against: str, of: Resampled, found: Comparison, aim: float | None = None
) -> Verdict:
    seeds = found.goodput_seeds if "goodput" in claim else found.seeds
    values = [value for draw in draws(len(seeds)) if (value := of(draw)) is not None]
    low, high = middle(values) or (None, None)
    return Verdict(claim, scenario, against, of(None), low, high, aim)


def _ratio(mine: Cell, base: Cell) -> Resampled:
    def ratio(seeds: Sequence[int] | None) -> float | None:
        assert mine.goodput is not None
        assert base.goodput is not None
        other = base.goodput.factor(seeds)
        return mine.goodput.factor(seeds) / other if other > 0.0 else None

    return ratio


def _value(cell: Cell, figure: str) -> Callable[[Sequence[int] | None], float]:
    if figure == "goodput99":
        found = cell.goodput
        assert found is not None
        return lambda seeds: cell.rate * found.factor(seeds)
    values = [of.get(figure, 0.0) for of in cell.figures]
    return lambda seeds: statistics.fmean(values if seeds is None else [values[seed] for seed in seeds])


def _closed(
    figure: str,
    cells: dict[str, Cell],
    mine: Cell,
    found: Comparison,
    gaps: list[tuple[Resampled, Resampled]],
) -> list[Verdict]:
    """The share of the gap between the best baseline and the reference that ours closes."""
    base, reference = best_baseline(cells, figure), cells.get(REFERENCE)
    if (
        base is None
        or reference is None
        or (figure == "goodput99" and None in (mine.goodput, base.goodput, reference.goodput))
    ):
        return []
    of_mine, of_base, of_reference = (_value(cell, figure) for cell in (mine, base, reference))

    def gain(seeds: Sequence[int] | None) -> float:
        return of_mine(seeds) - of_base(seeds)

    def gap(seeds: Sequence[int] | None) -> float:
        return of_reference(seeds) - of_base(seeds)

    gaps.append((gain, gap))
    claim = f"share of the {figure} gap to {REFERENCE}"
    return [_say(claim, mine.scenario, base.policy, _share([(gain, gap)]), found, CLOSED)]


def _share(parts: Sequence[tuple[Resampled, Resampled]]) -> Resampled:
    def share(seeds: Sequence[int] | None) -> float | None:
        gap = sum([of_gap(seeds) or 0.0 for _, of_gap in parts])
        return sum([gain(seeds) or 0.0 for gain, _ in parts]) / gap if gap > NOTHING else None

    return share


def _saved(cells: dict[str, Cell], mine: Cell, found: Comparison) -> list[Verdict]:
    """WAN bytes per good request of the best baseline over those of ours, and of the thriftiest setting of the dial
    that attains no less than the baseline.
    """
    base = best_baseline(cells, "attainment")
    if base is None:
        return []
    dial = [cells[name] for name in DIAL if name in cells and attainment(cells[name]) >= attainment(base)]
    thriftiest = min(dial, key=lambda cell: mean(cell, "wan_kb_per_good"), default=None)
    said = []
    for cell, claim in ((mine, mine.policy), (thriftiest, "thriftiest at equal attainment")):
        if cell is None:
            continue
        of_base, of_cell = _value(base, "wan_kb_per_good"), _value(cell, "wan_kb_per_good")

        def saved(
            seeds: Sequence[int] | None,
            of_base: Callable[[Sequence[int] | None], float] = of_base,
            of_cell: Callable[[Sequence[int] | None], float] = of_cell,
        ) -> float | None:
            return of_base(seeds) / of_cell(seeds) if of_cell(seeds) > NOTHING else None

        name = claim if cell is mine else f"{cell.policy}, {claim}"
        aim = SAVED if attainment(cell) >= attainment(base) else None
        said.append(_say(f"WAN bytes saved by {name}", mine.scenario, base.policy, saved, found, aim))
    return said


def _together(
    ratios: dict[str, Resampled], gaps: dict[str, list[tuple[Resampled, Resampled]]], found: Comparison
) -> list[Verdict]:
    said = []
    gains = [name for name in GAIN_IN if name in ratios]
    if gains:
        claim = "geometric mean of goodput99 over best baseline"
        mean_of = _geometric([ratios[name] for name in gains])
        said.append(_say(claim, " ".join(gains), "best of each", mean_of, found, GAIN))
    even = [name for name in NO_LOSS_IN if name in ratios]
    if even:
        claim = "least goodput99 over best baseline"
        said.append(
            _say(claim, " ".join(even), "best of each", _least([ratios[name] for name in even]), found, NO_LOSS)
        )
    for figure, parts in gaps.items():
        if parts:
            claim = f"share of the {figure} gap to {REFERENCE}, gaps summed"
            said.append(_say(claim, "all", "best of each", _share(parts), found, CLOSED))
    return said


def _geometric(ratios: Sequence[Resampled]) -> Resampled:
    def value(seeds: Sequence[int] | None) -> float | None:
        logs = [math.log(max(ratio, NOTHING)) for of in ratios if (ratio := of(seeds)) is not None]
        return math.exp(statistics.fmean(logs)) if logs else None

    return value


def _least(ratios: Sequence[Resampled]) -> Resampled:
    return lambda seeds: min([ratio for of in ratios if (ratio := of(seeds)) is not None], default=None)
