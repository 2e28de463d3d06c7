"""The subset of Triton's ``config.pbtxt`` that has a meaning here, as fields of ``model.toml``.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. What the ONNX file says itself
is not repeated, what cannot be kept is refused by name. Not here: the text format (``pbtxt``), the fields' own limits
(``model_config``).
"""

from __future__ import annotations

import logging
from typing import Any

from edge.pbtxt import Fields, parse_pbtxt
from mesh.errors import ModelRejected

log = logging.getLogger(__name__)

GPU_CHAIN = ("tensorrt", "onnxruntime-cuda")
"""What Triton's ``execution_accelerators`` come to: no CPU, for a GPU was asked for."""


def from_pbtxt(text: str, model: str) -> dict[str, Any]:
    """Raises ``ModelRejected`` naming what is wrong; the values themselves are not judged yet."""
    where = f"{model}/config.pbtxt"
    fields = parse_pbtxt(text, where)
    if (name := last(fields, "name") or model) != model:
        raise ModelRejected(f"{where} names the model {name!r}; Triton's layout wants the folder's name")
    platform = last(fields, "platform") or last(fields, "backend") or "onnxruntime"
    if platform not in ("onnxruntime_onnx", "onnxruntime"):
        raise ModelRejected(f"{where} asks for {platform!r}; only ONNX models are served")
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
        if "preferred_batch_size" in dynamic:
            log.info("%s: preferred_batch_size is not needed here and ignored: batches are sized by deadlines", where)
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
