"""``python -m hardware.acceptance.inline``: run one model in this process, print how long a run takes, end.

The request comes on standard input. Not here: what it is compared with (``speed``).
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys

import msgspec

from hardware import confinement
from hardware.acceptance.speed import middle_ms
from hardware.backend import LoadOptions, RawTensor
from hardware.inline_runtime import InlineRuntime


class Asked(msgspec.Struct):
    path: str
    options: LoadOptions
    inputs: list[tuple[str, str, tuple[int, ...], str]]
    """Name, datatype, shape, and data in base64."""
    seconds: float


async def measure(asked: Asked) -> float:
    request = [RawTensor(name, datatype, shape, base64.b64decode(data)) for name, datatype, shape, data in asked.inputs]
    async with InlineRuntime() as runtime:
        await runtime.load("model", asked.path, asked.options)
        return await middle_ms(lambda: runtime.run("model", request, ()), asked.seconds)


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # backends print
    confinement.confine(os.getppid())
    ms = asyncio.run(measure(msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)))
    os.write(answers, msgspec.json.encode({"ms": ms}) + b"\n")


if __name__ == "__main__":
    main()
