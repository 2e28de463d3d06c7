"""One door's sequences: numbers, answers from memory, checkpoints, moves, and what it says of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    DigestMismatch,
    Draining,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    Overloaded,
    SequenceUnknown,
)
from mesh.hop import Context, Reply
from mesh.sequence_steps import STAY, Step
from mesh.sequencer import Sequencer
from tests.builders import an_identity
from tests.fakes import until
from tests.nats import soon
from tests.sequence_mesh import CHAIN, Mesh, a_step, ask, over_the_wire, read, shown
from tests.sequence_models import chained

NUMBERS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
WANTED = list(chained(NUMBERS))


async def begun(door: Sequencer, steps: int, **parameters: Any) -> Reply:
    """Take the first steps; the last answer."""
    for index in range(steps):
        reply = await ask(door, a_step(NUMBERS[index], sequence_start=index == 0, **parameters))
        assert shown(reply) == WANTED[index]
    return reply


def runs(mesh: Mesh) -> list[int]:
    return [value for node in mesh.nodes.values() for value in node.runs]


async def test_steps_stay_on_one_node_and_the_state_comes_along_now_and_then() -> None:
    mesh = Mesh("a", "b")
    await begun(mesh.door(checkpoint_steps=4), 9)
    assert {name for name, _ in mesh.asked} == {"a"}
    assert [step.number for _, step in mesh.asked if step.checkpoint] == [4, 8]
    assert [step.start for _, step in mesh.asked] == [True] + [False] * 8


@pytest.mark.parametrize("start", [{}, {"sequence_start": False}, {"mesh_step": 1}, {"mesh_step": 5}])
async def test_what_was_not_begun_is_unknown_and_says_how_to_begin(start: dict[str, Any]) -> None:
    with pytest.raises(SequenceUnknown, match="must specify the START flag on the first request of the sequence"):
        await ask(Mesh("a").door(), a_step(1, **start))


@pytest.mark.parametrize(
    "parameters",
    [
        {"sequence": True}, {"sequence": "x" * 129}, {"mesh_client": 5}, {"mesh_client": "é" * 65},
        {"sequence_start": 1}, {"sequence_end": "yes"}, {"mesh_step": -1}, {"mesh_step": True}, {"mesh_step": "1"},
        {"mesh_restore": 2, "sequence_start": True}, {"mesh_restore": 2, "mesh_step": 2}, {"mesh_turn": 5},
        {"mesh_run": "a"}, {"mesh_checkpoint": 1},
    ],
    ids=str,
)  # fmt: skip
async def test_parameters_that_are_none_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await ask(Mesh("a").door(), a_step(1, **parameters))


@pytest.mark.parametrize("error", [NodeLost, NodeUnreachable, Draining])
@pytest.mark.parametrize("steps", range(1, 9))
async def test_a_sequence_goes_on_elsewhere_and_says_so_once(steps: int, error: type[MeshError]) -> None:
    mesh = Mesh("a", "b")
    door = mesh.door(checkpoint_steps=4)
    await begun(door, steps)
    mesh.errors["a"] = error("gone")
    moved = await ask(door, a_step(NUMBERS[steps]))
    said = f"resumed; checkpoint={steps // 4 * 4}; replayed={steps % 4}"
    assert (moved.node, shown(moved), moved.sequence) == ("b", WANTED[steps], said)
    assert read(moved).parameters == {"mesh_sequence": said}
    after = await ask(door, a_step(NUMBERS[steps + 1]))
    assert (shown(after), after.sequence, read(after).parameters) == (WANTED[steps + 1], "", {})
    assert door.moves == 1


async def test_a_node_that_forgot_it_is_given_it_again() -> None:
    mesh = Mesh("a")
    door = mesh.door(checkpoint_steps=4)
    await begun(door, 6)
    mesh.nodes["a"].restart()
    moved = await ask(door, a_step(NUMBERS[6]))
    assert (moved.node, shown(moved)) == ("a", WANTED[6])


async def test_where_nothing_else_is_left_a_node_that_was_lost_for_a_moment_will_do() -> None:
    mesh = Mesh("a")
    door = mesh.door(checkpoint_steps=4)
    await begun(door, 6)
    mesh.script(("lost after it ran", 0))
    assert shown(await ask(door, a_step(NUMBERS[6]))) == WANTED[6]


async def test_one_that_is_gone_for_good_keeps_what_was_answered_until_somebody_is_there() -> None:
    mesh = Mesh("a", "b")
    door = mesh.door(checkpoint_steps=4)
    await begun(door, 6)
    lost = {name: mesh.nodes.pop(name) for name in ("a", "b")}
    with pytest.raises(NoReadyInstance):
        await ask(door, a_step(99))
    mesh.nodes["b"] = lost["b"]
    assert shown(await ask(door, a_step(NUMBERS[6]))) == WANTED[6]


async def test_a_busy_node_keeps_it_and_a_failed_step_is_none() -> None:
    mesh = Mesh("a", "b")
    door = mesh.door()
    await begun(door, 3)
    for fault, error in (("busy", Overloaded), ("failed", InferenceFailed), ("late after it ran", DeadlineExceeded)):
        mesh.script((fault, 0))
        with pytest.raises(error):
            await ask(door, a_step(1000))
    assert (door.moves, {name for name, _ in mesh.asked}) == (0, {"a"})
    assert shown(await ask(door, a_step(NUMBERS[3]))) == WANTED[3]


async def test_a_caller_that_leaves_took_no_step() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await begun(door, 3)
    mesh.nodes["a"].holding = asyncio.Event()
    left = asyncio.ensure_future(ask(door, a_step(1000)))
    await until(lambda: 1000 in runs(mesh))
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    mesh.nodes["a"].holding = None
    assert shown(await ask(door, a_step(NUMBERS[3]))) == WANTED[3]


async def test_steps_are_taken_in_the_order_they_came_in() -> None:
    mesh = Mesh("a")
    door = mesh.door(checkpoint_steps=3)
    steps = [ask(door, a_step(number, sequence_start=index == 0)) for index, number in enumerate(NUMBERS)]
    assert [shown(reply) for reply in await soon(asyncio.gather(*steps))] == WANTED


async def test_one_that_waits_past_its_deadline_took_no_step() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await begun(door, 1)
    mesh.nodes["a"].holding = asyncio.Event()
    first = asyncio.ensure_future(ask(door, a_step(NUMBERS[1])))
    await until(lambda: len(runs(mesh)) == 2)
    late = over_the_wire(a_step(1000))
    step = Step.of(late.parameters)
    assert step is not None
    with pytest.raises(DeadlineExceeded, match="waited for the step before it"):
        await door.infer(late, CHAIN, Context(Deadline.after_ms(20)), step)
    mesh.nodes["a"].holding.set()
    assert shown(await soon(first)) == WANTED[1]
    assert shown(await ask(door, a_step(NUMBERS[2]))) == WANTED[2]


async def test_an_application_that_numbers_may_ask_again_and_skip_nothing() -> None:
    mesh = Mesh("a")
    door = mesh.door(checkpoint_steps=2)
    for number, value in enumerate(NUMBERS[:5], 1):
        for _ in range(2):
            reply = await ask(door, a_step(value, mesh_step=number, sequence_start=number == 1))
            assert shown(reply) == WANTED[number - 1]
    assert runs(mesh) == NUMBERS[:5]
    with pytest.raises(SequenceUnknown, match="was answered for other inputs"):
        await ask(door, a_step(1000, mesh_step=5))
    for number in (4, 7):
        with pytest.raises(SequenceUnknown, match=f"is at step 5: step {number} does not follow"):
            await ask(door, a_step(NUMBERS[5], mesh_step=number))
    assert shown(await ask(door, a_step(NUMBERS[5], mesh_step=6))) == WANTED[5]


async def test_the_same_answer_comes_in_the_form_that_is_asked_for() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await begun(door, 1)
    first = await ask(door, a_step(NUMBERS[1], mesh_step=2, mesh_checkpoint=True))
    again = await ask(door, a_step(NUMBERS[1], mesh_step=2, binary=False))
    assert (first.body.header_length is None, again.body.header_length) == (False, None)
    assert (shown(again), read(again).parameters) == (WANTED[1], {})
    request = a_step(NUMBERS[1], mesh_step=2, mesh_checkpoint=True, binary=False)
    request.id = "once more"
    response = read(await ask(door, request))
    assert (response.id, response.parameters) == ("once more", {"mesh_step": 2})
    assert [(t.name, int(t.numpy()[0, 0])) for t in response.outputs] == [
        ("OUTPUT", WANTED[1]),
        ("mesh_state:SEEN", WANTED[1]),
    ]
    await ask(door, a_step(NUMBERS[2], mesh_step=3))
    with pytest.raises(SequenceUnknown, match="without what is asked"):
        await ask(door, a_step(NUMBERS[2], mesh_step=3, mesh_checkpoint=True))
    assert runs(mesh) == NUMBERS[:3]


async def test_the_last_answer_is_there_again_after_the_end_and_no_step_is() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await begun(door, 1)
    ends = list(chained(NUMBERS, ends=2))[1]
    for _ in range(2):
        assert shown(await ask(door, a_step(NUMBERS[1], mesh_step=2, sequence_end=True))) == ends
    assert (len(door), len(mesh.nodes["a"].sequences)) == (0, 0)
    for number in (0, 3):
        with pytest.raises(SequenceUnknown, match="has ended"):
            await ask(door, a_step(1, mesh_step=number))
    await begun(door, 3)


async def test_a_start_in_the_middle_begins_anew_and_one_that_fails_ends_what_was() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await begun(door, 3)
    await begun(door, 3)
    mesh.script(("failed", 0))
    with pytest.raises(InferenceFailed):
        await ask(door, a_step(1, sequence_start=True))
    with pytest.raises(SequenceUnknown):
        await ask(door, a_step(NUMBERS[3]))


async def test_an_application_may_keep_the_state_itself_and_go_on_at_another_door() -> None:
    mesh = Mesh("a", "b")
    await begun(mesh.door(), 4)
    door, other = mesh.door(), mesh.door()
    for index in range(4):
        reply = await ask(door, a_step(NUMBERS[index], sequence_start=index == 0, mesh_checkpoint=True, binary=False))
    response = read(reply)
    assert response.parameters == {"mesh_step": 4}
    assert [t.name for t in response.outputs] == ["OUTPUT", "mesh_state:SEEN"]
    request = a_step(NUMBERS[4], mesh_restore=4)
    request.inputs += (response.outputs[1],)
    on = await ask(other, request)
    assert (shown(on), on.sequence) == (WANTED[4], "")
    mesh.nodes["a"].restart()
    assert shown(await ask(other, a_step(NUMBERS[5]))) == WANTED[5]  # from the state that the application brought


async def test_where_a_sequence_may_go_is_the_strictest_that_any_step_said() -> None:
    mesh = Mesh("a", "b")
    door = mesh.door()
    said: list[str] = []
    inner = mesh.infer

    async def infer(request: Any, *rest: Any) -> Reply:
        said.append(request.parameters.get(STAY, ""))
        return await inner(request, *rest)

    door._infer = infer
    await begun(door, 1, mesh_stay="region")
    await ask(door, a_step(NUMBERS[1], mesh_stay="site"))
    mesh.errors["a"] = NodeLost("gone")
    await ask(door, a_step(NUMBERS[2]))
    assert said == ["region", "site", "site", "site", "site", "site"]


async def test_what_idles_is_forgotten_and_most_are_kept_to() -> None:
    mesh = Mesh("a")
    door = mesh.door(most=2, idle_s=100.0)
    for sequence in (1, 2):
        await ask(door, a_step(1, sequence=sequence, sequence_start=True))
    with pytest.raises(Overloaded, match="holds 2 sequences"):
        await ask(door, a_step(1, sequence=3, sequence_start=True))
    await ask(door, a_step(1, sequence=2, sequence_end=True))  # over, though its answer is still there
    await ask(door, a_step(1, sequence=3, sequence_start=True))
    door.forget_idle(time.monotonic() + 101.0)
    assert (len(door), door.nbytes) == (0, 0)
    with pytest.raises(SequenceUnknown):
        await ask(door, a_step(1))


async def test_who_forgets_to_end_locks_nobody_else_out() -> None:
    mesh = Mesh("a")
    door = mesh.door(most=3)
    for sequence in (1, 2, 3):
        await ask(door, a_step(1, sequence=sequence, sequence_start=True))
    mesh.nodes["a"].holding = asyncio.Event()
    running = asyncio.ensure_future(ask(door, a_step(2, sequence=1)))
    await until(lambda: len(runs(mesh)) == 4)
    other = asyncio.ensure_future(ask(door, a_step(5, mesh_client="other", sequence_start=True)))
    await until(lambda: len(runs(mesh)) == 5)
    mesh.nodes["a"].holding.set()
    await soon(asyncio.gather(running, other))
    with pytest.raises(SequenceUnknown):
        await ask(door, a_step(2, sequence=2))  # of those in no step, heard of longest ago
    for client in ("", "other"):
        with pytest.raises(Overloaded, match="holds 3 sequences"):
            await ask(door, a_step(1, sequence=4, mesh_client=client, sequence_start=True))
    assert shown(await ask(door, a_step(6, mesh_client="other"))) == list(chained([5, 6]))[1]


async def test_what_is_kept_is_bounded_by_more_checkpoints_then_by_refusals() -> None:
    mesh = Mesh("a")
    door = mesh.door(checkpoint_steps=1000)
    await begun(door, 3)
    assert not any(step.checkpoint for _, step in mesh.asked)
    few = Sequencer(mesh.infer, door._settings.model_copy(update={"max_bytes": door.nbytes}))
    await begun(few, 3)
    assert [step.checkpoint for _, step in mesh.asked[-3:]] == [False, True, True]
    sequences = iter(range(2, 9))
    while few.nbytes < few._settings.max_bytes:
        await ask(few, a_step(1, sequence=next(sequences), sequence_start=True))
    with pytest.raises(Overloaded, match="bytes of sequences"):
        await ask(few, a_step(1, sequence=next(sequences), sequence_start=True))
    assert few.nbytes < 3 * few._settings.max_bytes
    assert shown(await ask(few, a_step(NUMBERS[3]))) == WANTED[3]


async def test_the_model_of_its_start_stays_the_model_of_a_sequence() -> None:
    mesh = Mesh("a")
    door = mesh.door()
    await begun(door, 2)
    newer = an_identity("chain", "2")
    asked: list[Any] = []
    inner = mesh.infer

    async def infer(request: Any, identity: Any, context: Any) -> Reply:
        asked.append(identity)
        return await inner(request, identity, context)

    door._infer = infer
    assert shown(await ask(door, a_step(NUMBERS[2]), newer)) == WANTED[2]
    assert asked == [CHAIN]


@pytest.mark.parametrize("error", [NoReadyInstance, DigestMismatch])
async def test_a_sequence_of_a_model_that_was_replaced_is_to_begin_anew(error: type[MeshError]) -> None:
    mesh, newer = Mesh("a"), an_identity("chain", "2")
    door = mesh.door()
    await begun(door, 2)
    mesh.errors["a"] = error("gone")
    with pytest.raises(error):
        await ask(door, a_step(99))  # nothing else answers to its name
    with pytest.raises(SequenceUnknown, match=r"'chain/1' that no node can run any more, .*: begin it anew"):
        await ask(door, a_step(99), newer)
    del mesh.errors["a"]  # it was only away
    assert shown(await ask(door, a_step(NUMBERS[2]), newer)) == WANTED[2]


async def test_moving_ends_at_the_deadline_and_what_was_made_anew_is_kept() -> None:
    mesh = Mesh("a", "b")
    door = mesh.door(checkpoint_steps=100)
    await begun(door, 5)
    mesh.errors["a"] = NodeLost("gone")
    mesh.script(("", 0), ("", 0), ("", 0), ("late before it ran", 0))
    with pytest.raises(DeadlineExceeded):
        await ask(door, a_step(NUMBERS[5]))
    assert mesh.nodes["b"].runs == NUMBERS[:2]
    moved = await ask(door, a_step(NUMBERS[5]))
    assert mesh.nodes["b"].runs == NUMBERS[:6]
    assert (shown(moved), moved.sequence) == (WANTED[5], "resumed; checkpoint=0; replayed=5")
