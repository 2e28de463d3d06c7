"""Judges an ONNX file before any runtime opens it, and does not lean on the runtime to do so.

Releases of ONNX Runtime that this project supports read files outside the model's directory (``external data``; up to
1.24.3 through ``..``, absolute paths or links, and through hard links still). Refused by name:

- data outside the file, in main graph, subgraphs, functions, training graphs and sparse tensors: a model is one file;
- operators of domains that need a library (everything but ONNX's own, ``com.microsoft`` and functions in the file);
- ``EPContext`` nodes: they carry or name compiled code (DESIGN D7);
- files over the limit, not regular, not well-formed, or with graphs nested deeper than any exporter writes.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Not here: digests and signatures (the agent's
store), what a model costs to run: a small file can still loop for ever or ask for all memory, which the worker bounds.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator

from hardware.errors import DeviceOutOfMemory, ModelRefused
from hardware.protobuf import BYTES, VARINT, Malformed, fields, text

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
MAX_DEPTH = 16
"""Graphs within graphs; exporters stay below five."""

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_TRAINING_GRAPHS = (1, 2)
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN, _FUNCTION_ATTRIBUTE = 1, 7, 10, 11
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14


def check_model(path: str, max_bytes: int) -> None:
    """Raise ``ModelRefused`` unless the file at ``path`` may be handed to a runtime, ``DeviceOutOfMemory`` if it cannot
    be looked at."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo must not block the open
    except OSError as error:
        raise ModelRefused(f"the model file cannot be opened: {error.strerror}") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ModelRefused("the model is not a regular file")
        if info.st_size > max_bytes:
            raise ModelRefused(f"the model file has {info.st_size} bytes, more than the {max_bytes} allowed")
        if info.st_size == 0:
            raise ModelRefused("the model file is empty")
        try:
            mapped = mmap.mmap(fd, info.st_size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DeviceOutOfMemory(f"no memory to read the model file: {error.strerror}") from None
        check_bytes(memoryview(mapped))  # unmapped with the last view of it, which a refusal's traceback may hold
    finally:
        os.close(fd)


def check_bytes(data: memoryview) -> None:
    """Raise ``ModelRefused`` unless ``data`` is an ONNX model that keeps to itself."""
    try:
        functions = frozenset(_functions(data))
        graphs = 0
        for number, part in _parts(data):
            if number == _MODEL_GRAPH:
                graphs += 1
                _check_graph(part, functions, 0)
            elif number == _MODEL_FUNCTIONS:
                _check_function(part, functions)
            elif number == _MODEL_TRAINING:
                for training, graph in _parts(part):
                    if training in _TRAINING_GRAPHS:
                        _check_graph(graph, functions, 0)
    except Malformed as error:
        raise ModelRefused(f"the file is not a well-formed ONNX model: {error}") from None
    if graphs == 0:
        raise ModelRefused("the file is not an ONNX model: it has no graph")


def _parts(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields; others carry nothing that is judged here, but must be well-formed."""
    for number, wire, value in fields(data):
        if wire == BYTES and isinstance(value, memoryview):
            yield number, value


def _functions(model: memoryview) -> Iterator[tuple[str, str]]:
    """``(domain, name)`` of every function the file brings along."""
    for number, function in _parts(model):
        if number == _MODEL_FUNCTIONS:
            own = {field: text(part) for field, part in _parts(function) if field in (_FUNCTION_NAME, _FUNCTION_DOMAIN)}
            yield own.get(_FUNCTION_DOMAIN, ""), own.get(_FUNCTION_NAME, "")


def _check_function(function: memoryview, functions: frozenset[tuple[str, str]]) -> None:
    for number, part in _parts(function):
        if number == _FUNCTION_NODE:
            _check_node(part, functions, 0)
        elif number == _FUNCTION_ATTRIBUTE:
            _check_attribute(part, functions, 0)


def _check_graph(graph: memoryview, functions: frozenset[tuple[str, str]], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelRefused(f"graphs are nested more than {MAX_DEPTH} deep")
    for number, part in _parts(graph):
        if number == _GRAPH_NODE:
            _check_node(part, functions, depth)
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(part)
        elif number == _GRAPH_SPARSE:
            _check_sparse(part)


def _check_node(node: memoryview, functions: frozenset[tuple[str, str]], depth: int) -> None:
    domain = op_type = ""
    for number, part in _parts(node):
        if number == _NODE_OP_TYPE:
            op_type = text(part)
        elif number == _NODE_DOMAIN:
            domain = text(part)
        elif number == _NODE_ATTRIBUTE:
            _check_attribute(part, functions, depth)
    if op_type == "EPContext":
        raise ModelRefused("the model holds compiled code (an EPContext node)")
    if domain not in ALLOWED_DOMAINS and (domain, op_type) not in functions:
        raise ModelRefused(f"the model needs operator '{domain[:64]}.{op_type[:64]}', which no backend here has")


def _check_attribute(attribute: memoryview, functions: frozenset[tuple[str, str]], depth: int) -> None:
    for number, part in _parts(attribute):
        if number in _ATTRIBUTE_GRAPHS:
            _check_graph(part, functions, depth + 1)
        elif number in _ATTRIBUTE_TENSORS:
            _check_tensor(part)
        elif number in _ATTRIBUTE_SPARSE:
            _check_sparse(part)


def _check_sparse(sparse: memoryview) -> None:
    for number, part in _parts(sparse):
        if number in _SPARSE_TENSORS:
            _check_tensor(part)


def _check_tensor(tensor: memoryview) -> None:
    for number, wire, value in fields(tensor):
        external = number == _TENSOR_EXTERNAL_DATA and wire == BYTES
        if external or (number == _TENSOR_DATA_LOCATION and wire == VARINT and value != 0):
            raise ModelRefused("the model keeps tensors in other files; only single-file models are loaded")
