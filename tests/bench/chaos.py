"""``python -m tests.bench.chaos``: an agent under load while callers leave, send nonsense, and its workers are killed.

Every answer is checked against what it must be for the values that were sent, which differ from request to request, so
that an answer meant for a neighbour in the same batch shows. Afterwards the same agent must be as it was: nothing in
flight, no memory, descriptors or slots gone. Counts, not speed; nothing here is a ratio. Not here: who routes around a
dead node (``tests/system``).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests import malformed, onnx_models
from tests.bench import processes
from tests.bench.models import ADD, HEADER, POOL, write_repository
from tests.bench.processes import Server, started
from tests.bench.report import Row, machine, show

CALLERS = 24
KILL_EVERY_S = 3.0
DEADLINE_MS = 400
LOST_AFTER_S = 10.0
"""No answer for so long after the deadline counts as lost."""
LATE_MS = 50.0
"""An answer that comes this much after its deadline counts as late: the way to the caller takes its time too."""
REST_S = 5.0


@dataclass
class Count:
    """What became of the requests."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    first: dict[str, str] = field(default_factory=dict)
    """The first text of each outcome that should not be."""

    def note(self, outcome: str, text: str = "") -> None:
        self.outcomes[outcome] += 1
        if text:
            self.first.setdefault(outcome, text)


@dataclass(frozen=True)
class Question:
    path: str
    body: bytes
    header: int
    expected: np.ndarray[Any, Any]

    def request(self, address: str) -> bytes:
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {address}\r\n{HEADER}: {self.header}\r\n"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body

    def wrong(self, body: bytes, header: int) -> str:
        head = json.loads(body[:header])
        got = np.frombuffer(body[header:], self.expected.dtype)
        if got.size != self.expected.size or not np.allclose(got, self.expected.ravel(), rtol=1e-4):
            return f"{head['model_name']} gave {got[:4]} instead of {self.expected.ravel()[:4]}"
        return ""


def question(luck: random.Random) -> Question:
    """A request with values of its own for one of three models: small and batched, large, long."""
    kind = luck.choice(("add", "add", "add", "pool", "loop"))
    values = np.random.default_rng(luck.getrandbits(32))
    if kind == "loop":
        rounds = luck.randrange(1_000, 20_000)
        return _question("loop", "N", "INT64", np.array(rounds, "i8"), np.array(rounds, "i8"))
    shape = ADD.shape if kind == "add" else POOL.shape
    tensor = values.random(shape, dtype=np.float32)
    expected = tensor + np.float32(1) if kind == "add" else tensor.mean((2, 3))
    return _question(kind, "x", "FP32", tensor, expected)


def _question(model: str, name: str, datatype: str, tensor: Any, expected: Any) -> Question:
    said: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(tensor.shape)}
    said["parameters"] = {"binary_data_size": tensor.nbytes}
    head = json.dumps({"inputs": [said], "parameters": {"binary_data_output": True, "timeout": DEADLINE_MS * 1000}})
    return Question(f"/v2/models/{model}/infer", head.encode() + tensor.tobytes(), len(head), expected)


class Caller:
    """Asks one thing after the other on a connection of its own, until told to stop."""

    def __init__(self, server: Server, count: Count, seed: int) -> None:
        self._server = server
        self._count = count
        self._luck = random.Random(seed)

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(self._server.host, self._server.port)
                try:
                    while time.monotonic() < until and await self._ask(reader, writer):
                        await asyncio.sleep(self._luck.uniform(0.0, 0.01))
                finally:
                    writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False if the connection is of no use after it."""
        fate = self._luck.random()
        if fate < 0.01:
            return await self._nonsense(reader, writer)
        asked = question(self._luck)
        sent = time.monotonic()
        writer.write(asked.request(self._server.address))
        if fate < 0.02:
            await asyncio.sleep(self._luck.uniform(0.0, 0.01))
            self._count.note("left")
            return False
        try:
            status, header, body = await asyncio.wait_for(_reply(reader), DEADLINE_MS / 1e3 + LOST_AFTER_S)
        except asyncio.TimeoutError:
            self._count.note("LOST", f"no answer to {asked.path}")
            return False
        except (ConnectionError, asyncio.IncompleteReadError):
            self._count.note("CUT", f"the connection closed instead of an answer to {asked.path}")
            return False
        late_ms = (time.monotonic() - sent) * 1e3 - DEADLINE_MS
        if status == 200:
            wrong = asked.wrong(body, header)
            self._count.note("WRONG" if wrong else "LATE" if late_ms > LATE_MS else "answered", wrong)
        else:
            self._count.note(str(status) if status in (429, 503, 504) else f"STATUS {status}", body[:200].decode())
        return True

    async def _nonsense(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        case = self._luck.choice(malformed.MALFORMED)
        fields = "".join(f"{name}: {value}\r\n" for name, value in case.headers.items())
        path = case.path or malformed.PATH
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {len(case.body)}\r\n\r\n".encode())
        writer.write(case.body)
        status, _, body = await asyncio.wait_for(_reply(reader), LOST_AFTER_S)
        fine = status in case.status or status in (429, 503, 504)
        self._count.note("malformed" if fine else f"MALFORMED {status}", f"{case.name}: {body[:200].decode()}")
        return True


async def _reply(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(fields["content-length"]))
    return int(head.split()[1]), int(fields.get(HEADER.lower(), 0)), body


def workers(server: Server) -> list[psutil.Process]:
    return [p for p in psutil.Process(server.pid).children() if "hardware.worker" in p.cmdline()]


async def kill(server: Server, until: float, luck: random.Random) -> int:
    killed = 0
    while time.monotonic() + KILL_EVERY_S < until:
        await asyncio.sleep(KILL_EVERY_S)
        if alive := workers(server):
            luck.choice(alive).send_signal(signal.SIGKILL)
            killed += 1
    return killed


@dataclass(frozen=True)
class Held:
    """What the agent and its workers hold at rest."""

    agent_mib: float
    workers_mib: float
    descriptors: int
    threads: int

    @classmethod
    def by(cls, server: Server) -> Held:
        agent = psutil.Process(server.pid)
        private = sum(p.memory_full_info().uss for p in workers(server)) / 2**20
        return cls(agent.memory_info().rss / 2**20, private, agent.num_fds(), agent.num_threads())


async def chaos(seconds: float, seed: int = 1) -> tuple[list[Row], list[str]]:
    with agent_under_test() as server:
        await load(server, min(seconds / 3, 5.0), seed, Count(), with_kills=False)
        await asyncio.sleep(REST_S)
        before = Held.by(server)
        count = Count()
        killed = await load(server, seconds, seed + 1, count, with_kills=True)
        await until_at_rest(server)
        await asyncio.sleep(REST_S)
        after = Held.by(server)
    rows: list[Row] = [{"outcome": outcome, "requests": n} for outcome, n in sorted(count.outcomes.items())]
    rows += [{"held": name, "before": value, "after": getattr(after, name)} for name, value in vars(before).items()]
    bad = {name: n for name, n in count.outcomes.items() if name[:1].isupper()}
    notes = [machine(), f"{seconds:g} s, {CALLERS} callers, {killed} workers killed, deadline {DEADLINE_MS} ms"]
    notes += [f"{outcome}: {text}" for outcome, text in count.first.items()]
    notes.append(f"what should not be: {bad or 'nothing'}")
    return rows, notes


async def load(server: Server, seconds: float, seed: int, count: Count, *, with_kills: bool) -> int:
    until = time.monotonic() + seconds
    callers = [Caller(server, count, seed * 1000 + number).run(until) for number in range(CALLERS)]
    killing = [kill(server, until, random.Random(seed))] if with_kills else []
    results = await asyncio.gather(*killing, *callers)
    return results[0] or 0 if with_kills else 0


async def until_at_rest(server: Server) -> None:
    """All models READY and nothing in flight; raises ``TimeoutError`` if that never comes."""
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        report = await _get(server, "/mesh/v1/report")
        if all(m["state"] == "READY" and not m.get("in_flight") for m in report["models"]):
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"the agent does not come to rest: {report['models']}")


async def _get(server: Server, path: str) -> Any:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return json.loads((await _reply(reader))[2])
    finally:
        writer.close()


@contextlib.contextmanager
def agent_under_test() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        models = write_repository(Path(folder) / "models", ADD, POOL)
        onnx_models.save(onnx_models.loop(), models / "loop" / "1" / "model.onnx")
        onnx_models.save(onnx_models.simple(), models / "simple" / "1" / "model.onnx")
        environ = {
            "MESH_DISCOVERY__ENABLED": "false",
            "MESH_NODE__STATE_DIR": str(Path(folder) / "state"),
            "MESH_MODELS__CRASH_LIMIT": "1000",
        }
        with started("agent", processes.agent(models), environ) as server:
            yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    rows, notes = asyncio.run(chaos(arguments.seconds))
    show(rows, notes, as_json=arguments.json)


if __name__ == "__main__":
    main()
