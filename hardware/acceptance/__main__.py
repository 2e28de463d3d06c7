"""``python -m hardware.acceptance FOLDER SECONDS MODELS BACKEND...``: run everything, a line of JSON for each finding.

Started by ``mesh doctor --acceptance``, which owns FOLDER; an empty MODELS means the made ones alone. A line holds
``box``, ``versions``, ``finding`` or, as the last, ``end``. Not here: what is run (``plan``).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from hardware import confinement
from hardware.acceptance.finding import Finding
from hardware.acceptance.plan import Asked, run


class Lines:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def box(self, found: dict[str, Any]) -> None:
        self._say("box", found)

    def versions(self, found: dict[str, Any]) -> None:
        self._say("versions", found)

    def finding(self, finding: Finding) -> None:
        self._say("finding", finding)

    def end(self) -> None:
        self._say("end", True)

    def _say(self, kind: str, found: Any) -> None:
        view = memoryview(msgspec.json.encode({kind: found}) + b"\n")
        while view:
            view = view[os.write(self._fd, view) :]


def main() -> None:
    lines = Lines(os.dup(1))
    os.dup2(2, 1)  # nothing else may be said where answers are read
    confinement.confine(os.getppid())
    folder, seconds, models, *backends = sys.argv[1:]
    asked = Asked(Path(folder), Path(models) if models else None, float(seconds), tuple(backends))
    asyncio.run(run(asked, lines))
    lines.end()


if __name__ == "__main__":
    main()
