"""What loaded versions were measured to hold, remembered by digest and backend in the node's state folder.

A forecast for the next load (``preflight``); losing it costs a guess. Not here: comparing it with what is free.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from edge.preflight import Footprint

log = logging.getLogger(__name__)

FILE = "footprints.json"
MAX_KEPT = 512
MAX_FILE_BYTES = 1 << 20


class Footprints:
    """``folder`` is None where nothing can be kept. Blocking, but small: one file of a few kilobytes."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._known: dict[str, tuple[int, int]] = {}

    def read(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            self._known = msgspec.json.decode(content, type=dict[str, tuple[int, int]])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the measured footprints of models cannot be read (%s), they are measured again", error)

    def get(self, digest: str, backend: str) -> Footprint | None:
        found = self._known.get(f"{digest}:{backend}")
        return None if found is None else Footprint(*found)

    def remember(self, digest: str, backend: str, footprint: Footprint) -> None:
        self._known.pop(key := f"{digest}:{backend}", None)
        self._known[key] = footprint.box, footprint.device
        while len(self._known) > MAX_KEPT:
            del self._known[next(iter(self._known))]
        if self._path is None:
            return
        draft = self._path.with_name(FILE + ".new")
        try:
            draft.write_bytes(msgspec.json.encode(self._known))
            os.replace(draft, self._path)
        except OSError as error:
            log.warning("the footprint of a model cannot be kept: %s", error.strerror)
