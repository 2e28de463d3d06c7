"""Steps in Python as a repository holds them, for tests. Not here: the steps that Triton's clients ask for."""

from __future__ import annotations

from pathlib import Path

REPEAT = """
import numpy as np
inputs = {"IN": ("INT32", [-1])}
outputs = {"OUT": ("INT32", [1]), "INDEX": ("UINT32", [1])}

def infer(inputs):
    for index, value in enumerate(inputs["IN"]):
        yield {"OUT": np.array([value]), "INDEX": np.array([index], np.uint32)}
"""
"""Answers as many times as its input has values, and not at all to none."""

NOTED = """
import pathlib
import numpy as np
inputs = {"IN": ("INT32", [-1])}
outputs = {"OUT": ("INT32", [1])}
notes = pathlib.Path(__file__).with_name("notes")

def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")

def infer(inputs):
    note("began")
    try:
        for value in inputs["IN"]:
            note(f"made {value}")
            yield {"OUT": np.array([value])}
        note("was read to its end")
    finally:
        note("left")
"""
"""As ``REPEAT``; writes down beside itself how far it came."""

DOUBLE = """
inputs = {"X": ("FP32", [-1, 2])}
outputs = {"Y": ("FP32", [-1, 2])}

def infer(inputs):
    return {"Y": inputs["X"] * 2}
"""

GATED = """
import os, pathlib
import numpy as np
inputs = {"IN": ("INT32", [-1])}
outputs = {"OUT": ("INT32", [1])}
gate = pathlib.Path(__file__).with_name("gate")

def infer(inputs):
    for value in inputs["IN"]:
        if value < 0:
            with gate.open() as opened:  # a FIFO: until somebody opens its other end
                opened.read()
        yield {"OUT": np.array([value])}
"""
"""As ``REPEAT``; waits in its own code before it answers a negative value."""


def save(folder: Path, source: str, *, name: str = "step", version: str = "1", toml: str = "", pbtxt: str = "") -> Path:
    """Write a step into the repository ``folder``; returns its file."""
    path = folder / name / version / "model.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    if toml:
        (folder / name / "model.toml").write_text(toml, encoding="utf-8")
    if pbtxt:
        (folder / name / "config.pbtxt").write_text(pbtxt, encoding="utf-8")
    return path
