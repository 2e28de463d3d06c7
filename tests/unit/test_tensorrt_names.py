"""Every name taken from TensorRT and CUDA exists in every version that is supported, and the fakes have no others.

``data/tensorrt_api_names.json`` holds members of the bindings' classes, recorded from the bindings themselves (names
only; TensorRT 10.3.0, 10.13.3, 10.16.1, 11.4.0 and TensorRT-RTX 1.7.1); ``data/cuda_api_names.json`` functions of
``cuda.bindings.runtime`` with how many arguments they take, null for constants. Not here: what the names do.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hardware.fakes import trt
from hardware.fakes.cudart import FakeCudart

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parents[1] / "data"
RECORDED: dict[str, dict[str, list[str]]] = json.loads((DATA / "tensorrt_api_names.json").read_text())
CUDA: dict[str, dict[str, Any]] = json.loads((DATA / "cuda_api_names.json").read_text())
RTX = "rtx-1.7.1.116"
VERSIONS = sorted(RECORDED.keys() - {RTX})

ADAPTER = [
    *sorted(path.name for path in (ROOT / "hardware").glob("tensorrt*.py")),
    "engine_plan.py",
    "engine_process.py",
    "timing_cache.py",
]
"""Files that touch objects of TensorRT."""

RECEIVERS = {
    "self._context": "IExecutionContext",
    "engine": "ICudaEngine",
    "self.engine": "ICudaEngine",
    "engine.engine": "ICudaEngine",
    "self._engine.engine": "ICudaEngine",
    "runtime": "Runtime",
    "strategies": "ExecutionContextAllocationStrategy",
    "severity": "ILogger",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser.get_error()": "ParserError",
    "config": "IBuilderConfig",
    "layer": "ILayer",
    "layer.get_output()": "ITensor",
    "made": "IOptimizationProfile",
    "cache": "ITimingCache",
}
"""What an expression in those files holds, written without arguments."""

OTHERS: dict[str, set[str]] = {
    "tensorrt_session.py": {"engine", "made", "trt.Runtime()", "self._engine"},
    "tensorrt_instance.py": {"engine", "self._engine", "made"},
    "tensorrt_context.py": {"engine", "self._engine"},
    "tensorrt_buffers.py": {"made"},
    "tensorrt_graphs.py": set(),
    "engine_process.py": {"cache"},
}
"""The same words for things of our own, by file."""

STANDS_FOR = {
    "IBuilderConfig.set_compute_capability": "num_compute_capabilities",
    "ComputeCapability": "num_compute_capabilities",
}
"""Names that are used only where a feature test for another one has succeeded."""


class Use(NamedTuple):
    """A name somebody takes: of a class, or of the module itself."""

    file: str
    line: int
    owner: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


def _expression(node: ast.AST) -> str:
    """The expression without arguments and indices."""
    if isinstance(node, ast.Call):
        return _expression(node.func) + "()"
    if isinstance(node, ast.Attribute):
        return f"{_expression(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def uses(file: str, text: str) -> Iterator[Use]:
    own = OTHERS.get(file, set())
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Attribute):
            continue
        receiver = _expression(node.value)
        root, _, inner = receiver.partition("trt.")
        if receiver == "trt" or receiver.endswith(".trt"):
            if not node.attr.startswith("__"):
                yield Use(file, node.lineno, "", node.attr)
        elif inner and root in ("", "self.", "engine.", "self._engine.") and not node.attr.startswith("__"):
            yield Use(file, node.lineno, inner.removesuffix("()"), node.attr)
        elif receiver in RECEIVERS and receiver not in own and not node.attr.startswith("__"):
            yield Use(file, node.lineno, RECEIVERS[receiver], node.attr)


def feature_tests(text: str) -> set[str]:
    """Names that ``hasattr`` and three-argument ``getattr`` ask for."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            found |= {name.value for name in node.args[1:2] if isinstance(name, ast.Constant)}
    return {name for name in found if isinstance(name, str)}


def unknown(use: Use, version: str) -> bool:
    names = RECORDED[version]
    if not use.owner:
        return use.name not in names
    return use.name not in names.get(use.owner.partition(".")[0], [])


def _texts() -> dict[str, str]:
    return {name: (ROOT / "hardware" / name).read_text(encoding="utf-8") for name in ADAPTER}


def missing(texts: dict[str, str], version: str) -> list[str]:
    """Uses that ``version`` has no name for and no feature test stands before."""
    asked = set().union(*(feature_tests(text) for text in texts.values()))
    found = [use for name, text in texts.items() for use in uses(name, text)]
    return [
        f"{use.file}:{use.line}: {use.full}"
        for use in found
        if unknown(use, version) and use.name not in asked and STANDS_FOR.get(use.full) not in asked
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_the_adapter_takes_is_there(version: str) -> None:
    assert missing(_texts(), version) == []


def test_names_behind_a_feature_test_are_there_in_some_version() -> None:
    """So that a misspelt feature test, which would be False for ever, is found."""
    every = {name for names in RECORDED.values() for members in names.values() for name in members}
    every |= {name for names in RECORDED.values() for name in names}
    asked = set().union(*(feature_tests(text) for text in _texts().values()))
    assert asked - every - {"__fake__"} == set()


def test_the_scan_sees_what_it_should() -> None:
    """The most important calls are found, by class; else an empty scan would pass."""
    found = {use.full for name, text in _texts().items() for use in uses(name, text)}
    assert found >= {
        "Runtime",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.get_tensor_profile_shape",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_device_memory",
        "IOutputAllocator",
        "TensorLocation.HOST",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "Builder.build_serialized_network",
        "IBuilderConfig.add_optimization_profile",
        "OnnxParser.parse",
    }


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("tensorrt_context.py", "execute_async_v3(", "execute_async_v2("),
        ("tensorrt_context.py", "trt.IOutputAllocator)", "trt.OutputAllocator)"),
        ("tensorrt_context.py", "strategies.USER_MANAGED", "strategies.USER"),
        ("tensorrt_engine.py", ".device_memory_size_v2", ".device_memory_size"),
        ("tensorrt_engine.py", "trt.TensorLocation.HOST", "trt.TensorLocation.CPU"),
        ("tensorrt_session.py", "runtime.deserialize_cuda_engine", "runtime.deserialize_engine"),
        ("engine_plan.py", "builder.create_network", "builder.create_net"),
        ("engine_plan.py", "trt.MemoryPoolType.WORKSPACE", "trt.MemoryPoolType.WORK"),
    ],
)
def test_a_name_that_is_not_there_is_found(file: str, good: str, bad: str) -> None:
    texts = _texts()
    assert good in texts[file]
    texts[file] = texts[file].replace(good, bad)
    assert [hit for hit in missing(texts, "11.4.0.106") if hit.startswith(f"{file}:")]


def _public(thing: Any) -> set[str]:
    """Public members that a class or enumeration brings itself."""
    found = {name for base in inspect.getmro(thing) if base.__module__.startswith("hardware.") for name in vars(base)}
    if hasattr(thing, "__members__"):
        found |= set(thing.__members__)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("short", ["10.3", "10.13", "10.16", "11.4"])
def test_the_fake_has_no_names_of_its_own(short: str) -> None:
    module = trt.module(short)
    names = RECORDED[module.__version__]
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    assert public.keys() - names.keys() == set()
    invented = {
        f"{name}.{member}"
        for name, value in public.items()
        if inspect.isclass(value)
        for member in _public(value) - set(names[name])
    }
    assert invented == set()


CUDA_FILE = (ROOT / "hardware" / "cuda.py").read_text(encoding="utf-8")


def cuda_problems(text: str, names: dict[str, Any]) -> list[str]:
    """Functions and constants that are not there, members of enumerations too, and calls with the wrong arguments."""
    problems = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda"):
            if node.value[4:5].isupper() and " " not in node.value and node.value not in names:
                problems.append(f"{node.lineno}: {node.value}")
        elif isinstance(node, ast.Attribute) and _expression(node.value) == "self._module":
            if node.attr not in names:
                problems.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.Attribute) and _expression(node.value).startswith("self._module."):
            if node.attr not in (names.get(_expression(node.value).removeprefix("self._module.")) or ()):
                problems.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.Call) and _expression(node.func) in ("self.call", "self._cuda.call") and node.args:
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if isinstance(name, str) and names.get(name) != len(node.args) - 1:
                problems.append(f"{node.lineno}: {name} takes {names.get(name)} arguments")
    return problems


@pytest.mark.parametrize("version", CUDA)
def test_every_cuda_name_is_there_and_called_right(version: str) -> None:
    assert cuda_problems(CUDA_FILE, CUDA[version]) == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ('"cudaMalloc"', '"cudaMallocate"'),
        ('"cudaFreeHost"', '"cudaHostFree"'),
        ("cudaMemcpyHostToDevice", "cudaMemcpyToDevice"),
        ("self._module.cudaStreamNonBlocking", "self._module.cudaStreamFree"),
        ('"cudaEventRecord", self.raw, stream.raw', '"cudaEventRecord", self.raw'),
    ],
)
def test_a_cuda_name_that_is_not_there_is_found(good: str, bad: str) -> None:
    assert good in CUDA_FILE
    assert cuda_problems(CUDA_FILE.replace(good, bad), CUDA["13.2.0"]) != []


@pytest.mark.parametrize("version", CUDA)
def test_the_fake_runtime_has_the_functions_of_the_real_one(version: str) -> None:
    names = CUDA[version]
    functions = {n: f for n, f in vars(FakeCudart).items() if n.startswith("cuda") and inspect.isfunction(f)}
    assert len(functions) > 20
    arguments = {name: len(inspect.signature(function).parameters) - 1 for name, function in functions.items()}
    assert {name: count for name, count in arguments.items() if names.get(name, -1) != count} == {}
