"""``python -m tests.bench.cascade``: what it costs that a sure answer is looked at before it goes out.

One agent holds the same model of 1,000 scores thrice: without a cascade, and with two that are always sure. Ratios are
those of requests/s, and of the agent's CPU for a request, with and without, taken in the same rounds. Not here: what an
unsure answer costs, which is a request to the larger model; what a hop costs (``hops``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests import onnx_models
from tests.bench import loadgen, processes
from tests.bench.loadgen import Job, Sample, Window
from tests.bench.processes import Server, started
from tests.bench.report import Row, machine, show
from tests.bench.stats import in_round, paired_ratio

SCORES = 1000
PLAIN = "plain"
CASCADES = {"max": 'confidence = "max"', "entropy of logits": 'confidence = "entropy"\nsoftmax = true'}
CONNECTIONS = (1, 8)
DECLARED = '[cascade]\nnext = "elsewhere"\noutput = "OUTPUT"\nthreshold = 0.0\naudit = 0.0\n'


@dataclass(frozen=True)
class Right:
    """Verifier of replies: the small model answered, through a cascade if it has one."""

    cascade: bool

    def __call__(self, head: bytes, body: bytes) -> str:
        told = b"\r\nmesh-cascade: small\r\n" in head.lower()
        return "" if told == self.cascade else f"a cascade answered: {told}"


def folder_of(variant: str) -> str:
    return variant.replace(" ", "-")


@contextlib.contextmanager
def agent() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "models"
        model = onnx_models.identity("FP32", (-1, SCORES))
        for variant, toml in {PLAIN: "", **CASCADES}.items():
            onnx_models.save(model, models / folder_of(variant) / "1" / "model.onnx")
            batching = "[batching]\nmax_rows = 1\n"
            (models / folder_of(variant) / "model.toml").write_text(batching + (toml and DECLARED + toml))
        environ = {
            "MESH_DISCOVERY__ENABLED": "false",
            "MESH_MODELS__ISOLATION": "none",
            "MESH_NODE__STATE_DIR": str(Path(name) / "state"),
        }
        with started("agent", processes.agent(models), environ) as server:
            yield server


def request(model: str, address: str, *, binary: bool) -> bytes:
    scores = np.full((1, SCORES), 1.0 / SCORES, np.float32)
    tensor = {"name": "INPUT", "datatype": "FP32", "shape": [1, SCORES], "parameters": {"binary_data_size": 4 * SCORES}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    body = head + scores.tobytes()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {address}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return lines.encode() + body


def measure(rounds: int, window: Window) -> list[Row]:
    rows: list[Row] = []
    variants = [PLAIN, *CASCADES]
    with agent() as server, loadgen.own_process() as generator:
        for binary in (True, False):
            for connections in CONNECTIONS:
                found: dict[str, list[Sample]] = {variant: [] for variant in variants}
                cpu_us: dict[str, list[float]] = {variant: [] for variant in variants}
                for number in range(rounds):
                    for variant in in_round(variants, number):
                        asked = request(folder_of(variant), server.address, binary=binary)
                        job = Job(server.host, server.port, asked, Right(variant != PLAIN), connections, window)
                        before = sum(server.cpu_s())
                        sample = generator.submit(loadgen.run, job).result()
                        cpu_us[variant].append((sum(server.cpu_s()) - before) / max(sample.answered, 1) * 1e6)
                        if sample.errors:
                            raise RuntimeError(f"{variant}: {sample.error}")
                        found[variant].append(sample)
                rows += [_row(variant, binary, connections, found, cpu_us) for variant in variants]
    return rows


def _row(
    variant: str, binary: bool, connections: int, found: dict[str, list[Sample]], cpu_us: dict[str, list[float]]
) -> Row:
    rates = {name: [sample.per_second for sample in samples] for name, samples in found.items()}
    return {
        "answer": "binary" if binary else "JSON",
        "connections": connections,
        "cascade": variant,
        "per_s": statistics.median(rates[variant]),
        "p50_us": statistics.median(sample.p50_ms for sample in found[variant]) * 1e3,
        "cpu_us": statistics.median(cpu_us[variant]),
        "cpu_ratio": paired_ratio(cpu_us[variant], cpu_us[PLAIN]),
        "ratio": paired_ratio(rates[variant], rates[PLAIN]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rows = measure(3, Window(0.5)) if arguments.quick else measure(9, Window(1.5))
    show(rows, [machine(), f"{SCORES} scores in and out; the model only hands them on"], as_json=arguments.json)


if __name__ == "__main__":
    main()
