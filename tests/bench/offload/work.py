"""Pieces of work over processes: the results come in the order of the pieces, whatever the number of processes.

Not here: what the pieces are (experiment.py, tuning.py, faults.py).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Work:
    """Runs pieces in other processes, or in this one where there is no executor."""

    def __init__(self, executor: Executor | None = None, *, tells: bool = False) -> None:
        self._executor = executor
        self._tells = tells
        self._began = time.monotonic()

    def each(self, run: Callable[[Piece], Result], pieces: Sequence[Piece], what: str) -> list[Result]:
        """`run` is a function of a module and must not depend on what other pieces did."""
        results: Iterable[Result] = map(run, pieces) if self._executor is None else self._executor.map(run, pieces)
        return list(self._counted(results, len(pieces), what))

    def _counted(self, results: Iterable[Result], total: int, what: str) -> Iterator[Result]:
        told_s = 0.0
        for number, result in enumerate(results, 1):
            now = time.monotonic()
            if self._tells and (now - told_s > 5.0 or number == total):
                told_s = now
                print(f"{now - self._began:6.0f} s  {what} {number}/{total}", file=sys.stderr, flush=True)
            yield result


@contextmanager
def workers(jobs: int | None = None, *, tells: bool = False) -> Iterator[Work]:
    """So many processes, as many as there are cores by default; 1 stays in this one."""
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        yield Work(tells=tells)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as executor:
        try:
            yield Work(executor, tells=tells)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
