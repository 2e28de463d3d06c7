"""One node's sequences: which turns it takes, what it keeps, what it refuses, and that failures change nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge.sequence_config import ControlsConfig, SequenceConfig
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, Overloaded, SequenceUnknown
from mesh.oip.request import InferRequest, RequestedOutput
from mesh.oip.response import decode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.settings import SequencesSettings
from tests.fakes import until
from tests.nats import soon
from tests.sequence_mesh import CONFIG, Node, a_step, an_instance
from tests.sequence_models import FACTOR, MODULUS, chained


def a_turn(value: int, turn: int, after: int = 0, *, step: int = 0, run: str = "door", **said: Any) -> InferRequest:
    """Step ``step``, by default the number of the turn; the first one starts the sequence unless it restores."""
    number = step or turn
    parameters: dict[str, Any] = {"mesh_run": run, "mesh_turn": turn, "mesh_after": after, "mesh_step": number} | said
    if number == 1 and "mesh_restore" not in said:
        parameters["sequence_start"] = True
    return a_step(value, **parameters)


def restoring(value: int, turn: int, *, step: int, state: Tensor | None) -> InferRequest:
    request = a_turn(value, turn, step=step, mesh_restore=step - 1)
    request.inputs += () if state is None else (state,)
    return request


def a_state(value: int, name: str = "mesh_state:SEEN", datatype: str = "INT64") -> Tensor:
    return Tensor(name, datatype, (1, 1), value.to_bytes(8, "little"))


def outputs(body: WireBody) -> dict[str, int]:
    return {t.name: int(t.numpy()[0, 0]) for t in decode_response(body.joined(), body.header_length).outputs}


async def output(node: Node, request: InferRequest) -> int:
    return outputs(await node.infer(request))["OUTPUT"]


async def test_turns_follow_one_another_and_the_same_again_runs_nothing() -> None:
    node, wanted = Node("a"), list(chained([5, 6, 7]))
    assert await output(node, a_turn(5, 1)) == wanted[0]
    assert await output(node, a_turn(6, 2, 1)) == wanted[1]
    assert await output(node, a_turn(6, 2, 1)) == wanted[1]
    assert node.runs == [5, 6]
    assert await output(node, a_turn(7, 3, 2)) == wanted[2]


@pytest.mark.parametrize(
    "refused",
    [
        a_turn(9, 1),
        a_turn(9, 4, 1, step=2),
        a_turn(9, 4, 3, step=3),
        a_turn(9, 4, 2, step=3, run="other"),
        a_turn(9, 4, 2, step=3, mesh_client="c"),
    ],
    ids=["overtaken", "follows what was before", "follows what never was", "another door's", "another client's"],
)
async def test_what_does_not_follow_is_refused_and_changes_nothing(refused: InferRequest) -> None:
    node, wanted = Node("a"), list(chained([5, 6, 7]))
    await node.infer(a_turn(5, 1))
    await node.infer(a_turn(6, 2, 1))
    with pytest.raises(SequenceUnknown):
        await node.infer(refused)
    assert node.runs == [5, 6]
    assert len(node.sequences) == 1
    assert await output(node, a_turn(7, 3, 2)) == wanted[2]


async def test_a_later_start_replaces_and_an_end_frees() -> None:
    node = Node("a")
    await node.infer(a_turn(5, 1))
    assert await output(node, a_turn(8, 9, step=1)) == next(chained([8]))
    assert len(node.sequences) == 1
    await node.infer(a_turn(8, 10, 9, step=2, sequence_end=True))
    assert (len(node.sequences), node.sequences.nbytes) == (0, 0)
    with pytest.raises(SequenceUnknown, match="is not held here"):
        await node.infer(a_turn(8, 11, 10, step=3))


async def test_a_run_that_fails_or_is_left_keeps_the_state_and_the_next_turn_follows() -> None:
    node, wanted = Node("a"), list(chained([5, 6]))
    await node.infer(a_turn(5, 1))
    node.failing = True
    with pytest.raises(InferenceFailed):
        await node.infer(a_turn(9, 2, 1))
    node.holding = asyncio.Event()
    left = asyncio.ensure_future(node.infer(a_turn(9, 3, 1, step=2)))
    await until(lambda: len(node.runs) == 3)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    node.holding = None
    assert await output(node, a_turn(6, 4, 1, step=2)) == wanted[1]


async def test_a_start_that_fails_begins_nothing() -> None:
    node = Node("a")
    node.failing = True
    with pytest.raises(InferenceFailed):
        await node.infer(a_turn(5, 1))
    assert len(node.sequences) == 0


async def test_an_answer_that_cannot_be_written_is_no_step() -> None:
    node = Node("a")
    await node.infer(a_turn(5, 1))
    node.garbled = True
    with pytest.raises(InferenceFailed, match="expected 8 bytes, got 4"):
        await node.infer(a_turn(6, 2, 1))
    assert await output(node, a_turn(6, 3, 1, step=2)) == list(chained([5, 6]))[1]


def _asking_for(request: InferRequest, name: str) -> InferRequest:
    request.outputs = (RequestedOutput(name, True, {}),)
    return request


async def test_two_of_one_sequence_never_run_at_once_and_others_do() -> None:
    node = Node("a")
    await node.infer(a_turn(5, 1))
    await node.infer(a_turn(5, 1, run="b"))
    node.holding = asyncio.Event()
    turns = [asyncio.ensure_future(node.infer(a_turn(at + 4, at, at - 1))) for at in (2, 3)]
    turns.append(asyncio.ensure_future(node.infer(a_turn(8, 2, 1, run="b"))))
    again = asyncio.ensure_future(node.infer(a_turn(6, 2, 1)))
    await until(lambda: len(node.runs) == 4)
    assert node.runs[2:] == [6, 8]
    node.holding.set()
    answers = await soon(asyncio.gather(*turns))
    assert [outputs(body)["OUTPUT"] for body in answers[:2]] == list(chained([5, 6, 7]))[1:]
    with pytest.raises(SequenceUnknown, match="overtaken"):
        await soon(again)


async def test_one_that_waits_past_its_deadline_leaves_the_queue() -> None:
    node = Node("a")
    await node.infer(a_turn(5, 1))
    node.holding = asyncio.Event()
    running = asyncio.ensure_future(node.infer(a_turn(6, 2, 1)))
    await until(lambda: len(node.runs) == 2)
    with pytest.raises(DeadlineExceeded, match="waited for the step before"):
        await node.sequences.infer(an_instance(), a_turn(7, 3, 2), Deadline.after_ms(20), node.run)
    node.holding.set()
    await soon(running)
    assert node.runs == [5, 6]


async def test_state_comes_along_when_asked_for_and_makes_the_same_sequence_elsewhere() -> None:
    node, other, wanted = Node("a"), Node("b"), list(chained([5, 6, 7]))
    await node.infer(a_turn(5, 1))
    found = outputs(await node.infer(a_turn(6, 2, 1, mesh_checkpoint=True)))
    assert found == {"OUTPUT": wanted[1], "mesh_state:SEEN": wanted[1]}
    state = a_state(found["mesh_state:SEEN"])
    assert await output(other, restoring(7, 3, step=3, state=state)) == wanted[2]
    assert await output(other, a_turn(7, 4, 3)) == (wanted[2] * FACTOR + 7) % MODULUS


@pytest.mark.parametrize(
    "state",
    [None, a_state(1, "mesh_state:OTHER"), a_state(1, datatype="UINT64")],
    ids=["missing", "another", "of another type"],
)
async def test_state_that_is_not_the_models_is_refused(state: Tensor | None) -> None:
    node = Node("a")
    with pytest.raises(InvalidRequest, match="restores"):
        await node.infer(restoring(7, 3, step=3, state=state))
    assert len(node.sequences) == 0


async def test_what_the_node_fills_is_not_the_callers_to_bring_or_read() -> None:
    node = Node("a")
    for name in ("SEEN", "START"):
        request = a_turn(5, 1)
        request.inputs += (Tensor(name, "INT64", (1, 1), bytes(8)),)
        with pytest.raises(InvalidRequest, match="is filled by its node"):
            await node.infer(request)
    with pytest.raises(InvalidRequest, match="is state, kept here"):
        await node.infer(_asking_for(a_turn(5, 1), "SEEN_OUT"))
    with pytest.raises(InvalidRequest, match="must specify a non-zero or non-empty correlation ID"):
        await node.infer(a_step(5, sequence=0))


async def test_a_batch_keeps_its_rows() -> None:
    node = Node("a")
    await node.infer(a_turn(5, 1))
    request = a_turn(6, 2, 1)
    request.inputs = (Tensor("INPUT", "INT64", (2, 1), bytes(16)),)
    with pytest.raises(InvalidRequest, match="the sequence has 1 rows, the request has 2"):
        await node.infer(request)


async def test_restored_state_that_is_a_scalar_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the sequence has 0 rows, the request has 1"):
        await Node("a").infer(restoring(7, 3, step=3, state=Tensor("mesh_state:SEEN", "INT64", (), bytes(8))))


async def test_a_start_that_comes_too_late_leaves_nothing() -> None:
    node = Node("a")
    with pytest.raises(DeadlineExceeded):
        await node.sequences.infer(an_instance(), a_turn(5, 1), Deadline(0.0), node.run)
    assert len(node.sequences) == 0


async def test_state_of_another_declaration_is_held_no_longer() -> None:
    node, wanted = Node("a"), list(chained([5, 6, 7]))
    changed = SequenceConfig(state=CONFIG.state, controls=ControlsConfig(end="END"))
    await node.infer(a_turn(5, 1))
    node.holding = asyncio.Event()
    running = asyncio.ensure_future(node.infer(a_turn(6, 2, 1)))
    await until(lambda: node.runs == [5, 6])
    waiting = [asyncio.ensure_future(node.infer(a_turn(7, 3, 2), changed)) for _ in range(2)]
    await asyncio.sleep(0)
    node.holding.set()
    assert outputs(await soon(running))["OUTPUT"] == wanted[1]
    for refused in await soon(asyncio.gather(*waiting, return_exceptions=True)):
        assert isinstance(refused, SequenceUnknown)
    assert (len(node.sequences), node.sequences.nbytes) == (0, 0)


async def test_most_and_idle_are_kept_to() -> None:
    node = Node("a", SequencesSettings(most=2, idle_s=1000.0))
    for run in ("one", "two"):
        await node.infer(a_turn(5, 1, run=run))
    with pytest.raises(Overloaded, match="all the sequences it may: 2"):
        await node.infer(a_turn(5, 1, run="three"))
    await node.infer(a_turn(6, 2, 1, run="one"))
    node.sequences.forget_idle(asyncio.get_running_loop().time() + 999.0)
    assert len(node.sequences) == 2
    node.sequences.forget_idle(asyncio.get_running_loop().time() + 1001.0)
    assert (len(node.sequences), node.sequences.nbytes) == (0, 0)
    await node.infer(a_turn(5, 1, run="three"))


@pytest.mark.parametrize("own", [0, 3], ids=["of the node", "of the model"])
async def test_who_forgets_to_end_locks_nobody_else_out(own: int) -> None:
    config = CONFIG.model_copy(update={"most": own})
    node = Node("a", SequencesSettings(most=10 if own else 3))
    for run in ("one", "two", "three"):
        await node.infer(a_turn(5, 1, run=run, mesh_client="forgetful"), config)
    await node.infer(a_turn(6, 2, 1, run="one", mesh_client="forgetful"), config)
    await node.infer(a_turn(5, 1, mesh_client="other"), config)
    assert len(node.sequences) == 3
    with pytest.raises(SequenceUnknown):
        await node.infer(a_turn(6, 2, 1, run="two", mesh_client="forgetful"), config)
    for client in ("forgetful", "other"):  # who has more already, and who would have as many
        with pytest.raises(Overloaded, match="all the sequences it may: 3"):
            await node.infer(a_turn(5, 1, run="four", mesh_client=client), config)
    for run, turn in (("one", 3), ("three", 2)):
        await node.infer(a_turn(7, turn, turn - 1, run=run, mesh_client="forgetful"), config)


async def test_a_model_may_have_limits_of_its_own() -> None:
    config = CONFIG.model_copy(update={"most": 1, "idle_s": 2000.0})
    node = Node("a", SequencesSettings(idle_s=1.0))
    await node.infer(a_turn(5, 1), config)
    with pytest.raises(Overloaded, match="1 of them of this model"):
        await node.infer(a_turn(5, 1, run="b"), config)
    node.sequences.forget_idle(asyncio.get_running_loop().time() + 1999.0)
    assert len(node.sequences) == 1


async def test_what_is_kept_is_counted_and_bounded() -> None:
    node = Node("a", SequencesSettings(max_bytes=1 << 20))
    await node.infer(a_turn(5, 1))
    each = node.sequences.nbytes
    assert each > 8
    await node.infer(a_turn(6, 2, 1))
    assert node.sequences.nbytes < 2 * each  # the answer of the turn before is not kept
    small = Node("b", SequencesSettings.model_construct(max_bytes=each + 16, most=10, idle_s=10.0))
    await small.infer(a_turn(5, 1))
    with pytest.raises(Overloaded, match="bytes of sequences"):
        await small.infer(a_turn(5, 1, run="b"))
    assert len(small.sequences) == 1
    assert await output(small, a_turn(6, 2, 1)) == list(chained([5, 6]))[1]
