"""A loaded version as Triton's model configuration has it, in the names of its JSON.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. It says what was found out and
is in force, not what was declared. Not here: reading such a document (``triton_config``).
"""

from __future__ import annotations

from typing import Any

from edge.instance import Instance
from edge.model_config import Latest, ModelConfig
from edge.sequence_config import SequenceConfig
from edge.triton_config import CONTROLS
from hardware.backend import Loaded, TensorInfo

TYPES = {"BYTES": "TYPE_STRING"}
"""Triton's names of datatypes where they are not OIP's behind ``TYPE_``."""


def config_document(instance: Instance, loaded: Loaded) -> dict[str, Any]:
    """JSON-able. With a ``max_batch_size`` above 0 the shapes lack their first dimension, which is the batch."""
    config, served, facts = instance.stored.config, instance.served, instance.report(0.0, 0.0)
    inputs, outputs = visible(instance, loaded)
    batched = served.batching.max_rows > 1 and all(i.shape and i.shape[0] == -1 for i in inputs + outputs)
    document: dict[str, Any] = {
        "name": instance.identity.name,
        "platform": loaded.platform,
        "backend": loaded.platform.partition("_")[0],
        "version_policy": _versions(config),
        "max_batch_size": served.batching.max_rows if batched else 0,
        "input": [_tensor(info, batched=batched) for info in inputs],
        "output": [_tensor(info, batched=batched) | _labels(config, info) for info in outputs],
        "instance_group": [_instances(instance, loaded)],
        "default_model_filename": instance.stored.path.name,
        "model_transaction_policy": {"decoupled": facts.decoupled},
        "parameters": _parameters(instance, loaded),
    }
    if config.sequence is not None:
        document["sequence_batching"] = _sequence(config.sequence, loaded)
    elif batched:
        document["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(served.batching.delay_ms * 1e3),
            "default_priority_level": config.priority,
        }
    return document


def visible(instance: Instance, loaded: Loaded) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs that callers give and outputs that they get: without those of a sequence's own."""
    signature, sequence = loaded.signature, instance.stored.config.sequence
    if sequence is None:
        return signature.inputs, signature.outputs
    inputs = tuple(info for info in signature.inputs if info.name not in sequence.inputs)
    return inputs, tuple(info for info in signature.outputs if info.name not in sequence.outputs)


def _sequence(sequence: SequenceConfig, loaded: Loaded) -> dict[str, Any]:
    infos = {info.name: info for info in loaded.signature.outputs}
    controls = {kind: getattr(sequence.controls, name) for kind, name in CONTROLS.items()}
    return {
        "direct": {},
        "max_sequence_idle_microseconds": round(sequence.idle_s * 1e6),
        "control_input": [{"name": name, "control": [{"kind": kind}]} for kind, name in controls.items() if name],
        "state": [
            {"input_name": state.input, "output_name": state.output, "data_type": _type(infos[state.output])}
            for state in sequence.state
        ],
    }


def _versions(config: ModelConfig) -> dict[str, Any]:
    if config.versions == "all":
        return {"all": {}}
    if config.versions == "latest":
        return {"latest": {"num_versions": 1}}
    if isinstance(config.versions, Latest):
        return {"latest": {"num_versions": config.versions.latest}}
    return {"specific": {"versions": list(config.versions)}}


def _tensor(info: TensorInfo, *, batched: bool) -> dict[str, Any]:
    return {"name": info.name, "data_type": _type(info), "dims": list(info.shape[1:] if batched else info.shape)}


def _labels(config: ModelConfig, info: TensorInfo) -> dict[str, str]:
    labels = config.labels.get(info.name)
    return {"label_filename": labels.file} if labels is not None and labels.file else {}


def _type(info: TensorInfo) -> str:
    return TYPES.get(info.datatype, f"TYPE_{info.datatype}")


def _instances(instance: Instance, loaded: Loaded) -> dict[str, Any]:
    kind = "KIND_CPU" if loaded.effective in ("onnxruntime-cpu", "python") else "KIND_GPU"
    return {"name": f"{instance.identity.name}_0", "kind": kind, "count": instance.served.instances}


def _parameters(instance: Instance, loaded: Loaded) -> dict[str, Any]:
    """What Triton has no field for."""
    known = {"requested_backend": instance.chain[0], "effective_backend": loaded.effective, "detail": loaded.detail}
    return {name: {"string_value": value} for name, value in known.items() if value}
