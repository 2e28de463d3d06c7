"""The subset of Triton's ``config.pbtxt`` that has a meaning here, as fields of ``model.toml``.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. What the ONNX file says itself
is not repeated, what would make a model answer otherwise is refused by name, and what only tunes is named in the log.
Not here: the text format (``pbtxt``), the fields' own limits (``model_config``).
"""

from __future__ import annotations

import logging
from typing import Any

from edge.pbtxt import Fields, parse_pbtxt
from mesh.errors import ModelRejected

log = logging.getLogger(__name__)

GPU_CHAIN = ("tensorrt", "onnxruntime-cuda")
"""What Triton's ``execution_accelerators`` come to: no CPU, for a GPU was asked for."""

REFUSED = {
    "ensemble_scheduling": "it is an ensemble, and only single models are served",
    "sequence_batching": "its requests belong together in sequences, and here each stands alone",
    "batch_input": "its batches need inputs that Triton makes",
    "batch_output": "its batches need outputs that Triton takes apart",
}
"""Fields without which a model would answer wrongly, or not at all."""
READ = {
    "": {"name", "platform", "backend", "max_batch_size", "version_policy", "model_transaction_policy", *REFUSED},
    "dynamic_batching": {"max_queue_delay_microseconds", "default_priority_level"},
    "instance_group": {"name", "count"},
    "optimization": {"execution_accelerators"},
    "optimization.execution_accelerators": {"gpu_execution_accelerator"},
}
"""Fields that are looked at, by the message they are in."""
IN_THE_FILE = {"input", "output"}
"""The ONNX file says it."""
TRUE = ("true", "True", "t", "1")


def from_pbtxt(text: str, model: str) -> dict[str, Any]:
    """Raises ``ModelRejected`` naming what is wrong; the values themselves are not judged yet."""
    where = f"{model}/config.pbtxt"
    fields = parse_pbtxt(text, where)
    if (name := last(fields, "name") or model) != model:
        raise ModelRejected(f"{where} names the model {name!r}; Triton's layout wants the folder's name")
    platform = last(fields, "platform") or last(fields, "backend") or "onnxruntime"
    if platform not in ("onnxruntime_onnx", "onnxruntime"):
        raise ModelRejected(f"{where} asks for {platform!r}; only ONNX models are served")
    _refuse(fields, where)
    if ignored := sorted(_ignored(fields, "")):
        log.info("%s: these fields have no meaning here and are ignored: %s", where, ", ".join(ignored))
    return {
        **_versions(_message(fields, "version_policy", where)),
        **_batching(fields, where),
        **_instances(fields, where),
        **_accelerators(fields, where),
    }


def last(fields: Fields, name: str) -> Any:
    """The value of a field that may stand once; the last of several counts, as protobuf has it."""
    values = fields.get(name)
    return values[-1] if values else None


def _refuse(fields: Fields, where: str) -> None:
    for name, why in REFUSED.items():
        if fields.get(name):
            raise ModelRejected(f"{where} has {name}: {why}")
    transactions = _message(fields, "model_transaction_policy", where) or {}
    if last(transactions, "decoupled") in TRUE:
        raise ModelRejected(f"{where} is decoupled: a request is answered once here, not any number of times")


def _ignored(fields: Fields, inside: str) -> set[str]:
    """Full names of the fields that nothing looks at."""
    found: set[str] = set()
    for name, values in fields.items():
        full = f"{inside}.{name}" if inside else name
        if full in READ:
            for value in values:
                found |= _ignored(value, full) if isinstance(value, dict) else set()
        elif name not in READ[inside] and full not in IN_THE_FILE:
            found.add(full)
    return found


def _message(fields: Fields, name: str, where: str) -> Fields | None:
    value = last(fields, name)
    if value is not None and not isinstance(value, dict):
        raise ModelRejected(f"{where}: {name} is not a message in braces")
    return value


def _messages(fields: Fields, name: str, where: str) -> list[Fields]:
    for value in fields.get(name, ()):
        if not isinstance(value, dict):
            raise ModelRejected(f"{where}: {name} is not a message in braces")
    return fields.get(name, [])


def _versions(policy: Fields | None) -> dict[str, Any]:
    if policy is None:
        return {}
    if "all" in policy:
        return {"versions": "all"}
    if "specific" in policy:
        chosen = last(policy, "specific")
        return {"versions": tuple(chosen.get("versions", ())) if isinstance(chosen, dict) else ()}
    latest = last(policy, "latest")
    count = last(latest, "num_versions") if isinstance(latest, dict) else None
    return {} if count in (None, "1") else {"versions": {"latest": count}}


def _batching(fields: Fields, where: str) -> dict[str, Any]:
    """Triton's 0 means that the model has no batch dimension; what is not declared is found out here as there."""
    batching: dict[str, Any] = {}
    most = last(fields, "max_batch_size")
    if most is not None:
        batching["max_rows"] = 1 if most == "0" else most
    dynamic = _message(fields, "dynamic_batching", where)
    found: dict[str, Any] = {}
    if dynamic is not None:
        if (delay_us := last(dynamic, "max_queue_delay_microseconds")) is not None:
            batching["delay_ms"] = _number(delay_us, "max_queue_delay_microseconds", where) / 1e3
        if (priority := last(dynamic, "default_priority_level")) is not None:
            found["priority"] = priority
    return found | ({"batching": batching} if batching else {})


def _instances(fields: Fields, where: str) -> dict[str, Any]:
    groups = _messages(fields, "instance_group", where)
    counts = [value for group in groups if (value := last(group, "count")) is not None]
    count = sum(int(_number(value, "instance_group.count", where)) for value in counts) + len(groups) - len(counts)
    return {"instances": count} if groups else {}


def _accelerators(fields: Fields, where: str) -> dict[str, Any]:
    optimization = _message(fields, "optimization", where) or {}
    accelerators = _message(optimization, "execution_accelerators", where) or {}
    for gpu in _messages(accelerators, "gpu_execution_accelerator", where):
        if last(gpu, "name") == "tensorrt":
            asked = {last(p, "key"): last(p, "value") for p in _messages(gpu, "parameters", where)}
            half = str(asked.get("precision_mode", "")).upper() == "FP16"
            return {"backends": GPU_CHAIN, "precision": "fp16" if half else "fp32"}
    return {}


def _number(text: Any, name: str, where: str) -> float:
    try:
        value = float(text)
        if 0 <= value < 1e12:
            return value
    except (TypeError, ValueError):
        pass
    raise ModelRejected(f"{where}: {name} is no number that makes sense")
