"""What a backend is given and gives back: raw tensors, signatures, load options, and the session it opens.

Not here: any backend (``onnx_backend``), where sessions live (``runtime``), the choice of a backend (``sessions``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple, Protocol

from hardware.errors import InvalidInput

ITEM_BYTES = {
    "BOOL": 1,
    "INT8": 1,
    "UINT8": 1,
    "INT16": 2,
    "UINT16": 2,
    "FP16": 2,
    "BF16": 2,
    "INT32": 4,
    "UINT32": 4,
    "FP32": 4,
    "INT64": 8,
    "UINT64": 8,
    "FP64": 8,
}
"""Bytes of one element by OIP datatype. BYTES is missing: its elements have lengths of their own."""

MAX_DIMENSION = 2**31 - 1
GIB = 1024**3


Buffer = bytes | bytearray | memoryview


class RawTensor(NamedTuple):
    """One tensor as OIP's binary extension carries it.

    ``datatype`` is the OIP name (FP32, INT64, BYTES, ...). ``data`` is flat bytes, little-endian and row-major; a BYTES
    element is a uint32 length followed by that many bytes. A tuple of buffers stands for their concatenation: a batch
    put together from several requests is copied once, into the place where it runs. Whoever passes one to a runtime
    must leave ``data`` alone until the run is answered. What a runtime gives back is never a tuple.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer | tuple[Buffer, ...]

    @property
    def nbytes(self) -> int:
        data = self.data
        return sum([memoryview(d).nbytes for d in data]) if isinstance(data, tuple) else memoryview(data).nbytes

    @property
    def whole(self) -> Buffer:
        """``data`` as one buffer; copies only what lies in pieces."""
        return b"".join(self.data) if isinstance(self.data, tuple) else self.data


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A declared input or output; -1 in ``shape`` is a free dimension, an empty shape a scalar or an unknown rank."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str] = field(default_factory=dict, hash=False)
    """The custom metadata of the model file, such as its labels."""


class ShapeRange(NamedTuple):
    """Shapes one input may take in a TensorRT optimisation profile; the engine is tuned for ``optimum``."""

    name: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


Profile = tuple[ShapeRange, ...]
"""One range for each input that has a free dimension."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a TensorRT engine is built; all of it is part of the engine's content key (DESIGN D7)."""

    precision: Literal["fp32", "fp16"] = "fp32"
    profiles: tuple[Profile, ...] = ()
    workspace_bytes: int = 1 * GIB
    optimization_level: int = 3
    """TensorRT's builder optimisation level, 0 to 5."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to be opened.

    ``backend`` is what is asked for: "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt" or
    "python".
    """

    backend: str = "onnxruntime-cpu"
    threads: int = 1
    """Threads one run may use."""
    instances: int = 1
    """Runs of this model that may go on at the same time; the session's memory holds for all of them."""
    device: int = 0
    """Which GPU, as CUDA numbers them."""
    allow_cpu: bool = True
    """Whether a GPU request may land on the CPU; it is then reported as effective (DESIGN D8)."""
    memory_arena: bool = False
    """Keep freed tensor memory for the next run. Off: measured no faster on small and real models, the process would
    stay as large as its largest run, and after one run that found no memory every later one would fail too."""
    max_model_bytes: int = 2 * GIB
    """Largest model file that is opened; ONNX itself ends at 2 GiB."""
    engine: EngineOptions = EngineOptions()
    engine_entry: str = ""
    """For "tensorrt": the folder of the engine cache that the build came to."""
    engine_key_file: str = ""
    """File with the secret under which this node's cache entries are signed."""
    cache_dir: str = ""
    """For "onnxruntime-tensorrt": folder for this model's engines and timing cache; empty caches nothing."""
    cuda_graphs: bool = False
    """For "tensorrt": replay captured CUDA graphs, one for each of the most used input shapes."""
    digest: str = ""
    """For "python": SHA-256 in hex that the file must have; empty takes any."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load came to: ``effective`` is where the model runs, whatever ``requested`` said (DESIGN D8)."""

    signature: Signature
    requested: str
    effective: str
    platform: str
    load_ms: float
    memory_bytes: int | None = None
    """Growth of the process's resident memory during the load; None where unknown."""
    device_bytes: int | None = None
    """Memory of the GPU that the model holds: weights, activations of each instance; None where unknown or none."""
    batch_limit: int | None = None
    """Most rows of the first dimension, where an engine's profiles bound it."""
    detail: str = ""
    """What a person should know about how it runs, such as nodes that stayed on the CPU; empty if nothing."""
    decoupled: bool = False
    """Whether it answers a run any number of times: it is a :class:`StreamingSession`, and can only be streamed."""


class Interrupt:
    """Ends one run early from another thread: a session names the action, whoever wants the end calls :meth:`set`.

    The action may be called twice where both happen at the same moment; ending a run that ends changes nothing.
    """

    __slots__ = ("_action", "is_set")

    def __init__(self) -> None:
        self._action: Callable[[], None] | None = None
        self.is_set = False

    def set(self) -> None:
        self.is_set = True
        action = self._action
        if action is not None:
            action()

    def on_set(self, action: Callable[[], None] | None) -> None:
        """Call ``action`` when set, at once if that was before; None takes the action back."""
        self._action = action
        if action is not None and self.is_set:
            action()


class Session(Protocol):
    """A model opened on a device; ``LoadOptions.instances`` threads may run it at the same time."""

    @property
    def loaded(self) -> Loaded: ...

    def run(
        self, inputs: Sequence[RawTensor], outputs: Sequence[str], interrupt: Interrupt | None = None
    ) -> list[RawTensor]:
        """Run once; no ``outputs`` means all, in declared order. The result's memory belongs to the caller.

        Raises ``InvalidInput`` before the model runs; ``RunFailed``, ``DeviceOutOfMemory`` or ``DeviceFault`` after.
        A run that was interrupted may fail with ``RunFailed``; a backend that cannot end one lets it go on.
        """

    def close(self) -> None:
        """Release what the model holds, on the thread that opened it. Safe to call again."""


class StreamingSession(Session, Protocol):
    """A decoupled model."""

    def stream(self, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Generator[list[RawTensor], None, None]:
        """Run once, for any number of answers; closing the generator ends the run. Arguments and errors as of ``run``.

        An answer's memory may be used until the next one is asked for.
        """


def check_inputs(signature: Signature, inputs: Sequence[RawTensor]) -> None:
    """Raise ``InvalidInput`` unless ``inputs`` are exactly the declared ones, in datatype, shape and size."""
    given = {tensor.name: tensor for tensor in inputs}
    if len(given) != len(inputs):
        raise InvalidInput("an input is given twice")
    for info in signature.inputs:
        tensor = given.pop(info.name, None)
        if tensor is None:
            unknown = next(iter(given.keys() - {i.name for i in signature.inputs}), None)
            hint = "" if unknown is None else f", and the model has no input {shown(unknown)}"
            raise InvalidInput(f"input '{info.name}' is missing{hint}")
        check_tensor(info, tensor)
    if given:
        raise InvalidInput(f"the model has no input {shown(next(iter(given)))}")


def shown(name: str) -> str:
    """A caller's name inside an error's text: short, and with anything unprintable escaped."""
    return repr(name if len(name) <= 64 else name[:61] + "...")


def check_tensor(info: TensorInfo, tensor: RawTensor) -> None:
    """Raise ``InvalidInput`` unless ``tensor`` has the declared datatype and shape and the size both come to."""
    if tensor.datatype != info.datatype:
        raise InvalidInput(f"input '{info.name}' is {info.datatype}, not {tensor.datatype}")
    shape = tensor.shape
    if shape != info.shape and not _fits(info.shape, shape):
        raise InvalidInput(f"input '{info.name}' has shape {list(info.shape)}, not {list(shape)}")
    item_bytes = ITEM_BYTES.get(tensor.datatype)
    size = tensor.nbytes
    if item_bytes is not None and size != prod(shape) * item_bytes:
        raise InvalidInput(f"input '{info.name}' is {prod(shape) * item_bytes} bytes, not {size}")


def _fits(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if not all(0 <= dim <= MAX_DIMENSION for dim in shape):
        return False
    if not declared:  # a scalar and an unknown rank look the same here; the runtime knows which it is
        return True
    return len(declared) == len(shape) and all(want in (-1, dim) for want, dim in zip(declared, shape, strict=True))
