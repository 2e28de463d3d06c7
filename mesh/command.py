"""What the three commands have in common: options, exit codes, one line to stderr on failure, the event loop.

Exit codes: 0 ok, 1 failed, 2 usage or configuration. Not here: any command (``mesh.cli``, ``edge.cli``, ``cloud.cli``).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh import telemetry
from mesh.errors import ConfigError, MeshError
from mesh.lifecycle import keep_large_buffers
from mesh.settings import LogSettings, MeshSettings, effective, load, process_environ

Config = Annotated[Optional[Path], typer.Option("--config", help="TOML file with settings")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document")]


def _print_version(asked: bool) -> None:
    if asked:
        printed(f"inference-mesh {version('inference-mesh')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
]

FAILED = 1
USAGE = 2


def printed(line: str) -> None:
    """One line to stdout, at once: whoever started this command may be waiting for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_json(document: Any) -> None:
    printed(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def console() -> Console:
    """Where people read; tables are not squeezed when stdout is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=160)


class _Fail:
    """``with fail():`` ends the command with one line that says what to do, and the right exit code."""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.usage(error.text)
        except MeshError as error:
            self.failed(error.text)

    def usage(self, text: str) -> NoReturn:
        sys.stderr.write(f"error: {text}\n")
        raise typer.Exit(USAGE)

    def failed(self, text: str) -> NoReturn:
        sys.stderr.write(f"error: {text}\n")
        raise typer.Exit(FAILED)


fail = _Fail()


def start(log: LogSettings, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process of the mesh until it is done."""
    telemetry.setup(log.level, json_lines=log.json_lines)
    keep_large_buffers()
    run(work())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on uvloop; Ctrl-C in a short command is no traceback."""
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    uvloop.install()
    return asyncio.run(work)


def check_config(cls: type[MeshSettings], config: Path | None, as_json: bool) -> None:
    """The ``config check`` of every command."""
    with fail():
        _, loaded = load(cls, {}, config, process_environ())
        rows = effective(loaded)
    if as_json:
        print_json({"settings": rows})
        return
    table = Table("setting", "value", "from")
    for row in rows:
        table.add_row(row["name"], "" if row["value"] is None else escape(str(row["value"])), row["source"])
    console().print(table)
