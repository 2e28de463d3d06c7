"""How long a run takes: learned for each model by input shapes and rows, and by how much the device is slowed down now.

``Latency`` holds what a model costs at its usual speed, ``Slowdown`` what all models of the device cost beyond that at
the moment (heat, other work). A prediction is the product of both. Values in, values out: no clock, no I/O. Not here:
what is done with a prediction (``batching``, ``executor``).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of a request's inputs in order, without the first dimension where requests are batched along it."""

LEARN = 0.05
"""Weight of a new run in what a model costs: slow, what is quick is the slowdown's. The first few runs of a shape that
the warm-up did not measure weigh as much as each other, since the very first pays for set-up."""
LEARN_SLOWDOWN = 0.2
LEARN_DEVIATION = 0.05
OUTLIER = 3.0
"""A single run counts as no slower than this many times what was expected."""
STALE = 200
"""Runs of a shape after which what was learned of other numbers of rows than theirs is taken from its first form."""
MAX_POINTS = 32
"""Of a curve: requests larger than any run so far add one each."""
MARGIN = 0.05
MAX_MARGIN = 0.5
MAX_SHAPES = 64
RECONSIDER = 32
"""Runs after which the best numbers of rows are judged anew."""
PAYS = 0.9
"""More rows are worth it only where the time per row falls below this share of that of fewer."""


class Curve:
    """Milliseconds of a run of n rows: known at some n, straight lines between, through the last two beyond."""

    def __init__(self, points: Iterable[tuple[int, float]], weight: float = LEARN) -> None:
        """``weight`` is that of the next run."""
        self._ms = dict(sorted(points))
        self._rows = tuple(self._ms)
        self._weight = weight
        self._form = dict(self._ms)
        """As it was at first: points that no run came near of late keep that form, relative to those that are known
        better. Else one wrong point could keep the very runs away that would correct it."""
        self._runs = 0
        self._touched: dict[int, int] = {}
        """The last run that was near each point."""
        self._formed = True
        """Whether points that no run came near are up to date; they are asked for more rarely than runs end."""

    def scaled(self, factor: float, weight: float = LEARN) -> Curve:
        if not self._formed:
            self._keep_form()
        return Curve([(rows, ms * factor) for rows, ms in self._ms.items()], weight)

    def at(self, rows: int) -> float:
        if not self._formed and not self._is_fresh(rows):
            self._keep_form()
        known = self._ms.get(rows)
        if known is not None:
            return known
        low, high = self._around(rows)
        if low == high:  # one point: every row costs the same
            return self._ms[low] * rows / low
        slope = (self._ms[high] - self._ms[low]) / (high - low)
        if not low < rows < high:
            slope = max(slope, 0.0)  # two points that noise turned round must not make large runs free
        return max(self._ms[low] + slope * (rows - low), 0.0)

    def learn(self, rows: int, ms: float) -> None:
        """Move towards a measured run; beyond the points it becomes one of its own."""
        expected_ms = self.at(rows)
        self._runs += 1
        if not self._rows[0] <= rows <= self._rows[-1]:
            self._extend(rows, ms)
            return
        weight, self._weight = self._weight, max(self._weight / (1.0 + self._weight), LEARN)
        change = weight * (min(ms / max(expected_ms, 1e-9), OUTLIER) - 1.0)
        if rows in self._ms:
            self._move(rows, change, 1.0)
        else:
            low, high = self._around(rows)
            for point in (low, high):
                self._move(point, change, 1.0 - abs(rows - point) / (high - low))
        self._formed = len(self._ms) == 1

    def _move(self, point: int, change: float, share: float) -> None:
        self._ms[point] *= 1.0 + share * change
        if share >= 0.5:
            self._touched[point] = self._runs

    def _is_fresh(self, point: int) -> bool:
        run = self._touched.get(point)
        return run is not None and self._runs - run < STALE

    def _extend(self, rows: int, ms: float) -> None:
        end = self._rows[-1 if rows > self._rows[-1] else 0]
        self._form[rows] = ms * self._form[end] / max(self._ms[end], 1e-9)
        self._ms[rows] = ms
        self._touched[rows] = self._runs
        if len(self._ms) > MAX_POINTS:
            del self._ms[end], self._form[end]
            self._touched.pop(end, None)
        self._ms = dict(sorted(self._ms.items()))
        self._rows = tuple(self._ms)

    def _keep_form(self) -> None:
        self._formed = True
        known = [point for point, run in self._touched.items() if self._runs - run < STALE]
        for point in self._ms.keys() - known:
            nearest = min([(abs(other - point), other) for other in known])[1]
            self._ms[point] = self._form[point] * self._ms[nearest] / max(self._form[nearest], 1e-9)

    def _around(self, rows: int) -> tuple[int, int]:
        """The known points to draw the line through."""
        points = self._rows
        if len(points) == 1:
            return points[0], points[0]
        above = next((i for i, point in enumerate(points) if point >= rows), len(points) - 1)
        above = max(above, 1)
        return points[above - 1], points[above]


class Latency:
    """One model on one device. Unseen shapes are taken to cost in proportion to their elements."""

    def __init__(self) -> None:
        self._curves: dict[Shapes, Curve] = {}
        self._first: Shapes | None = None
        self._best: dict[tuple[Shapes, int], int] = {}
        self._learned = 0

    def measured(self, shapes: Shapes, points: Iterable[tuple[int, float]]) -> None:
        """Start from what the warm-up measured: (rows, milliseconds)."""
        self._curves = {shapes: Curve(points)}
        self._first = shapes

    def expected_ms(self, shapes: Shapes, rows: int) -> float:
        """Milliseconds of a run at usual speed; 0 while nothing at all is known."""
        curve = self._curve(shapes)
        return 0.0 if curve is None else curve.at(rows)

    def learn(self, shapes: Shapes, rows: int, ms: float) -> None:
        self._learned += 1
        if self._learned % RECONSIDER == 0:
            self._best.clear()
        curve = self._curves.get(shapes)
        if curve is not None:
            curve.learn(rows, ms)
            return
        if len(self._curves) >= MAX_SHAPES:
            del self._curves[next(s for s in self._curves if s != self._first)]
        guess = self._curve(shapes)
        if guess is None:
            self.measured(shapes, [(rows, ms)])
        else:  # the shape of the curve is the guess, its height is what was measured
            self._curves[shapes] = guess.scaled(ms / max(guess.at(rows), 1e-9), 0.5)

    def _curve(self, shapes: Shapes) -> Curve | None:
        curve = self._curves.get(shapes)
        if curve is not None or self._first is None:
            return curve
        first = self._curves[self._first]
        return first.scaled(_elements(shapes) / _elements(self._first))

    def best_rows(self, shapes: Shapes, limit: int) -> int:
        """Rows of the run that costs least per row, at most ``limit``; the fewer where more hardly pay."""
        if limit <= 1:
            return 1
        best = self._best.get((shapes, limit))
        if best is None:
            best = self._best[shapes, limit] = self._cheapest_rows(shapes, limit)
        return best

    def _cheapest_rows(self, shapes: Shapes, limit: int) -> int:
        curve = self._curve(shapes)
        if curve is None:
            return limit
        best, unit = 1, curve.at(1)
        for rows in _sizes(limit):
            per_row = curve.at(rows) / rows
            if per_row < PAYS * unit:
                best, unit = rows, per_row
        return best


def _sizes(limit: int) -> list[int]:
    """Batch sizes worth comparing: powers of two and the limit itself."""
    sizes = [1 << power for power in range(1, limit.bit_length()) if 1 << power <= limit]
    return sizes if sizes and sizes[-1] == limit else [*sizes, limit]


def _elements(shapes: Shapes) -> int:
    return max(sum(prod(shape) for shape in shapes), 1)


class Slowdown:
    """What a run takes now over what it usually takes; 1 at usual speed."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._deviation = 0.0

    def learn(self, ms: float, expected_ms: float) -> None:
        """``expected_ms`` is at usual speed. Leave out the first run after a pause: clocks and caches are cold."""
        if expected_ms <= 0.0:
            return
        ratio = min(ms / expected_ms, self.factor * OUTLIER)
        self._deviation += LEARN_DEVIATION * (abs(ratio / self.factor - 1.0) - self._deviation)
        self.factor += LEARN_SLOWDOWN * (ratio - self.factor)

    @property
    def margin(self) -> float:
        """Share by which a prediction is raised before it is held against a deadline: the usual error of late."""
        return min(max(self._deviation, MARGIN), MAX_MARGIN)
