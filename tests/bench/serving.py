"""``python -m tests.bench.serving``: what the agent serves, beside a bare echo and ONNX Runtime called directly.

All variants are measured in one run, cell by cell (request size x connections), in paired rounds whose order turns
round each time; a ratio is the median of the ratios of the rounds. Not here: generating load (``loadgen``), the hops
between nodes (``hops``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.nats_server import free_port
from tests.bench import loadgen, other_doors, processes
from tests.bench.loadgen import Job, Sample, Verify, Window
from tests.bench.models import ADD, POOL, Answer, Bytes, Model, write_repository
from tests.bench.other_doors import GrpcVariant, MqttVariant
from tests.bench.processes import TUNED_MALLOC, Server, module, started
from tests.bench.report import Row, machine, show
from tests.bench.stats import in_round, paired_ratio, percentile

ECHO, TUNED, DIRECT, WORKER, INLINE = "echo", "echo-tuned-malloc", "ort-direct", "agent-worker", "agent-inline"
GRPC_ECHO, GRPC, GRPC_STREAM_ECHO, GRPC_STREAM = "grpc-echo", "agent-grpc", "grpc-stream-echo", "agent-grpc-stream"
MQTT_ECHO, MQTT = "mqtt-echo", "agent-mqtt"
OTHERS = (GRPC_ECHO, GRPC, GRPC_STREAM_ECHO, GRPC_STREAM, MQTT_ECHO, MQTT)
VARIANTS = (ECHO, TUNED, DIRECT, WORKER, INLINE, *OTHERS)
BARS = {GRPC: GRPC_ECHO, GRPC_STREAM: GRPC_STREAM_ECHO, MQTT: MQTT_ECHO}
BARS |= {bar: bar for bar in BARS.values()}
"""Which echo a row's ``ratio_to_echo`` is to; where none is named, the HTTP one."""
MODELS = (ADD, POOL)
CONNECTIONS = (1, 8)
AIMS = {WORKER: 0.4, INLINE: 0.6}


FULL = (8, Window(seconds=1.2, warmup_s=0.2))
QUICK = (3, Window(seconds=0.4, warmup_s=0.1))
"""Rounds, and the window of each measurement."""


@dataclass(frozen=True)
class Measured:
    """One sample, and the CPU microseconds a request cost the server process and its children (None: not a server)."""

    sample: Sample
    cpu_us: float | None = None
    children_cpu_us: float | None = None


class Variant(Protocol):
    name: str
    most_connections: int

    def measure(self, model: Model, connections: int, window: Window) -> Measured: ...


class HttpVariant:
    """A server under load from the generator's process. An echo is asked for as many bytes as the model answers."""

    most_connections = 1 << 16

    def __init__(self, name: str, server: Server, load: ProcessPoolExecutor, *, echo: bool) -> None:
        self.name = name
        self._server = server
        self._load = load
        self._echo = echo

    def measure(self, model: Model, connections: int, window: Window) -> Measured:
        server, answer_bytes = self._server, len(model.reply)
        path = f"/{answer_bytes}" if self._echo else model.path
        verify: Verify = Bytes(answer_bytes) if self._echo else Answer(model)
        request = model.http(path, server.address)
        job = Job(server.host, server.port, request, verify, connections, window)
        before = server.cpu_s()
        sample = self._load.submit(loadgen.run, job).result()
        after = server.cpu_s()
        own, children = ((b - a) / max(sample.answered, 1) * 1e6 for a, b in zip(before, after, strict=True))
        return Measured(sample, own, children)


class OtherDoor:
    """A variant of ``other_doors``, with what it cost."""

    def __init__(self, variant: GrpcVariant | MqttVariant) -> None:
        self.name = variant.name
        self.most_connections = variant.most_connections
        self._variant = variant

    def measure(self, model: Model, connections: int, window: Window) -> Measured:
        before = self._variant.server.cpu_s()
        sample = self._variant.sample(model, connections, window)
        after = self._variant.server.cpu_s()
        own, children = ((b - a) / max(sample.answered, 1) * 1e6 for a, b in zip(before, after, strict=True))
        return Measured(sample, own, children)


class DirectVariant:
    """``InferenceSession.run`` in a loop on one thread, nothing around it: the floor that no server can go below."""

    name = DIRECT
    most_connections = 1

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self._process = process

    def measure(self, model: Model, connections: int, window: Window) -> Measured:
        return Measured(self._process.submit(run_directly, model, window).result())


def run_directly(model: Model, window: Window) -> Sample:
    """Closed loop around the session in this process."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.onnx().SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed, latencies = {"x": model.tensor}, []
    began = time.perf_counter() + window.warmup_s
    now = time.perf_counter()
    while now < began + window.seconds:
        (answer,) = session.run(["y"], feed)
        sent, now = now, time.perf_counter()
        if sent >= began:
            latencies.append(now - sent)
    latencies.sort()
    wrong = model.judge_numbers(answer)
    p50, p99 = percentile(latencies, 0.50) * 1e3, percentile(latencies, 0.99) * 1e3
    return Sample(len(latencies), now - began, p50, p99, len(latencies), int(bool(wrong)), wrong)


@contextlib.contextmanager
def servers(names: Sequence[str]) -> Iterator[list[Variant]]:
    """Start what is compared; all of it runs throughout, idle while another is measured."""
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(loadgen.own_process())
        direct = stack.enter_context(loadgen.own_process())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = write_repository(folder / "models", *MODELS)

        def echo(name: str, environ: Mapping[str, str]) -> Variant:
            return HttpVariant(
                name, stack.enter_context(started(name, module("tests.bench.echo"), environ)), load, echo=True
            )

        def agent(name: str, isolation: str) -> Variant:
            environ = {
                "MESH_MODELS__ISOLATION": isolation,
                "MESH_DISCOVERY__ENABLED": "false",
                "MESH_NODE__STATE_DIR": str(folder / name),
            }
            command = processes.agent(repository)
            return HttpVariant(name, stack.enter_context(started(name, command, environ)), load, echo=False)

        other = functools.cache(lambda: stack.enter_context(other_doors_of(folder, repository, load)))
        make: dict[str, Callable[[], Variant]] = {
            ECHO: lambda: echo(ECHO, {}),
            TUNED: lambda: echo(TUNED, TUNED_MALLOC),
            DIRECT: lambda: DirectVariant(direct),
            WORKER: lambda: agent(WORKER, "model"),
            INLINE: lambda: agent(INLINE, "none"),
        } | {name: lambda name=name: OtherDoor(other()[name]) for name in OTHERS}
        yield [make[name]() for name in names]


@contextlib.contextmanager
def other_doors_of(
    folder: Path, repository: Path, load: ProcessPoolExecutor
) -> Iterator[dict[str, GrpcVariant | MqttVariant]]:
    """One agent with all doors, and the bare echoes."""
    with contextlib.ExitStack() as stack:
        url, mqtt_port = stack.enter_context(other_doors.bus(folder / "bus"))
        address = f"127.0.0.1:{free_port('127.0.0.1')}"
        environ = {"MESH_DISCOVERY__ENABLED": "false", "MESH_NODE__STATE_DIR": str(folder / "all-doors")}
        command = processes.agent(repository, "--grpc", address, "--nats", url, "--site", other_doors.SITE)
        agent = stack.enter_context(started("all doors", command, environ))
        sizes = [str(len(other_doors.grpc_reply(model))) for model in MODELS]
        echo = stack.enter_context(started(GRPC_ECHO, module("tests.bench.grpc_echo", *sizes)))
        sizes = [str(other_doors.mqtt_reply_bytes(model)) for model in MODELS]
        mqtt_echo = stack.enter_context(started(MQTT_ECHO, module("tests.bench.mqtt_load", url, "echo", *sizes)))
        yield {
            GRPC_ECHO: GrpcVariant(GRPC_ECHO, echo, echo.address, load, stream=False, echo=True),
            GRPC: GrpcVariant(GRPC, agent, address, load, stream=False, echo=False),
            GRPC_STREAM_ECHO: GrpcVariant(GRPC_STREAM_ECHO, echo, echo.address, load, stream=True, echo=True),
            GRPC_STREAM: GrpcVariant(GRPC_STREAM, agent, address, load, stream=True, echo=False),
            MQTT_ECHO: MqttVariant(MQTT_ECHO, mqtt_echo, mqtt_port, "echo", load, echo=True),
            MQTT: MqttVariant(MQTT, agent, mqtt_port, other_doors.SITE, load, echo=False),
        }


Cell = tuple[Model, int]
Results = dict[tuple[str, Model, int], list[Measured]]


def measure(variants: Sequence[Variant], cells: Sequence[Cell], rounds: int, window: Window) -> Results:
    """All rounds of all cells. Raises ``RuntimeError`` on the first wrong or missing reply."""
    results: Results = {}
    for number in range(rounds):
        for model, connections in cells:
            for variant in in_round(variants, number):
                if connections > variant.most_connections:
                    continue
                measured = variant.measure(model, connections, window)
                sample = measured.sample
                if sample.errors or not sample.requests:
                    raise RuntimeError(f"{variant.name}, {model.name}, {connections} connections: {sample}")
                results.setdefault((variant.name, model, connections), []).append(measured)
    return results


def rows(results: Results, cells: Sequence[Cell], names: Sequence[str]) -> list[Row]:
    table: list[Row] = []
    for (model, connections), name in itertools.product(cells, names):
        taken = results.get((name, model, connections))
        if taken is None:
            continue
        table.append(
            {
                "variant": name,
                "request_bytes": model.nbytes,
                "connections": connections,
                "requests_per_s": statistics.median(m.sample.per_second for m in taken),
                "p50_ms": statistics.median(m.sample.p50_ms for m in taken),
                "p99_ms": statistics.median(m.sample.p99_ms for m in taken),
                "ratio_to_echo": _ratio(taken, results.get((BARS.get(name, ECHO), model, connections))),
                "ratio_to_tuned_echo": None
                if name in BARS
                else _ratio(taken, results.get((TUNED, model, connections))),
                "cpu_us": _median([m.cpu_us for m in taken]),
                "worker_cpu_us": _median([m.children_cpu_us for m in taken]),
            }
        )
    return table


def _ratio(ours: Sequence[Measured], base: Sequence[Measured] | None) -> float | None:
    if base is None:
        return None
    return paired_ratio([m.sample.per_second for m in ours], [m.sample.per_second for m in base])


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def notes(table: Sequence[Row], rounds: int, window: Window, before: str) -> list[str]:
    said = [
        before,
        f"{rounds} rounds of {window.seconds} s a cell, order reversed each round; ratios are medians of paired rounds",
        "the load generator takes one of the cores; first and last reply of each connection are checked in full",
        "an echo reads the same request as the agent and answers as many bytes as the model does",
        "gRPC and MQTT have bare echoes of their own: grpc.aio that parses nothing, nats-py behind the same listener",
        "ort-direct: one thread of ONNX Runtime in a loop, no server; one caller only",
        "cpu_us and worker_cpu_us: CPU time (user and system) a request costs the server process and its children",
    ]
    for name, aim in AIMS.items():
        ratios = [row["ratio_to_echo"] for row in table if row["variant"] == name]
        if ratios:
            listed = ", ".join(f"{r:.2f}" for r in ratios if isinstance(r, float))
            said.append(f"{name}: {listed} of the bare echo; the aim is {aim}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="under a minute, coarse")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="only these")
    arguments = parser.parse_args()
    before = machine()
    rounds, window = QUICK if arguments.quick else FULL
    cells = list(itertools.product(MODELS, CONNECTIONS))
    with servers(arguments.variants) as variants:
        results = measure(variants, cells, rounds, window)
    table = rows(results, cells, arguments.variants)
    show(table, notes(table, rounds, window, before), as_json=arguments.json)


if __name__ == "__main__":
    main()
