"""Hand-built values for tests: every argument has a dull default, a test names only what it is about."""

from __future__ import annotations

from typing import Any

from mesh.messages import Load, ModelLoad, Report
from mesh.values import InstanceState, ModelIdentity

DIGEST = "ab" * 32
OTHER_DIGEST = "cd" * 32


def an_identity(name: str = "resnet", version: str = "1", digest: str = DIGEST) -> ModelIdentity:
    return ModelIdentity(name, version, digest)


def a_model_load(
    name: str = "resnet",
    *,
    version: str = "1",
    digest: str = DIGEST,
    state: InstanceState = "READY",
    in_flight: int = 0,
    service_ms: float = 5.0,
) -> ModelLoad:
    return ModelLoad(name, version, digest, state, in_flight, service_ms)


def a_report(node: str = "n1", *, seq: int = 1, models: tuple[ModelLoad, ...] | None = None, **fields: Any) -> Report:
    """A ready edge node with one ready model and a ttl of 1.5 s."""
    defaults: dict[str, Any] = {
        "site": "shop",
        "mesh": "demo",
        "tier": "edge",
        "incarnation": 1,
        "ttl_ms": 1500,
        "state": "ready",
        "http": "127.0.0.1:8000",
    }
    return Report(node=node, seq=seq, models=(a_model_load(),) if models is None else models, **(defaults | fields))


def a_load(
    *,
    incarnation: int = 1,
    seq: int = 1,
    state: str = "ready",
    wait_ms: float = 0.0,
    in_flight: int = 0,
    service_ms: float = 5.0,
) -> Load:
    return Load(incarnation, seq, state, wait_ms, in_flight, service_ms)
