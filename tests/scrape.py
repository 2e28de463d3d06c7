"""A scrape of metrics, read as Prometheus reads it. Not here: doors (``doors``), what must be in it (the tests)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from mesh.metrics import Measured, Snapshot


class Scrape:
    """A scraped text, as Prometheus takes it."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.values = {(s.name, frozenset(s.labels.items())): s.value for s in samples}
        assert len(self.values) == len(samples), "a series was exposed twice"

    def get(self, metric: str, /, **labels: str) -> float | None:
        """The value of the series with exactly these labels; None where there is none."""
        return self.values.get((metric, frozenset(labels.items())))

    def series(self, metric: str) -> list[dict[str, str]]:
        """The labels of every series of a metric."""
        return [dict(labels) for name, labels in self.values if name == metric]


def scrape(measured: Iterable[Measured]) -> Scrape:
    """Without a door. Blocking."""
    return Scrape(Snapshot(measured).text().decode())
