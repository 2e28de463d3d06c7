"""What is declared about a model and concerns every door that asks for it, wherever it runs; it travels in reports.

Not here: the file it is declared in (``edge.model_config``), what a node measures (``messages``).
"""

from __future__ import annotations

import msgspec


class Cascade(msgspec.Struct, frozen=True, omit_defaults=True):
    """A larger model is asked where this one is not sure of its answer."""

    next: str
    """The larger model's name."""
    output: str
    """Name of the output that tells how sure this model is, and that both have."""
    threshold: float
    """Confidence, 0 to 1, from which on this model's answer counts; where ``target`` is given, at first."""
    confidence: str = "max"
    """How it is read off, one of ``mesh.confidence.KINDS``; a door that does not know it applies no cascade."""
    softmax: bool = False
    """Whether the output holds logits."""
    target: float | None = None
    """Share of the sure answers with which the larger model should agree."""
    audit: float = 0.0
    """Share of the sure answers that the larger model is asked about too, when they are out."""
    next_version: str = ""
