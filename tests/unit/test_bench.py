"""The benchmarks' own arithmetic, and that no wrong reply becomes a number. Not here: any measurement."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.bench import clients, hops, loadgen, nats_echo
from tests.bench.clients import Ask
from tests.bench.loadgen import Job, Sample, Verify, Window
from tests.bench.models import ADD, HEADER, POOL, Answer, Bytes, Model, ParsedAnswer
from tests.bench.processes import Server, module, nats_server, started
from tests.bench.report import table
from tests.bench.serving import DIRECT, ECHO, WORKER, Measured, rows, run_directly
from tests.bench.stats import in_round, paired_ratio, percentile

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
Reply = Callable[[int], list[bytes]]


def is_good(head: bytes, body: bytes) -> str:
    return "" if body == b"good" else f"{body!r}"


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 201)]
    assert percentile(values, 0.50) == 100.0
    assert percentile(values, 0.99) == 198.0
    assert percentile(values, 1.0) == 200.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 0.50) == 2.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.5)])
def test_percentile_of_nothing_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_a_slow_round_cancels_in_a_paired_ratio() -> None:
    """Half of the bar in every round, though the machine was three times slower in one of them."""
    assert paired_ratio([50.0, 15.0, 60.0], [100.0, 30.0, 120.0]) == 0.5


@pytest.mark.parametrize(("ours", "base"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_do_not_pair_are_refused(ours: list[float], base: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratio(ours, base)


def test_every_other_round_runs_backwards() -> None:
    assert [in_round("abc", number) for number in range(3)] == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_rows_pair_each_variant_with_the_echo_of_its_own_cell() -> None:
    def taken(*rates: int) -> list[Measured]:
        return [Measured(Sample(rate, 1.0, 0.1, 0.2, rate, 0), cpu_us=5.0, children_cpu_us=1.0) for rate in rates]

    results = {
        (ECHO, ADD, 1): taken(1000, 100),
        (WORKER, ADD, 1): taken(400, 60),
        (ECHO, ADD, 8): taken(9000, 9000),
        (DIRECT, ADD, 1): taken(5000, 500),
    }
    made = rows(results, [(ADD, 1), (ADD, 8)], [ECHO, WORKER, DIRECT])
    by = {(row["variant"], row["connections"]): row for row in made}
    assert set(by) == {(ECHO, 1), (WORKER, 1), (DIRECT, 1), (ECHO, 8)}
    assert by[WORKER, 1]["ratio_to_echo"] == pytest.approx(0.5)
    assert by[WORKER, 1]["ratio_to_tuned_echo"] is None
    assert by[DIRECT, 1]["ratio_to_echo"] == pytest.approx(5.0)


def test_hop_rows_subtract_the_inference_within_a_round() -> None:
    fast = {"nats": 0.2, "bus": 0.7, "local": 0.4, "echo": 0.1, "aiohttp": 0.2, "direct": 0.5, "via": 0.8}
    slow = {name: 3 * value for name, value in fast.items()}
    taken = [one | {"aiohttp_tuned": one["aiohttp"] / 2} for one in (fast, slow, fast)]
    bus, lan = hops.bus_row(ADD, taken), hops.lan_row(ADD, taken)
    assert bus["hop_ms"] == pytest.approx(0.4)
    assert bus["ratio"] == pytest.approx(2.0)
    assert lan["added_ms"] == pytest.approx(0.3)
    assert lan["ratio"] == pytest.approx(1.5)
    assert lan["ratio_to_tuned"] == pytest.approx(3.0)


def test_table_aligns_and_says_what_is_not_known() -> None:
    assert table([{"name": "a", "n": 12000, "x": 0.5}, {"name": "bcdef", "n": 3, "x": None}]).splitlines() == [
        " name       n    x",
        "    a  12,000  0.5",
        "bcdef       3    -",
    ]


@pytest.mark.parametrize("model", [ADD, POOL], ids=lambda model: model.name)
def test_only_the_right_answer_passes(model: Model) -> None:
    reply, at = model.reply, len(model.reply) - model.expected.nbytes
    assert model.judge(at, reply) == ""
    assert "instead of" in model.judge(at, reply[:-4])
    assert "instead of" in model.judge(at, reply[:at] + bytes(model.expected.nbytes))
    assert "instead of" in model.judge(at, reply[:at] + model.tensor.tobytes()[: model.expected.nbytes])
    assert "instead of y" in model.judge(at, reply[:at].replace(b'"y"', b'"z"') + reply[at:])
    assert "not an inference reply" in model.judge(at - 1, reply)


def test_an_answer_by_another_node_is_wrong() -> None:
    length = len(ADD.reply) - ADD.expected.nbytes
    head = f"HTTP/1.1 200 OK\r\n{HEADER}: {length}\r\nMesh-Node: b\r\n\r\n".encode()
    assert Answer(ADD, "b")(head, ADD.reply) == ""
    assert "not answered by a" in Answer(ADD, "a")(head, ADD.reply)
    assert "no header length" in Answer(ADD)(b"HTTP/1.1 200 OK\r\n\r\n", ADD.reply)
    assert ParsedAnswer(ADD)({HEADER.lower(): str(length)}, ADD.reply) == ""
    assert "no header length" in ParsedAnswer(ADD)({}, ADD.reply)


@pytest.mark.parametrize("model", [ADD, POOL], ids=lambda model: model.name)
def test_onnx_runtime_agrees_with_what_the_models_expect(model: Model) -> None:
    sample = run_directly(model, Window(seconds=0.02, warmup_s=0.0))
    assert (sample.errors, sample.error) == (0, "")
    assert sample.requests > 0


@asynccontextmanager
async def server(reply: Reply, *, then_close: bool = False) -> AsyncIterator[int]:
    """A server that answers the n-th request of each connection with the pieces of ``reply(n)``; yields its port."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            for number in itertools.count():
                await reader.readexactly(len(REQUEST))
                for piece in reply(number):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if then_close:
                    return

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listening:
        yield int(listening.sockets[0].getsockname()[1])
    await asyncio.gather(*handlers)


async def load(port: int, *, seconds: float = 0.5, grace_s: float = 20.0, verify: Verify = is_good) -> Sample:
    job = Job("127.0.0.1", port, REQUEST, verify, 2, Window(seconds, warmup_s=0.02), grace_s)
    return await asyncio.to_thread(loadgen.run, job)


async def test_right_replies_are_counted_and_timed() -> None:
    async with server(lambda number: [GOOD]) as port:
        sample = await load(port)
    assert (sample.errors, sample.error) == (0, "")
    assert 0 < sample.requests <= sample.answered
    assert 0 < sample.p50_ms <= sample.p99_ms
    assert sample.per_second == pytest.approx(sample.requests / sample.seconds)


async def test_a_reply_is_framed_whatever_its_size_and_pieces() -> None:
    body = bytes(300_000)
    head = f"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length:{len(body)}\r\n\r\n".encode()
    async with server(lambda number: [head[:20], head[20:-2], head[-2:] + body[:7], body[7:]]) as port:
        sample = await load(port, verify=Bytes(len(body)))
    assert (sample.errors, sample.error) == (0, "")
    assert sample.requests > 0


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n"
BROKEN: dict[str, tuple[Reply, bool, str]] = {
    "status": (lambda n: [GOOD.replace(b"200 OK", b"503 No")], False, "not a 200"),
    "later status": (lambda n: [GOOD if n < 3 else GOOD.replace(b"200 OK", b"429 No")], False, "not a 200"),
    "chunked": (lambda n: [CHUNKED], False, "Content-Length"),
    "too long": (lambda n: [GOOD + b"!"], False, "1 bytes beyond the Content-Length"),
    "too short": (lambda n: [GOOD[:-1]], True, "closed the connection"),
    "none": (lambda n: [b""], True, "closed the connection 0 bytes into a reply"),
    "later shorter": (lambda n: [GOOD if n < 3 else GOOD.replace(b"4", b"3")[:-1]], False, "a body of 3 bytes after"),
    "wrong": (lambda n: [GOOD.replace(b"good", b"evil")], False, "evil"),
    "endless head": (lambda n: [b"x" * loadgen.FIRST_BUFFER], False, "no end of head"),
}


@pytest.mark.parametrize(("reply", "then_close", "said"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_reply_ends_its_connection_as_an_error(reply: Reply, then_close: bool, said: str) -> None:
    async with server(reply, then_close=then_close) as port:
        sample = await load(port, seconds=30.0)
    assert sample.errors == 2
    assert said in sample.error


async def test_a_reply_that_never_gets_whole_is_an_error() -> None:
    async with server(lambda number: [GOOD[:-1]]) as port:
        sample = await load(port, grace_s=0.2)
    assert (sample.requests, sample.errors) == (0, 2)
    assert "not whole" in sample.error


async def test_the_last_reply_is_judged_like_the_first() -> None:
    async with server(lambda number: [GOOD if number < 1 else GOOD.replace(b"good", b"evil")]) as port:
        sample = await load(port)
    assert sample.errors == 2
    assert "evil" in sample.error


def test_the_bare_echo_answers_what_it_is_asked_for() -> None:
    def ask(server: Server, path: str, expected: int) -> Sample:
        job = Job(server.host, server.port, POOL.http(path, server.address), Bytes(expected), 2, Window(0.1, 0.0), 20.0)
        return loadgen.run(job)

    with started("echo", module("tests.bench.echo")) as echo:
        samples = [ask(echo, "/", len(POOL.body)), ask(echo, "/151", 151)]
        wrong = ask(echo, "/150", 151)
        own, children = echo.cpu_s()
    assert [(s.errors, s.error) for s in samples] == [(0, ""), (0, "")]
    assert (wrong.errors, wrong.error) == (2, "150 bytes instead of 151")
    assert own > 0
    assert children == 0


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="No module named"), started("nobody", module("tests.bench.nobody")):
        pytest.fail("it never got ready")


def test_the_bare_bus_answers_what_it_is_asked_for() -> None:
    def ask(url: str, count: int) -> Sample:
        return clients.over_nats(Ask(url, ADD.body, Bytes(7), f"{nats_echo.SUBJECT}.{count}", window=Window(0.1, 0.0)))

    with nats_server() as url, started("responder", module("tests.bench.nats_echo", url)):
        right, wrong = ask(url, 7), ask(url, 8)
    assert (right.errors, right.error) == (0, "")
    assert right.requests > 0
    assert (wrong.errors, wrong.error) == (1, "8 bytes instead of 7")
