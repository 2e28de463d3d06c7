"""One model at one place: does its engine build, does it run where it was asked to, are its answers right, and the same
every time.

Not here: speed (``speed``), what happens when things go wrong (``faults``).
"""

from __future__ import annotations

from hardware.acceptance.finding import CheckFailed, Found, Skipped
from hardware.acceptance.place import Opened, Place, Told, refused_by_design
from hardware.acceptance.reference import Reference
from hardware.acceptance.subjects import Subject
from hardware.errors import EngineNotBuilt

REPEATS = 20


async def build(place: Place, subject: Subject) -> Found:
    """TensorRT builds an engine in a process of its own and tells how far it is."""
    told = Told()
    try:
        engine = await place.build(subject, told=told)
    except EngineNotBuilt as error:
        raise refused_by_design(subject, error) from None
    numbers = {"build_s": engine.build_s, "plan_bytes": engine.plan_bytes, "steps_told": len(told.shares)}
    if not told.rises:
        raise CheckFailed("its progress was not told up to the end", {**numbers, "shares": told.shares[-10:]})
    text = f"built in {engine.build_s:.1f} s, plan of {engine.plan_bytes / 1e6:.1f} MB"
    return Found(f"{text}, progress told {len(told.shares)} times", numbers)


def load(opened: Opened) -> Found:
    """That it came to be loaded means that it runs where it was asked to."""
    loaded = opened.loaded
    numbers = {
        "load_ms": loaded.load_ms,
        "memory_bytes": loaded.memory_bytes,
        "device_bytes": loaded.device_bytes,
        "batch_limit": loaded.batch_limit,
    }
    return Found(f"{loaded.effective} runs it, loaded in {loaded.load_ms:.0f} ms", numbers, loaded.detail)


async def parity(opened: Opened, place: Place, reference: Reference) -> Found:
    """One row and many, with different values, against known answers or ONNX Runtime on the CPU."""
    subject = opened.subject
    worst, checked, flipped = 0.0, 0, 0
    for seed, rows in enumerate(sorted({1, 2, 3, subject.most_rows()} if subject.takes_rows else {1})):
        for repeat in (0, 100):
            request = subject.request(rows, seed + repeat)
            right = await reference.answer(subject, request, known=place.backend == "onnxruntime-cpu")
            apart = place.demand(right, await opened.ask(request), f"an answer of {rows} rows")
            worst, checked = max(worst, apart.worst), checked + rows
            flipped += apart.flipped
    numbers = {"rows": checked, "largest_difference_share": worst, "tolerance_share": place.tolerance}
    against = "ONNX Runtime on the CPU"
    if place.backend == "onnxruntime-cpu":
        against = "known answers" if subject.is_made else "another worker on one thread"
    return Found(f"{checked} rows as {against}, at most {worst:.1e} of {place.tolerance:.0e} apart", numbers)


async def repeat(opened: Opened, place: Place) -> Found:
    """The same request again and again."""
    rows = min(2, opened.subject.most_rows())
    first = await opened.run(rows, seed=5)
    worst, same = 0.0, True
    for _ in range(REPEATS):
        again = await opened.run(rows, seed=5)
        apart = place.demand(first, again, "a repeated answer")
        worst = max(worst, apart.worst)
        same &= all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    text = f"{REPEATS} repeats are " + ("the same bit for bit" if same else f"at most {worst:.1e} apart")
    return Found(text, {"repeats": REPEATS, "same_bits": same, "largest_difference_share": worst})


def precision(place: Place, by_flag: bool | None) -> None:
    """From TensorRT 11 on only a model that is itself FP16 runs in it. Raises ``Skipped``."""
    if place.backend == "tensorrt" and place.precision == "fp16" and by_flag is False:
        raise Skipped("this TensorRT takes its types from the model: convert the file to run it in FP16")
