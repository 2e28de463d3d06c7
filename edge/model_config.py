"""What is declared about a model: ``model.toml`` of our own, and a useful subset of Triton's ``config.pbtxt``.

``model.toml`` wins where both stand. Not here: finding models on disk (``repository``), the file's own signature.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from mesh.errors import ModelRejected

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 1 << 20


class WarmupInput(BaseModel):
    """One input of the warm-up inference; ``value`` fills it, 0 by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shape: tuple[NonNegativeInt, ...]
    value: float | str = 0.0


class ModelConfig(BaseModel):
    """``model.toml``; every field has a default, so that the file is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["", "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt"] = ""
    """Backend to ask for; empty is the agent's setting."""
    versions: Literal["latest", "all"] | tuple[int, ...] = "latest"
    """Which versions to serve, as Triton's version policy."""
    deadline_ms: float = Field(default=0.0, ge=0)
    """Deadline of requests that name none; 0 is the agent's setting."""
    labels: tuple[str, ...] = ()
    warmup: dict[str, WarmupInput] = Field(default_factory=dict)
    """Inputs of the warm-up by name; undeclared ones are zeros of the declared shape, free dimensions guessed."""


def read_config(folder: Path) -> ModelConfig:
    """Read the declarations in a model's folder. Raises ``ModelRejected`` naming the file and what is wrong."""
    values = _from_pbtxt(folder / "config.pbtxt", folder.name)
    toml = folder / "model.toml"
    if toml.is_file():
        try:
            values |= tomllib.loads(_text(toml))
        except tomllib.TOMLDecodeError as error:
            raise ModelRejected(f"{folder.name}/model.toml is not TOML: {error}") from None
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise ModelRejected(f"{folder.name}/model.toml: {what}") from None


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelRejected(f"{path.parent.name}/{path.name} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelRejected(f"{path.parent.name}/{path.name} is not UTF-8 text") from None


def _from_pbtxt(path: Path, model: str) -> dict[str, Any]:
    """Take from ``config.pbtxt`` what has a meaning here; what the ONNX file says itself is not repeated."""
    if not path.is_file():
        return {}
    fields = parse_pbtxt(_text(path), f"{model}/config.pbtxt")
    if (name := fields.get("name", [model])[-1]) != model:
        raise ModelRejected(f"{model}/config.pbtxt names the model {name!r}; Triton's layout wants the folder's name")
    platform = fields.get("platform", fields.get("backend", ["onnxruntime_onnx"]))[-1]
    if platform not in ("onnxruntime_onnx", "onnxruntime", ""):
        raise ModelRejected(f"{model}/config.pbtxt asks for {platform!r}; only ONNX models are served")
    values: dict[str, Any] = {}
    for policy in fields.get("version_policy", []):
        if "all" in policy:
            values["versions"] = "all"
        elif "specific" in policy:
            values["versions"] = tuple(int(v) for v in policy["specific"][-1].get("versions", []))
    return values


_TOKEN = re.compile(r"""\s*(?:\#[^\n]*)?(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z0-9_.+-]+)|([{}\[\]:,;]))?""")


def parse_pbtxt(text: str, where: str) -> dict[str, list[Any]]:
    """Protobuf text format to nested ``{field: [values]}``; raises ``ModelRejected`` at the first thing it is not."""
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise ModelRejected(f"{where} is not protobuf text: unexpected {text[at : at + 10]!r}")
        at = match.end()
        if match.lastindex:
            tokens.append(match.group(match.lastindex))
    fields, rest = _message(tokens, 0, where, 0)
    if rest != len(tokens):
        raise ModelRejected(f"{where} is not protobuf text: unexpected {tokens[rest]!r}")
    return fields


def _message(tokens: list[str], at: int, where: str, depth: int) -> tuple[dict[str, list[Any]], int]:
    if depth > 16:
        raise ModelRejected(f"{where} nests too deeply")
    fields: dict[str, list[Any]] = {}
    while at < len(tokens) and tokens[at] != "}":
        name, at = tokens[at], at + 1
        if at < len(tokens) and tokens[at] == ":":
            at += 1
        values, at = _values(tokens, at, where, depth)
        fields.setdefault(name, []).extend(values)
        if at < len(tokens) and tokens[at] in ",;":
            at += 1
    return fields, at


def _values(tokens: list[str], at: int, where: str, depth: int) -> tuple[list[Any], int]:
    if at >= len(tokens):
        raise ModelRejected(f"{where} ends in the middle of a field")
    token = tokens[at]
    if token == "{":  # noqa: S105 - a brace
        fields, at = _message(tokens, at + 1, where, depth + 1)
        if at >= len(tokens):
            raise ModelRejected(f"{where} has an unclosed brace")
        return [fields], at + 1
    if token == "[":  # noqa: S105 - a bracket
        values: list[Any] = []
        at += 1
        while at < len(tokens) and tokens[at] != "]":
            more, at = _values(tokens, at, where, depth + 1)
            values += more
            if at < len(tokens) and tokens[at] == ",":
                at += 1
        if at >= len(tokens):
            raise ModelRejected(f"{where} has an unclosed bracket")
        return values, at + 1
    if token[0] in "\"'":
        return [token[1:-1]], at + 1
    return [token], at + 1
