"""From which confidence on a small model may answer alone: a threshold, calibrated from comparisons. Pure.

What is compared is an answer of the small model with the larger one's to the same inputs. Of the sure answers only a
share is compared (audits), of the others nearly all (escalations), so each comparison stands for as many answers as
were seen of its sort for one compared: the inverse of its probability (Horvitz-Thompson). Older ones count less and
less. Not here: asking anybody (``cascade``), what confidence is (``confidence``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mesh.oip.datatypes import Array

STEPS = 100
"""Thresholds that are tried: every hundredth from 0 to 1."""
LEAST = 50.0
"""Nothing is concluded from fewer comparisons (effective number, after Kish)."""
EVERY = 10
"""Comparisons between two calibrations."""
HORIZON = 2000.0
"""After as many audits as this an old comparison counts ``1/e`` of a new one."""
Z = 1.96
"""Of the bound that agreement must exceed: one-sided 97.5 %."""
DOWN = 0.02
"""The threshold falls by so much at least, or not at all."""
UP = 0.05
"""The threshold rises by this much while no threshold is proven and agreement is too low."""


@dataclass(slots=True)
class _Share:
    """How many answers of a sort were seen for one compared, over about the last hundred compared."""

    seen: float
    compared: float

    def note(self) -> float:
        """One more was compared; the answers that it stands for."""
        self.compared += 1.0
        each = max(self.seen / self.compared, 1.0)
        self.seen *= 0.99
        self.compared *= 0.99
        return each


class Calibration:
    """The threshold of one small model against one larger one; without a ``target`` it stays at the declared one.

    ``threshold`` and ``target``, the agreement wanted of the answers at and above the threshold, are from 0 to 1;
    ``audit`` is the share of the sure answers that is compared.
    """

    def __init__(self, threshold: float, target: float | None, audit: float) -> None:
        self.threshold = threshold
        self._target = target
        self._audit = min(max(audit, 1e-4), 1.0)
        self.forget()

    def forget(self) -> None:
        """Another larger model: what was compared says nothing any more. The threshold stays."""
        self._bins: Array = np.zeros((3, STEPS + 1))
        """By confidence in hundredths: answers stood for, those of them that agreed, squares of what each stood for."""
        self._shares = {True: _Share(10.0 / self._audit, 10.0), False: _Share(10.0, 10.0)}
        self._since = 0
        self._fresh = 0

    def sure(self, confidence: float) -> bool:
        return confidence >= self.threshold

    def answered(self, *, sure: bool) -> None:
        """The small model answered."""
        self._since += 1
        self._shares[sure].seen += 1.0

    def compared(self, confidence: float, *, agreed: bool, sure: bool) -> None:
        """An answer was compared that was taken for ``sure``, or not, when it was made."""
        kept = np.exp(-self._since * self._audit / HORIZON)
        self._bins *= np.array([[kept], [kept], [kept * kept]])
        self._since = 0
        each = self._shares[sure].note()
        self._bins[:, min(max(int(confidence * STEPS + 1e-9), 0), STEPS)] += (each, each * agreed, each * each)
        self._fresh += 1
        if self._target is not None and self._fresh >= EVERY:
            self._fresh = 0
            self._calibrate(self._target)

    @property
    def agreement(self) -> float | None:
        """Share of the answers at and above the threshold with which the larger model agrees; None while unknown."""
        answers, agreed, _ = self._bins[:, self._at :].sum(axis=1)
        return float(agreed / answers) if answers > 0.0 else None

    @property
    def _at(self) -> int:
        return min(max(int(np.ceil(self.threshold * STEPS - 1e-9)), 0), STEPS)

    def _calibrate(self, target: float) -> None:
        """To the lowest threshold that is proven: the bound of its agreement reaches the target.

        One that stands is left for a higher one only when the agreement itself is below the target: it does not flap.
        """
        answers, agreed, squares = self._bins[:, ::-1].cumsum(axis=1)[:, ::-1]
        number = np.divide(answers**2, squares, out=np.zeros(STEPS + 1), where=squares > 0.0)
        share = np.divide(agreed, answers, out=np.ones(STEPS + 1), where=answers > 0.0)
        proven = np.flatnonzero((number >= LEAST) & (lower_bound(share, number) >= target))
        lowest = float(proven[0]) / STEPS if proven.size else None
        if lowest is not None and lowest < self.threshold:
            if self.threshold - lowest >= DOWN - 1e-9:
                self.threshold = lowest
        elif number[self._at] >= LEAST and share[self._at] < target:
            self.threshold = lowest if lowest is not None else min(self.threshold + UP, 1.0)


def lower_bound(share: Array, number: Array, z: float = Z) -> Array:
    """Wilson's lower bound of a share that was observed ``number`` times (E. B. Wilson, JASA 22, 1927); 0 for none."""
    number = np.maximum(number, 1e-9)
    squared = z * z
    centre = share + squared / (2.0 * number)
    spread = z * np.sqrt(share * (1.0 - share) / number + squared / (4.0 * number**2))
    bound: Array = np.maximum((centre - spread) / (1.0 + squared / number), 0.0)
    return bound
