"""Modules that stand before the real one of their name on the path, and change it. Not here: what they change."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def import_behind(name: str, change: Callable[[ModuleType], ModuleType]) -> ModuleType:
    """For a module of that name that is being imported: the one behind it on the path, changed."""
    here = Path(sys.modules[name].__file__ or "").resolve().parent.parent
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != here]
    del sys.modules[name]
    try:
        return change(importlib.import_module(name))
    finally:
        sys.path[:] = path
