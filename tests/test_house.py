"""The rules of the house that no linter knows: sizes, words, docstrings, doors of third parties, the error table, docs.

Everything is read from the syntax trees, but for what only a fresh interpreter can show. Not here: who may import whom
inside the project (import-linter's contracts in pyproject.toml), style (ruff), types (mypy).
"""

from __future__ import annotations

import ast
import gc
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mesh import errors
from tests.imports import PACKAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES = 300
FUNCTION_LINES = 40
"""Without the docstring."""

TOO_LONG_BECAUSE: dict[str, str] = {}
"""Exceptions to the two limits: "path" or "path:qualified name", and why it is better whole. Unneeded ones fail."""

NOT_OUR_WORDS = {"manager", "helper", "helpers", "util", "utils", "common", "misc"}
NOT_OUR_NOUNS = NOT_OUR_WORDS | {"service", "services"}
"""Words that say nothing about what a thing does; "service" may still be part of "service time"."""

DOORS: dict[str, set[str]] = {
    "nats": {"mesh.nats_connection", "mesh.nats_reader"},
    "zeroconf": {"mesh.discovery"},
    "aiohttp": {"mesh.hop_http"},
    "httptools": {"mesh.http_head"},
    "grpc": {"mesh.grpc_door", "mesh.grpc_errors", "mesh.grpc_health", "mesh.grpc_server"},
    "google": {"mesh.grpc_protocol"},
    "uvicorn": set(),
    "starlette": {"mesh.http_pages", "mesh.triton_pages"},
    "onnxruntime": {"hardware.onnx_backend"},
    "cuda": {"hardware.cuda"},
    "pynvml": {"hardware.nvml"},
    "prometheus_client": {"mesh.metrics"},
    "tensorrt": {"hardware.tensorrt"},
    "tensorrt_rtx": {"hardware.tensorrt"},
    "onnx": set(),
    "tritonclient": set(),
}
"""The modules that may import a third party; every other one sees only our own seam."""

HEAVY = ("onnxruntime", "tensorrt", "onnx", "tritonclient", "PIL")
LIGHT_MODULES = ("mesh", "mesh.cli", "edge.cli", "cloud.cli")


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its path from the root, its text and syntax tree."""

    name: str
    path: str
    text: str
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    return tuple(_module(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


def _module(path: Path) -> Module:
    relative = path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    text = path.read_text(encoding="utf-8")
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, relative.as_posix(), text, _parsed(text, str(relative)))


def _parsed(text: str, path: str) -> ast.Module:
    """CPython 3.11 miscounts its depth where something is collected while a tree is built (python/cpython#106905)."""
    try:
        return ast.parse(text, path)
    except SystemError:
        gc.collect()
        return ast.parse(text, path)


def _definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Qualified name and node of every class and function, nested ones too."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _definitions([child for child in ast.walk(node) if isinstance(child, ast.stmt)][1:], prefix)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def _too_long() -> dict[str, str]:
    found = {}
    for module in modules():
        if (lines := module.text.count("\n")) > FILE_LINES:
            found[module.path] = f"{lines} lines, at most {FILE_LINES}"
        for name, node in _definitions(module.tree.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > FUNCTION_LINES:
                found[f"{module.path}:{name}"] = f"{_lines(node)} lines, at most {FUNCTION_LINES}"
    return found


def test_files_and_functions_are_short() -> None:
    found = _too_long()
    assert {where: how for where, how in found.items() if where not in TOO_LONG_BECAUSE} == {}
    assert TOO_LONG_BECAUSE.keys() - found.keys() == set(), "exceptions that are not needed any more"
    assert [where for where, reason in TOO_LONG_BECAUSE.items() if len(reason.split()) < 4] == []


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}


def test_names_say_what_a_thing_does() -> None:
    found = [module.name for module in modules() if _words(module.name) & NOT_OUR_NOUNS]
    for module in modules():
        for name, node in _definitions(module.tree.body):
            banned = NOT_OUR_NOUNS if isinstance(node, ast.ClassDef) else NOT_OUR_WORDS
            if _words(name.rpartition(".")[2]) & banned:
                found.append(f"{module.name}.{name}")
    assert found == []


def test_every_module_says_what_is_in_it_and_what_is_not() -> None:
    """Two sentences at the least; ``__init__`` files too, for they describe their package."""
    short = {}
    for module in modules():
        docstring = ast.get_docstring(module.tree) or ""
        if len(re.findall(r"[.:;?](?=\s|$)", docstring)) < 2:
            short[module.path] = docstring
    assert short == {}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute import, function-level and type-checking ones too, as the full dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


@pytest.mark.parametrize("library", DOORS)
def test_a_third_party_has_one_door(library: str) -> None:
    importers = {m.name for m in modules() if any(name.partition(".")[0] == library for name in _imports(m.tree))}
    assert importers - DOORS[library] == set()


def _fresh(code: str) -> str:
    """What ``code`` prints in a fresh interpreter that inherits no telemetry switch."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_commands_start_without_a_runtime(name: str) -> None:
    """The agent must start, and ``mesh doctor`` explain, where onnxruntime is broken or absent."""
    code = f"import sys, {name}; print(*[heavy for heavy in {HEAVY!r} if heavy in sys.modules])"
    assert _fresh(code) == ""


def test_every_module_imports_alone() -> None:
    """No module leans on another one having been imported before: import cycles show here."""
    code = "from tests.imports import failures\nfor name, why in failures().items(): print(name, why)"
    assert _fresh(code) == ""


def test_telemetry_of_onnxruntime_is_off_before_it_is_imported(tmp_path: Path) -> None:
    """Its Linux wheels from 1.29 on report home unless the variable is set before the import (DESIGN D6)."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", value[:1], value[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "model.onnx")
    code = (
        "import os, sys\n"
        "from hardware import sessions\n"
        "from hardware.backend import LoadOptions\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime':\n"
        "            print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sessions.open_session({str(tmp_path / 'model.onnx')!r}, LoadOptions())\n"
    )
    assert _fresh(code) == "1"


def _tree_of_classes(root: type[errors.MeshError]) -> Iterator[type[errors.MeshError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _tree_of_classes(child)


def test_the_error_tree_is_drawn_as_it_is() -> None:
    """Name, parent, code, retryable and status of every error stand in the docstring that callers read."""
    drawn: dict[str, tuple[str, str, bool, int]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if row := re.fullmatch(r"( +)(\w+) +(\w+) +(yes|no) +(\d{3})", line):
            indent, name, code, retryable, status = row.groups()
            above[len(indent)] = name
            drawn[name] = (above.get(len(indent) - 2, "MeshError"), code, retryable == "yes", int(status))
    tree = list(_tree_of_classes(errors.MeshError))
    assert drawn == {cls.__name__: (cls.__base__.__name__, cls.code, cls.retryable, cls.status) for cls in tree}  # type: ignore[union-attr]


def test_error_codes_are_unique_and_come_back_as_the_same_error() -> None:
    tree = list(_tree_of_classes(errors.MeshError))
    assert len({cls.code for cls in tree}) == len(tree)
    assert [cls for cls in tree if type(errors.from_wire(cls.code, "text", cls.status)) is not cls] == []


def test_public_names_are_sorted_and_there() -> None:
    mesh = importlib.import_module("mesh")
    assert list(mesh.__all__) == sorted(mesh.__all__)
    assert mesh.__all__
    assert [name for name in mesh.__all__ if not hasattr(mesh, name)] == []


def test_runtimes_are_extras_and_never_needed() -> None:
    """The CPU and GPU builds of onnxruntime exclude each other, so that only the user can choose (docs/adr/0007)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {_distribution(requirement) for requirement in project["dependencies"]}
    assert [name for name in base if name.startswith(("onnx", "tensorrt", "cuda", "nvidia"))] == []
    for extra in ("cpu", "cuda"):
        wanted = {_distribution(requirement) for requirement in project["optional-dependencies"][extra]}
        assert len(wanted & {"onnxruntime", "onnxruntime-gpu"}) == 1
    jetson = {_distribution(requirement) for requirement in project["optional-dependencies"]["jetson"]}
    assert jetson & {"onnxruntime", "onnxruntime-gpu", "tensorrt-cu13"} == set()


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _pages() -> list[Path]:
    return sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md"))


def test_links_in_the_documentation_lead_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in _pages()
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert dead == []


def test_decision_records_have_the_three_parts_and_no_gap() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        headings = re.findall(r"^## (.+)$", record.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], record.name


def test_decisions_cited_in_the_code_are_written_down() -> None:
    """``DESIGN D6`` and ``docs/adr/0005`` in a docstring must be there to look up."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| (D\d+) \|", design, re.MULTILINE))
    known |= {page.name[:4] for page in (ROOT / "docs" / "adr").glob("*.md")}
    for module in modules():
        cited = set(re.findall(r"adr/(\d{4})", module.text))
        for passage in re.findall(r"DESIGN (D\d+(?:(?:, | and )D\d+)*)", module.text):
            cited |= set(re.findall(r"D\d+", passage))
        assert cited <= known, module.path
