"""``python -m tests.bench.hops``: what a hop of the mesh adds to an inference, beside the bare transport under it.

Bus: the caller asks an agent by NATS request-reply. ``hop`` is that round trip without the inference, which is taken
as the agent's local HTTP round trip less that of a bare HTTP echo (the one whose malloc keeps large bodies: the plain
one is slower at 602,112 bytes than the agent with its inference); ``bare`` is nats-py to a plain responder.
LAN: the caller asks agent A by HTTP, which holds no model and passes on to B. ``added`` is the round trip through A
less that to B directly; ``bare`` is aiohttp, which the hop uses, to a bare echo.

One caller, p50 of each measurement, paired rounds; everything moves the same bytes. Both agents run their models in
process: a worker would only add noise to both sides of a difference. Not here: requests/s of one agent (``serving``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import loadgen, nats_echo, processes
from tests.bench.clients import Ask, Judge, over_aiohttp, over_nats, until_ok, until_responds
from tests.bench.loadgen import Job, Sample, Verify, Window
from tests.bench.models import ADD, HEADER, POOL, WIDE, Answer, Bytes, Model, ParsedAnswer, write_repository
from tests.bench.processes import TUNED_MALLOC, Server, module, nats_server, started
from tests.bench.report import Row, machine, show
from tests.bench.stats import in_round

MODELS = (ADD, WIDE, POOL)
SITE, NODE = "bench", "on-bus"
BUS_SUBJECT = f"mesh.v1.{SITE}.node.{NODE}.infer"
MEET_S = 30.0
AIM = 2.0

Round = dict[str, float]
"""p50 in milliseconds of each measurement of one round."""


FULL = (7, Window(seconds=1.0, warmup_s=0.2))
QUICK = (3, Window(seconds=0.3, warmup_s=0.1))
"""Rounds, and the window of each measurement."""


@dataclass(frozen=True)
class Park:
    """The servers that take part."""

    nats_url: str
    echo: Server
    tuned_echo: Server
    """The same with a malloc that keeps large bodies, a harder bar (``serving`` has the difference)."""
    on_bus: Server
    a: Server
    b: Server


@contextlib.contextmanager
def park() -> Iterator[Park]:
    """Start all, and wait until A can reach the models of B."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        full, empty = write_repository(folder / "models", *MODELS), folder / "none"
        empty.mkdir()
        key = secrets.token_hex(16)

        def agent(name: str, repository: Path, *arguments: str, **environ: str) -> Server:
            environ |= {
                "MESH_MODELS__ISOLATION": "none",
                "MESH_DISCOVERY__ENABLED": "false",
                "MESH_NODE__STATE_DIR": str(folder / name),
            }
            command = processes.agent(repository, "--site", SITE, "--node", name, *arguments)
            return stack.enter_context(started(name, command, environ))

        url = stack.enter_context(nats_server())
        stack.enter_context(started("nats responder", module("tests.bench.nats_echo", url)))
        echo = stack.enter_context(started("echo", module("tests.bench.echo")))
        tuned = stack.enter_context(started("echo-tuned-malloc", module("tests.bench.echo"), TUNED_MALLOC))
        on_bus = agent(NODE, full, "--nats", url)
        b = agent("b", full, MESH_SITE__KEY=key)
        a = agent("a", empty, MESH_SITE__KEY=key, MESH_DISCOVERY__SEEDS=f'["{b.address}"]')
        for model in MODELS:
            asyncio.run(until_ok(f"http://{a.address}/v2/models/{model.name}/ready", MEET_S))
        asyncio.run(until_responds(url, BUS_SUBJECT, MEET_S))
        yield Park(url, echo, tuned, on_bus, a, b)


Work = tuple[Callable[[Any], Sample], "Job | Ask"]
"""A closed loop of one caller, and what it is to ask."""


def measurements(servers: Park, model: Model, window: Window) -> dict[str, Work]:
    """Every p50 that a row needs, by name; all of them carry the same request body and as many bytes back."""
    count = len(model.reply)

    def http(server: Server, path: str, verify: Verify) -> Work:
        return loadgen.run, Job(server.host, server.port, model.http(path, server.address), verify, window=window)

    def bus(subject: str, judge: Judge, headers: dict[str, str]) -> Work:
        return over_nats, Ask(servers.nats_url, model.body, judge, subject, headers, window)

    def bare(server: Server) -> Work:
        return over_aiohttp, Ask(f"http://{server.address}/{count}", model.body, Bytes(count), window=window)

    hop_headers = {HEADER: str(len(model.header)), "Mesh-Model": model.name, "Mesh-Version": "1"}
    return {
        "nats": bus(f"{nats_echo.SUBJECT}.{count}", Bytes(count), {}),
        "bus": bus(BUS_SUBJECT, ParsedAnswer(model), hop_headers),
        "echo": http(servers.tuned_echo, f"/{count}", Bytes(count)),
        "local": http(servers.on_bus, model.path, Answer(model, NODE)),
        "aiohttp": bare(servers.echo),
        "aiohttp_tuned": bare(servers.tuned_echo),
        "direct": http(servers.b, model.path, Answer(model, "b")),
        "via": http(servers.a, model.path, Answer(model, "b")),
    }


def measure(servers: Park, rounds: int, window: Window) -> dict[Model, list[Round]]:
    """All rounds of all models. Raises ``RuntimeError`` on the first wrong or missing reply."""
    results: dict[Model, list[Round]] = {model: [] for model in MODELS}
    with loadgen.own_process() as callers:
        for number in range(rounds):
            for model in MODELS:
                taken: Round = {}
                for name, (loop, job) in in_round(list(measurements(servers, model, window).items()), number):
                    sample = callers.submit(loop, job).result()
                    if sample.errors or not sample.requests:
                        raise RuntimeError(f"{name}, {model.name}: {sample}")
                    taken[name] = sample.p50_ms
                results[model].append(taken)
    return results


def bus_row(model: Model, rounds: Sequence[Round]) -> Row:
    return {
        "hop": "bus",
        "request_bytes": model.nbytes,
        "bare_nats_ms": _median(rounds, lambda r: r["nats"]),
        "over_bus_ms": _median(rounds, lambda r: r["bus"]),
        "local_http_ms": _median(rounds, lambda r: r["local"]),
        "http_echo_ms": _median(rounds, lambda r: r["echo"]),
        "hop_ms": _median(rounds, bus_hop_ms),
        "ratio": _median(rounds, lambda r: bus_hop_ms(r) / r["nats"]),
        "ratio_with_inference": _median(rounds, lambda r: r["bus"] / r["nats"]),
    }


def bus_hop_ms(one: Round) -> float:
    """The round trip over the bus without the inference in it."""
    return one["bus"] - (one["local"] - one["echo"])


def lan_row(model: Model, rounds: Sequence[Round]) -> Row:
    return {
        "hop": "lan",
        "request_bytes": model.nbytes,
        "bare_http_ms": _median(rounds, lambda r: r["aiohttp"]),
        "bare_http_tuned_ms": _median(rounds, lambda r: r["aiohttp_tuned"]),
        "via_a_ms": _median(rounds, lambda r: r["via"]),
        "direct_to_b_ms": _median(rounds, lambda r: r["direct"]),
        "added_ms": _median(rounds, lambda r: r["via"] - r["direct"]),
        "ratio": _median(rounds, lambda r: (r["via"] - r["direct"]) / r["aiohttp"]),
        "ratio_to_tuned": _median(rounds, lambda r: (r["via"] - r["direct"]) / r["aiohttp_tuned"]),
    }


def _median(rounds: Sequence[Round], value: Callable[[Round], float]) -> float:
    return statistics.median(map(value, rounds))


def notes(rows: Sequence[Row], rounds: int, window: Window, before: str) -> list[str]:
    said = [
        before,
        f"{rounds} rounds of {window.seconds} s, order reversed each round; medians over rounds of p50; one caller",
        "bus: hop = over_bus - (local_http - http_echo), ratio = hop / bare_nats; the request passes nats-server once",
        "lan: added = via_a - direct_to_b, ratio = added / bare_http; A trusts B by a site key, no NATS takes part",
    ]
    for hop in ("bus", "lan"):
        listed = ", ".join(f"{row['ratio']:.2f}" for row in rows if row["hop"] == hop)
        said.append(f"{hop}: {listed} of the bare transport at {', '.join(str(m.nbytes) for m in MODELS)} B; aim {AIM}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hops", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="under a minute, coarse")
    arguments = parser.parse_args()
    before = machine()
    rounds, window = QUICK if arguments.quick else FULL
    with park() as servers:
        results = measure(servers, rounds, window)
    table = [row(model, results[model]) for row in (bus_row, lan_row) for model in MODELS]
    show(table, notes(table, rounds, window, before), as_json=arguments.json)


if __name__ == "__main__":
    main()
