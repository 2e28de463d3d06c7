"""``python -m tests.interop.triton_examples --examples DIR``: Triton's own Python examples, on an agent and a router.

DIR is ``src/python/examples`` of a checkout of github.com/triton-inference-server/client. Each script is run as it is,
as a process, also with those of its flags that change what it asks for. Not here: the models
(``tests.models.make_triton``), the doors (``tests.interop.asked``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mesh.child import tied
from mesh.lifecycle import within
from tests.bench.report import show
from tests.interop.asked import HOST, KINDS, Asked, asked
from tests.models.make_triton import DYNAMIC, FOLDER, GROWTH, write

EXCLUDED = {
    r".*cudashm.*": "needs CUDA shared memory",
    r"(grpc_)?image_client|ensemble_image_client|grpc_client": "needs a downloaded model",
}
VARIANTS = {
    '"--dyna"': ("--dyna",),
    '"--protocol"': ("--protocol", "grpc"),
    '"--grpc-compression-algorithm"': ("-C", "gzip"),
    '"--request-compression-algorithm"': (
        *("--request-compression-algorithm", "gzip"),
        *("--response-compression-algorithm", "deflate"),
    ),
}
"""What a script that knows such a flag is run with once more."""
FIXED = {"http": 8000, "grpc": 8001}
"""Where a script asks that takes no address."""
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Example:
    script: Path
    flags: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return " ".join((self.script.stem, *self.flags))

    @property
    def excluded(self) -> str:
        """Why it cannot be run, if so."""
        return next((why for pattern, why in EXCLUDED.items() if re.fullmatch(pattern, self.script.stem)), "")

    @property
    def repository(self) -> str:
        """``seven`` models, ``eight`` where it counts so many or asks for the eighth, ``growth`` at fixed ports."""
        if self.script.stem == "memory_growth_test":
            return "growth"
        return "eight" if "--dyna" in self.flags or self.script.stem == "simple_grpc_model_control" else "seven"

    def command(self, door: Asked) -> list[str]:
        url = door.grpc if "grpc" in self.title else door.http
        address = [] if self.repository == "growth" else ["-u", url]
        return [sys.executable, str(self.script), *address, *self.flags]


@dataclass(frozen=True)
class Outcome:
    passed: bool
    said: str = ""
    """Of one that failed: the last it said."""


def examples(folder: Path) -> list[Example]:
    found = []
    for script in sorted(folder.glob("*.py")):
        found.append(Example(script))
        if not found[-1].excluded:
            text = script.read_text()
            found += [Example(script, flags) for known, flags in VARIANTS.items() if known in text]
    return found


def judged(script: str, status: int, output: str) -> Outcome:
    """Status 0 is not enough: some end with it after what they could not do, so those that say PASS must say it."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and "warn" not in line.lower()]
    silent = "PASS" in script and not any(line.startswith("PASS") for line in lines)
    if status == 0 and not silent and "creation failed" not in output:
        return Outcome(True)
    said = lines[-1][:100] if lines else "it said nothing"
    return Outcome(False, f"no PASS, but: {said}" if status == 0 else said)


async def run(example: Example, door: Asked) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        *tied(example.command(door)),
        cwd=example.script.parent,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await within(TIMEOUT_S, process.communicate())
    except asyncio.TimeoutError:
        return Outcome(False, f"not done after {TIMEOUT_S:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return judged(example.script.read_text(), process.returncode, out.decode(errors="replace"))


async def outcomes(chosen: Iterable[Example], models: dict[str, Path]) -> dict[tuple[Example, str], Outcome]:
    """By example and kind of door. Each repository gets meshes of its own, where what unloads models comes last."""
    found = {}
    ordered = sorted(chosen, key=lambda example: "model_control" in example.script.stem)
    for name, folder in models.items():
        those = [example for example in ordered if example.repository == name]
        for kind in KINDS if those else ():
            async with asked(kind, folder, **(FIXED if name == "growth" else {})) as door:
                for example in those:
                    found[example, kind] = await run(example, door)
    return found


@contextlib.contextmanager
def repositories() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory() as made:
        eight, growth = Path(made) / "eight", Path(made) / "growth"
        eight.mkdir()
        for model in FOLDER.iterdir():
            (eight / model.name).symlink_to(model)
        write(DYNAMIC, eight)
        write(GROWTH, growth)
        yield {"seven": FOLDER, "eight": eight, "growth": growth}


def taken() -> str:
    """Which of the fixed ports somebody else listens at, if any."""
    for port in FIXED.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return f"asks at ports {FIXED['http']} and {FIXED['grpc']}, of which {port} is taken"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.triton_examples", description=__doc__)
    parser.add_argument("--examples", type=Path, required=True, help="folder of the scripts")
    parser.add_argument("--only", default="", help="only those whose name holds this")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    every = [e for e in examples(arguments.examples) if arguments.only in e.title]
    if not every:
        parser.error(f"no example in {arguments.examples} has {arguments.only!r} in its name")
    ports = taken()
    reasons = {e: e.excluded or (ports if e.repository == "growth" else "") for e in every}
    with repositories() as models:
        found = asyncio.run(outcomes([e for e in every if not reasons[e]], models))
    rows = []
    for example in every:
        at = [found.get((example, kind)) for kind in KINDS]
        words = ["-" if one is None else "pass" if one.passed else "fail" for one in at]
        said = dict.fromkeys(one.said for one in at if one is not None and one.said)
        reason = reasons[example] or "; ".join(said)
        rows.append({"example": example.title} | dict(zip(KINDS, words, strict=True)) | {"reason": reason})
    passed = sum(one.passed for one in found.values())
    left_out = sum(bool(reason) for reason in reasons.values())
    show(rows, [f"{passed} of {len(found)} pass, {left_out} left out"], as_json=arguments.json)
    sys.exit(passed < len(found))


if __name__ == "__main__":
    main()
