"""``mesh doctor --acceptance``: run the hardware's acceptance in a process of its own and show what it finds.

That process may be ended by a driver; what it said until then still counts. Not here: any check (the package
``hardware.acceptance``, which this one only starts).
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.command import FAILED, console, print_json
from mesh.errors import ConfigError

BACKENDS = ("onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
DEFAULT_MODELS = Path("models")
_COLOURS = {"ok": "green", "skipped": "yellow", "failed": "red"}

Document = dict[str, Any]


def acceptance(models: Path | None, seconds: float, backends: list[str], *, as_json: bool) -> None:
    """Run it and print a table or one JSON document; exit 1 if a check failed. Raises ``ConfigError``."""
    folder = _models(models)
    unknown = next((name for name in backends if name not in BACKENDS), None)
    if unknown is not None:
        raise ConfigError(f"there is no backend '{unknown}'; there are {', '.join(BACKENDS)}")
    if seconds <= 0:
        raise ConfigError("--seconds must be more than 0")
    document: Document = {"ok": False, "box": {}, "versions": {}, "checks": []}
    with (
        tempfile.TemporaryDirectory(prefix="mesh-acceptance-", ignore_cleanup_errors=True) as work,
        contextlib.closing(_run(Path(work), folder, seconds, backends)) as run,
    ):
        for said in run:
            _note(document, said)
    checks = document["checks"]
    document["ok"] = all(check["state"] != "failed" for check in checks)
    if as_json:
        print_json(document)
    else:
        _show(checks)
    if not document["ok"]:
        raise SystemExit(FAILED)


def _models(given: Path | None) -> Path | None:
    if given is None:
        return DEFAULT_MODELS if any(DEFAULT_MODELS.glob("*/*/model.onnx")) else None
    if not any(given.glob("*/*/model.onnx")):
        raise ConfigError(f"there is no model in {given}: its layout is <model>/<version>/model.onnx")
    return given


def _run(work: Path, models: Path | None, seconds: float, backends: list[str]) -> Generator[Document, None, None]:
    """What the process says, line by line; its death is a finding too."""
    command = [sys.executable, "-m", "hardware.acceptance", str(work), str(seconds)]
    command += ["" if models is None else str(models.resolve()), *backends]
    noise = work / "noise.txt"
    ended = False
    with noise.open("wb") as err, _started(command, err) as process:
        for line in process.stdout or ():
            if not line.endswith(b"\n"):  # it was ended while it spoke
                break
            said: Document = jsonlib.loads(line)
            ended = "end" in said
            yield said
        process.wait()
    if not ended:
        last = noise.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        found = f"the acceptance process ended with status {process.returncode}: {''.join(last)[:300]}"
        yield {"finding": _finding("acceptance", "failed", found, "send us this report")}


@contextlib.contextmanager
def _started(command: list[str], err: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Its own workers end with it, so that to kill it is enough."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _finding(check: str, state: str, found: str, advice: str) -> Document:
    row = {"check": check, "backend": "", "model": "", "state": state, "found": found}
    return {**row, "numbers": {}, "advice": advice}


def _note(document: Document, said: Document) -> None:
    for name in ("box", "versions"):
        document[name] = said.get(name, document[name])
    finding = said.get("finding")
    if finding is not None:
        document["checks"].append(finding)
        where = " ".join(filter(None, (finding["backend"], finding["model"])))
        line = f"[{_COLOURS[finding['state']]}]{finding['state']:8}[/] {escape(finding['check'])} {escape(where)}"
        Console(stderr=True).print(line, highlight=False)


def _show(checks: list[Document]) -> None:
    table = Table("check", "backend", "model", "state", "found")
    for row in checks:
        found = escape(row["found"]) + (f"\n[dim]{escape(row['advice'])}[/]" if row["advice"] else "")
        state = f"[{_COLOURS[row['state']]}]{row['state']}[/]"
        table.add_row(escape(row["check"]), row["backend"], escape(row["model"]), state, found)
    console().print(table)
    states = [row["state"] for row in checks]
    console().print(", ".join(f"{states.count(state)} {state}" for state in _COLOURS), highlight=False)
