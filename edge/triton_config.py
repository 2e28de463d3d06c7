"""The subset of Triton's ``config.pbtxt`` that has a meaning here, as fields of ``model.toml``.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. What the ONNX file says itself
is not repeated, what would make a model answer otherwise is refused by name, and what only tunes is named in the log.
Not here: the text format (``pbtxt``), the fields' own limits (``model_config``).
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from edge.pbtxt import MAX_DEPTH, Fields, parse_pbtxt
from mesh.errors import ModelRejected

log = logging.getLogger(__name__)

GPU_CHAIN = ("tensorrt", "onnxruntime-cuda")
"""What Triton's ``execution_accelerators`` come to: no CPU, for a GPU was asked for."""

REFUSED = {
    "ensemble_scheduling": "it is an ensemble, and only single models are served",
    "batch_input": "its batches need inputs that Triton makes",
    "batch_output": "its batches need outputs that Triton takes apart",
}
"""Fields without which a model would answer wrongly, or not at all."""
FALSE_TRUE = ("int32_false_true", "fp32_false_true", "bool_false_true")
READ = {
    "": {
        "name",
        "platform",
        "backend",
        "max_batch_size",
        "version_policy",
        "model_transaction_policy",
        "sequence_batching",
        *REFUSED,
    },
    "dynamic_batching": {"max_queue_delay_microseconds", "default_priority_level"},
    "instance_group": {"name", "count"},
    "sequence_batching": {"max_sequence_idle_microseconds", "control_input", "state"},
    "sequence_batching.control_input": {"name", "control"},
    "sequence_batching.control_input.control": {"kind", "data_type", *FALSE_TRUE},
    "sequence_batching.state": {"input_name", "output_name", "data_type", "dims", "initial_state"},
    "sequence_batching.state.initial_state": {"name", "zero_data", "data_type", "dims"},
    "model_transaction_policy": {"decoupled"},
    "optimization": {"execution_accelerators"},
    "optimization.execution_accelerators": {"gpu_execution_accelerator"},
}
"""Fields that are looked at, by the message they are in."""
CONTROLS = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_CORRID": "id",
}
IN_THE_FILE = {"input", "output"}
"""The model itself says it."""
TRUE = ("true", "True", "t", "1", "1.0")
FALSE = ("false", "False", "f", "0", "0.0")


def from_pbtxt(text: str, model: str) -> dict[str, Any]:
    """Raises ``ModelRejected`` naming what is wrong; the values themselves are not judged yet."""
    where = f"{model}/config.pbtxt"
    return _from_fields(parse_pbtxt(text, where), model, where)


def from_json(text: str, model: str) -> dict[str, Any]:
    """As :func:`from_pbtxt`, of a configuration in protobuf's JSON that came with a request to load the model."""
    where = f"the config of model {model!r}"
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ModelRejected(f"{where} is not a JSON object: {error}") from None
    return _from_fields(_fields(document, where, 0), model, where)


def _fields(document: dict[str, Any], where: str, depth: int) -> Fields:
    """JSON as the text format would have it: values are lists of texts and messages."""
    if depth > MAX_DEPTH:
        raise ModelRejected(f"{where} nests too deeply")
    fields: Fields = {}
    for name, value in document.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        fields[name] = [_fields(v, where, depth + 1) if isinstance(v, dict) else _text(v) for v in values]
    return fields


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _from_fields(fields: Fields, model: str, where: str) -> dict[str, Any]:
    if (name := last(fields, "name") or model) != model:
        raise ModelRejected(f"{where} names the model {name!r}; Triton's layout wants the folder's name")
    platform = last(fields, "platform") or last(fields, "backend") or "onnxruntime"
    if platform not in ("onnxruntime_onnx", "onnxruntime", "python"):
        raise ModelRejected(f"{where} asks for {platform!r}; only ONNX models and steps in Python are served")
    _refuse(fields, where)
    if ignored := sorted(_ignored(fields, "")):
        log.info("%s: these fields have no meaning here and are ignored: %s", where, ", ".join(ignored))
    return {
        **_versions(_message(fields, "version_policy", where)),
        **_batching(fields, where),
        **_instances(fields, where),
        **_accelerators(fields, where),
        **_transactions(fields, platform, where),
        **_sequence(fields, where),
        **_labels(fields, where),
    }


def last(fields: Fields, name: str) -> Any:
    """The value of a field that may stand once; the last of several counts, as protobuf has it."""
    values = fields.get(name)
    return values[-1] if values else None


def _refuse(fields: Fields, where: str) -> None:
    for name, why in REFUSED.items():
        if fields.get(name):
            raise ModelRejected(f"{where} has {name}: {why}")


def _transactions(fields: Fields, platform: str, where: str) -> dict[str, Any]:
    """Which backend "python" is, whatever else is said of acceleration; and how often it answers."""
    transactions = _message(fields, "model_transaction_policy", where) or {}
    decoupled = last(transactions, "decoupled")
    if platform != "python":
        if decoupled in TRUE:
            raise ModelRejected(f"{where} is decoupled: only steps in Python answer any number of times")
        return {}
    return {"backends": ("python",)} | ({"decoupled": decoupled in TRUE} if decoupled is not None else {})


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


def _sequence(fields: Fields, where: str) -> dict[str, Any]:
    """Both of Triton's strategies come to the same here: any node's batches take what is there."""
    batching = _message(fields, "sequence_batching", where)
    if batching is None:
        return {}
    rows = () if last(fields, "max_batch_size") in (None, "0") else ("-1",)
    sequence: dict[str, Any] = {"controls": _controls(batching, where), "state": _states(batching, where, rows)}
    if (idle_us := last(batching, "max_sequence_idle_microseconds")) is not None:
        sequence["idle_s"] = _number(idle_us, "max_sequence_idle_microseconds", where) / 1e6
    return {"sequence": sequence}


def _controls(batching: Fields, where: str) -> dict[str, str]:
    controls: dict[str, str] = {}
    for control_input in _messages(batching, "control_input", where):
        for control in _messages(control_input, "control", where):
            kind = str(last(control, "kind") or "CONTROL_SEQUENCE_START")
            if (control_is := CONTROLS.get(kind)) is None:
                raise ModelRejected(f"{where}: there is no control {kind!r}")
            if any(_is_other(control.get(name, [])) for name in FALSE_TRUE):
                raise ModelRejected(f"{where}: control {kind} is given 1 or 0 here, not what it declares")
            controls[control_is] = str(last(control_input, "name") or "")
    return controls


def _is_other(values: list[Any]) -> bool:
    """Whether false and true are anything but 0 and 1."""
    said = [1.0 if value in TRUE else 0.0 if value in FALSE else value for value in values]
    return bool(said) and said != [0.0, 1.0]


def _states(batching: Fields, where: str, rows: tuple[str, ...]) -> list[dict[str, Any]]:
    states = []
    for state in _messages(batching, "state", where):
        for initial in _messages(state, "initial_state", where):
            if "data_file" in initial:
                raise ModelRejected(f"{where}: the initial state of a sequence is not read from a file here")
        declared = {"input": last(state, "input_name") or "", "output": last(state, "output_name") or ""}
        states.append(declared | _shape(last(state, "initial_state") or state, rows))
    return states


def _shape(declared: Fields, rows: tuple[str, ...]) -> dict[str, Any]:
    """Of the first state, where it is told; Triton's ``dims`` lack the batch."""
    dims = declared.get("dims", [])
    return {"shape": (*rows, *dims)} if dims and "-1" not in dims else {}


def _labels(fields: Fields, where: str) -> dict[str, Any]:
    outputs = _messages(fields, "output", where)
    found = {str(last(o, "name") or ""): str(file) for o in outputs if (file := last(o, "label_filename"))}
    return {"labels": found} if found else {}


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
