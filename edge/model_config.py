"""What is declared about a model: ``model.toml`` of our own, and a useful subset of Triton's ``config.pbtxt``.

``model.toml`` wins where both stand. Not here: finding models on disk (``repository``), the file's own signature.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from mesh.errors import ModelRejected

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 1 << 20
MAX_DEPTH = 16


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
    versions: Literal["latest", "all"] | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = "latest"
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
        except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
            raise ModelRejected(f"{folder.name}/model.toml is not TOML: {error}") from None
        except RecursionError:
            raise ModelRejected(f"{folder.name}/model.toml nests too deeply") from None
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        file = "model.toml" if toml.is_file() else "config.pbtxt"
        raise ModelRejected(f"{folder.name}/{file}: {what}") from None


def _text(path: Path) -> str:
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ModelRejected(f"{where} is larger than {MAX_CONFIG_BYTES} bytes")
        return text.decode("utf-8")
    except OSError as error:
        raise ModelRejected(f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelRejected(f"{where} is not UTF-8 text") from None


def _from_pbtxt(path: Path, model: str) -> dict[str, Any]:
    """Take from ``config.pbtxt`` what has a meaning here; what the ONNX file says itself is not repeated."""
    if not path.is_file():
        return {}
    where = f"{model}/config.pbtxt"
    fields = parse_pbtxt(_text(path), where)
    if (name := _last(fields, "name") or model) != model:
        raise ModelRejected(f"{where} names the model {name!r}; Triton's layout wants the folder's name")
    platform = _last(fields, "platform") or _last(fields, "backend") or "onnxruntime"
    if platform not in ("onnxruntime_onnx", "onnxruntime"):
        raise ModelRejected(f"{where} asks for {platform!r}; only ONNX models are served")
    policy = _last(fields, "version_policy")
    if policy is None:
        return {}
    if not isinstance(policy, dict):
        raise ModelRejected(f"{where}: version_policy is not a message in braces")
    if "all" in policy:
        return {"versions": "all"}
    if "specific" in policy:
        chosen = _last(policy, "specific")
        return {"versions": tuple(chosen.get("versions", ())) if isinstance(chosen, dict) else ()}
    latest = _last(policy, "latest")
    if isinstance(latest, dict) and _last(latest, "num_versions") not in (None, "1"):
        raise ModelRejected(f"{where}: only the latest version or specific ones can be served, not the latest few")
    return {}


def _last(fields: dict[str, list[Any]], name: str) -> Any:
    """The value of a field that may stand once; the last of several counts, as protobuf has it."""
    values = fields.get(name)
    return values[-1] if values else None


_TOKEN = re.compile(r"""\s*(?:\#[^\n]*)?(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z0-9_.+-]+)|([{}\[\]:,;]))?""")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PUNCTUATION = frozenset("{}[]:,;")


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
    fields: dict[str, list[Any]] = {}
    while at < len(tokens) and tokens[at] != "}":
        name, at = tokens[at], at + 1
        if not _FIELD.fullmatch(name):
            raise ModelRejected(f"{where} is not protobuf text: {name[:20]!r} is no name of a field")
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
    if depth > MAX_DEPTH:
        raise ModelRejected(f"{where} nests too deeply")
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
    if token in _PUNCTUATION:
        raise ModelRejected(f"{where} is not protobuf text: {token!r} is no value")
    return [token], at + 1
