"""``python -m tests.interop.triton_examples --examples DIR``: Triton's own Python examples, on an agent and a router.

DIR is ``src/python/examples`` of a checkout of github.com/triton-inference-server/client. Each script is run as it is,
as a process; it passes if it ends with 0. Not here: the models (``tests.models.make_triton``).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from mesh.cluster import Child, Cluster
from mesh.nats_server import free_port
from tests.bench.report import show
from tests.models.make_triton import DYNAMIC, FOLDER, write

EXCLUDED = {
    r".*cudashm.*": "needs CUDA shared memory",
    r"(grpc_)?image_client|ensemble_image_client|grpc_client": "needs a downloaded model",
    r"memory_growth_test": "asks at localhost:8000 and 8001, whatever it is told: run by hand",
}
EIGHT = "simple_grpc_model_control"
"""Counts eight models where the HTTP one counts seven: it gets the repository with the dynamic string sequence."""
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Example:
    name: str
    flags: tuple[str, ...] = ()
    eight: bool = False
    excluded: str = ""

    @property
    def title(self) -> str:
        return " ".join((self.name, *self.flags))


@dataclass
class Outcome:
    passed: bool
    said: str = ""
    last: list[str] = field(default_factory=list)


def examples(folder: Path) -> list[Example]:
    found = []
    for script in sorted(folder.glob("*.py")):
        name = script.stem
        why = next((why for pattern, why in EXCLUDED.items() if re.fullmatch(pattern, name)), "")
        found.append(Example(name, excluded=why, eight=name == EIGHT))
        if "--dyna" in script.read_text() and not why:
            found.append(Example(name, ("--dyna",), eight=True))
    return found


async def run(folder: Path, example: Example, door: Child, grpc: str) -> Outcome:
    url = grpc if "grpc" in example.name else door.address
    flags = [*example.flags, *(["-i", "http"] if example.name == "reuse_infer_objects_client" else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(folder / f"{example.name}.py"), "-u", url, *flags),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        return Outcome(False, f"not done after {TIMEOUT_S:g} s")
    text = [line for line in out.decode(errors="replace").splitlines() if line.strip()]
    lines = [line for line in text if "warn" not in line.lower()]
    said = lines[-1][:100] if lines else "nothing was said"
    return Outcome(process.returncode == 0, said if process.returncode else "", lines[-8:])


async def against(models: Path, folder: Path, chosen: list[Example]) -> dict[str, tuple[Outcome, Outcome]]:
    """Every example at an agent, and at a router before it."""
    ports = [f"127.0.0.1:{free_port('127.0.0.1')}" for _ in range(2)]
    settings = {"MESH_HTTP__SERVER_NAME": "triton", "MESH_HTTP__SHARED_MEMORY": "true", "MESH_HTTP__REPOSITORY": "true"}
    with tempfile.TemporaryDirectory() as run_dir:
        async with Cluster(Path(run_dir), agents=settings) as cluster:
            agent = await cluster.agent("agent", models, environ={"MESH_GRPC__LISTEN": ports[0]} | settings)
            router = await cluster.router(environ={"MESH_GRPC__LISTEN": ports[1]} | settings)
            await asyncio.gather(*(child.until_ready() for child in cluster.children))
            await cluster.settled(router, ["agent"])
            outcomes = {}
            for example in chosen:
                at_agent = await run(folder, example, agent, ports[0])
                outcomes[example.title] = at_agent, await run(folder, example, router, ports[1])
            return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.triton_examples", description=__doc__)
    parser.add_argument("--examples", type=Path, required=True, help="folder of the scripts")
    parser.add_argument("--only", default="", help="only those whose name holds this")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    every = [e for e in examples(arguments.examples) if arguments.only in e.title]
    chosen = [e for e in every if not e.excluded]
    with tempfile.TemporaryDirectory() as made:
        more = Path(made) / "models"
        more.mkdir()
        for model in FOLDER.iterdir():
            (more / model.name).symlink_to(model)
        write(DYNAMIC, more)
        outcomes = asyncio.run(against(FOLDER, arguments.examples, [e for e in chosen if not e.eight]))
        outcomes |= asyncio.run(against(more, arguments.examples, [e for e in chosen if e.eight]))
    rows = []
    for example in every:
        if example.excluded:
            rows.append({"example": example.title, "agent": "-", "router": "-", "reason": example.excluded})
            continue
        agent, router = outcomes[example.title]
        reason = "; ".join(dict.fromkeys(filter(None, (agent.said, router.said))))
        words = {True: "pass", False: "fail"}
        rows.append(
            {"example": example.title, "agent": words[agent.passed], "router": words[router.passed], "reason": reason}
        )
    passed = sum(a.passed + r.passed for a, r in outcomes.values())
    show(rows, [f"{passed} of {2 * len(outcomes)} pass, {len(every) - len(chosen)} left out"], as_json=arguments.json)


if __name__ == "__main__":
    main()
