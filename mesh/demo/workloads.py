"""The workloads of the demonstration: one per model, each an endless supply of requests with known right answers.

    for workload in load(models):
        request = workload.request(rng)
        while request:
            outputs = ...                        # from any door, by name
            assert request.check(outputs)
            request = request.then(outputs) if request.then else None

Not here: how requests are made (``filetypes``, ``ocr``, ``audio``), how they are sent, how the models got there
(``models``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mesh.demo import audio, filetypes, ocr
from mesh.demo.request import Request
from mesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Workload:
    """What one model is asked. ``request`` makes the next one; the same generator state gives the same request."""

    name: str
    model: str
    describe: str
    request: Callable[[np.random.Generator], Request]


def load(models: Path) -> tuple[Workload, ...]:
    """All workloads. ``models`` is the repository that ``mesh.demo.models`` filled: its label files name the classes.

    Raises ``ConfigError`` where one is absent.
    """
    kind = filetypes.kind_request(_labels(models, "magika"))
    text = ocr.read_request(_labels(models, "ocr_rec"))
    return (
        Workload("file-kind", "magika", "tell what kind of file some bytes are", kind),
        Workload("voice", "silero_vad", "tell speech from background noise, 32 ms at a time", audio.voice_request),
        Workload("find-text", "ocr_det", "find a line of text in a picture", ocr.find_request),
        Workload("read-text", "ocr_rec", "read a line of text", text),
        Workload("upside", "ocr_cls", "tell a line of text from one on its head", ocr.upside_request),
        Workload("page-turn", "orientation", "tell by how many degrees a page is turned", ocr.turn_request),
    )


def _labels(models: Path, model: str) -> tuple[str, ...]:
    """Class names of a model, the one of class ``i`` at index ``i``; only line feeds end a line."""
    path = models / model / "labels.txt"
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; fetch the models with 'make models'") from None
    return tuple(text.removesuffix("\n").split("\n"))
