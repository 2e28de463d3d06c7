"""Metrics and their text for Prometheus (format 0.0.4): the only importer of prometheus_client.

A :class:`Family` is declared once, beside what it is read from; its values are read when somebody scrapes, so that
nothing is kept twice, and two nodes in one process share nothing. Not here: which families there are (``node_metrics``,
``edge.metrics``), counting (``tally``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mesh.tally import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric as it is exposed: ``mesh_``, a counter ends in ``_total``, the unit is the last part but that."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()


Samples = Mapping[Any, float | Histogram]
"""By a tuple of the values of the labels, in their order."""
Measured = tuple[Family, Samples]


class Snapshot:
    """Values as of now: take it on the loop that counts. :meth:`text` takes longer, and is for a thread."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._measured = [
            (family, [(labels, copy(value)) for labels, value in samples.items()]) for family, samples in measured
        ]

    def text(self) -> bytes:
        """These, and the process as every Prometheus client tells of it (CPU, memory, files). Reads ``/proc``."""
        ours = [_metric(family, samples) for family, samples in self._measured if samples]
        return generate_latest(_Fixed([*ours, *ProcessCollector(registry=None).collect()]))


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _metric(family: Family, samples: list[tuple[Any, float | Histogram]]) -> Metric:
    made: Any = _KINDS[family.kind](family.name, family.text, labels=family.labels)
    for labels, value in samples:
        if isinstance(value, Histogram):
            made.add_metric(labels, _buckets(value), value.sum)
        else:
            made.add_metric(labels, value)
    assert isinstance(made, Metric)  # noqa: S101 - as all kinds are
    return made


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = ("+Inf" if math.isinf(bound) else repr(float(bound)) for bound in (*histogram.bounds, math.inf))
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))


_KINDS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
