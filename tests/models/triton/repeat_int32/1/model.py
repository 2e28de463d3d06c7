"""Answers each element of IN by itself, after so many milliseconds of DELAY, and then waits for WAIT milliseconds."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

inputs = {"IN": ("INT32", [-1]), "DELAY": ("UINT32", [-1]), "WAIT": ("UINT32", [1])}
outputs = {"OUT": ("INT32", [1]), "IDX": ("UINT32", [1])}


def infer(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for index, number in enumerate(inputs["IN"]):
        time.sleep(inputs["DELAY"][index] / 1000)
        yield {"OUT": np.array([number], np.int32), "IDX": np.array([index], np.uint32)}
    time.sleep(inputs["WAIT"][0] / 1000)
