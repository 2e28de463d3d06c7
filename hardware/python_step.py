"""The "python" backend: steps written in Python, which answer a run once or, as generators, any number of times.

Code of the repository's owner, and so only for a worker of its own. Not here: whose code is run at all
(``ownership``), the pace of a stream (``worker``).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any, TypeVar

import numpy as np

from hardware import arrays
from hardware.backend import (
    ITEM_BYTES,
    MAX_DIMENSION,
    Interrupt,
    Loaded,
    LoadOptions,
    RawTensor,
    Signature,
    TensorInfo,
    check_inputs,
    shown,
)
from hardware.errors import DeviceOutOfMemory, InvalidInput, ModelRefused, RunFailed
from hardware.ownership import read_trusted
from hardware.process_memory import resident_bytes

STEP_FILE = "model.py"
BACKEND = PLATFORM = "python"
MAX_STEP_BYTES = 4 << 20
MAX_TENSORS = 256
MOST_PLACES = 64
_DATATYPES = frozenset(ITEM_BYTES) | {"BYTES"}
_DIRECTORIES = re.compile(r"(?:file:/*|(?<![\w/]))/(?:[^\s'\"/]+/)+")
_number = itertools.count()

Infer = Callable[[dict[str, Any]], Any]
T = TypeVar("T")


class PythonStep:
    """``infer`` of one module; ``LoadOptions.instances`` threads call it at the same time."""

    def __init__(self, module: ModuleType, infer: Infer, loaded: Loaded) -> None:
        self.loaded = loaded
        self._module = module
        self._infer = infer
        self._outputs = {info.name: info for info in loaded.signature.outputs}
        self._told: set[tuple[str, int]] = set()
        """Errors and lines whose traceback was printed: once each, for callers could fill the log."""

    def run(
        self, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None = None
    ) -> list[RawTensor]:
        names, given = self._asked(inputs, outputs)
        return self._call(lambda: self._checked(self._infer(given), names))

    def stream(self, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Generator[list[RawTensor], None, None]:
        names, given = self._asked(inputs, outputs)
        return self._stream(names, given)

    def close(self) -> None:
        sys.modules.pop(self._module.__name__, None)

    def _stream(self, names: Sequence[str], given: dict[str, Any]) -> Generator[list[RawTensor], None, None]:
        answers: Generator[Any, None, None] = self._call(lambda: self._infer(given))

        def advance() -> list[RawTensor] | None:
            for answer in answers:
                return self._checked(answer, names)
            return None

        try:
            while (tensors := self._call(advance)) is not None:
                yield tensors
        finally:
            self._call(answers.close)

    def _asked(self, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> tuple[Sequence[str], dict[str, Any]]:
        check_inputs(self.loaded.signature, inputs)
        unknown = [name for name in outputs if name not in self._outputs]
        if unknown:
            raise InvalidInput(f"the model has no output {shown(unknown[0])}")
        return outputs or list(self._outputs), {tensor.name: arrays.owned(tensor) for tensor in inputs}

    def _call(self, step: Callable[[], T]) -> T:
        """Whatever the code raises, be it ``SystemExit``, and whatever is wrong with the objects that it answers, ends
        this run and nothing else."""
        try:
            return step()
        except RunFailed:  # said already what is wrong
            raise
        except BaseException as error:  # noqa: BLE001 - not our code
            self._tell(error)
            if isinstance(error, MemoryError):
                raise DeviceOutOfMemory("the step found no memory") from None
            raise RunFailed(f"the step failed: {said(error)}") from None

    def _tell(self, error: BaseException) -> None:
        """The owner of the step finds the traceback in the agent's log; callers get the short text."""
        frames = traceback.extract_tb(error.__traceback__)
        place = type(error).__name__, frames[-1].lineno or 0
        if place not in self._told and len(self._told) < MOST_PLACES:
            self._told.add(place)
            with contextlib.suppress(OSError, ValueError):  # stderr may be closed; the caller gets the short text
                traceback.print_exception(type(error), error, error.__traceback__, limit=-8, file=sys.stderr)

    def _checked(self, answer: Any, names: Sequence[str]) -> list[RawTensor]:
        if not isinstance(answer, Mapping):
            raise RunFailed(f"the step answered a {type(answer).__name__}, not a dict of arrays by output")
        for name in answer:
            if name not in self._outputs:
                raise RunFailed(f"the step answered {shown(str(name))}, which is not declared as an output")
        missing = next((name for name in self._outputs if name not in answer), None)
        if missing is not None:
            raise RunFailed(f"the step did not answer the output '{missing}'")
        tensors = {name: _tensor(info, answer[name]) for name, info in self._outputs.items()}
        return [tensors[name] for name in names]


def open_session(path: str, options: LoadOptions) -> PythonStep:
    """Run the module at ``path`` once and take its declarations; the bytes that are run are those that are judged.

    Raises ``ModelRefused``.
    """
    started = time.monotonic()
    if os.path.basename(path) != STEP_FILE:
        raise ModelRefused(f"the python backend runs {STEP_FILE}, not {os.path.basename(path)}")
    source, real = read_trusted(path, min(options.max_model_bytes, MAX_STEP_BYTES))
    if options.digest and hashlib.sha256(source).hexdigest() != options.digest:
        raise ModelRefused("its file on disk is not the one that was read; load it again")
    resident = resident_bytes(os.getpid()) or 0
    module = _module(source, real)
    try:
        signature = Signature(_declared(module, "inputs"), _declared(module, "outputs"))
        infer = _infer(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    loaded = Loaded(
        signature=signature,
        requested=options.backend,
        effective=BACKEND,
        platform=PLATFORM,
        load_ms=(time.monotonic() - started) * 1e3,
        memory_bytes=max(0, (resident_bytes(os.getpid()) or 0) - resident),
        device_bytes=0,
        decoupled=inspect.isgeneratorfunction(infer),
    )
    return PythonStep(module, infer, loaded)


def _module(source: bytes, path: str) -> ModuleType:
    """Known to ``sys.modules`` while it is open, where dataclasses and the like look their module up."""
    module = ModuleType(f"mesh_step_{next(_number)}")
    module.__file__ = path
    sys.modules[module.__name__] = module
    try:
        code: CodeType = compile(source, path, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - what this backend is for
    except BaseException as error:  # noqa: BLE001 - not our code
        del sys.modules[module.__name__]
        traceback.print_exception(type(error), error, error.__traceback__, limit=-8, file=sys.stderr)
        raise ModelRefused(f"{STEP_FILE} cannot be run{_line(error, path)}: {said(error)}") from None
    return module


def _line(error: BaseException, path: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" (line {lines[-1]})" if lines else ""


def _infer(module: ModuleType) -> Infer:
    infer = getattr(module, "infer", None)
    if not callable(infer):
        raise ModelRefused(f"{STEP_FILE} has no function infer(inputs)")
    if inspect.iscoroutinefunction(infer) or inspect.isasyncgenfunction(infer):
        raise ModelRefused(f"infer in {STEP_FILE} is async: a plain function or a generator is called, on a thread")
    try:
        inspect.signature(infer).bind({})
    except (TypeError, ValueError):
        raise ModelRefused(f"infer in {STEP_FILE} does not take the inputs as its one argument") from None
    return infer  # type: ignore[no-any-return]


def _declared(module: ModuleType, what: str) -> tuple[TensorInfo, ...]:
    tensors = getattr(module, what, None)
    example = f'{what} = {{"NAME": ("FP32", [-1, 3])}}'
    if not isinstance(tensors, dict) or not 0 < len(tensors) <= MAX_TENSORS:
        raise ModelRefused(f"{STEP_FILE} declares no {what}, or not as {example}")
    return tuple(_info(what, name, value) for name, value in tensors.items())


def _info(what: str, name: Any, value: Any) -> TensorInfo:
    where = f"{STEP_FILE}: {what}[{shown(str(name))}]"
    if not isinstance(name, str) or not name:
        raise ModelRefused(f"{where}: a name is a text")
    try:
        datatype, shape = value
        dims = tuple(shape)
    except (TypeError, ValueError):
        raise ModelRefused(f"{where} is not a datatype and a shape") from None
    if not isinstance(datatype, str) or datatype not in _DATATYPES:
        raise ModelRefused(f"{where}: there is no datatype {shown(str(datatype))}, there are {sorted(_DATATYPES)}")
    if not all(isinstance(dim, int) and -1 <= dim <= MAX_DIMENSION for dim in dims):
        raise ModelRefused(f"{where}: a dimension is a whole number, or -1 for any size")
    return TensorInfo(name, datatype, dims)


def _tensor(info: TensorInfo, array: Any) -> RawTensor:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):  # what is masked has no value
        raise RunFailed(f"the step answered a {type(array).__name__} as output '{info.name}', not a numpy array")
    if not arrays.is_of(array, info.datatype):
        raise RunFailed(f"the step answered output '{info.name}' as {array.dtype}, it is declared {info.datatype}")
    wants = info.shape
    if len(wants) != array.ndim or any(want not in (-1, dim) for want, dim in zip(wants, array.shape, strict=True)):
        shape = list(array.shape)
        raise RunFailed(f"the step answered output '{info.name}' of shape {shape}, it is declared {list(wants)}")
    return arrays.to_raw(info, array)


def said(error: BaseException) -> str:
    """Type and text of an error of somebody's code, short and without directories."""
    name = type(error).__name__
    try:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except Exception:  # noqa: BLE001 - not our code either
        text = ""
    text = " ".join(_DIRECTORIES.sub("", text).split())
    return f"{name}: {text[:200]}" if text else name
