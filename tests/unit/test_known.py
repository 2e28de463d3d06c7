"""Metadata that a door keeps: asked for again once it is no longer fresh."""

from __future__ import annotations

from typing import Any, cast

from mesh.inquiry import Inquiry
from mesh.known import FRESH_S, Known
from mesh.values import ModelIdentity, ModelMetadata
from mesh.view import View

IDENTITY = ModelIdentity("m", "1", "d")


class Asked:
    """An inquiry that answers how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    async def metadata(self, identity: ModelIdentity, context: Any) -> ModelMetadata:
        self.times += 1
        return ModelMetadata(identity.name, ("1",), "onnx", (), (), {"labels.Y": f"asked {self.times}\nb"})


async def test_labels_are_asked_for_again() -> None:
    now, asked = [100.0], Asked()
    known = Known(cast("Inquiry", asked), cast("View", None), lambda error: None, lambda: now[0])
    for at, times in ((100.0, 1), (100.0 + FRESH_S / 2, 1), (100.0 + FRESH_S, 2), (101.0 + FRESH_S, 2)):
        now[0] = at
        assert (await known.metadata(IDENTITY)).labels == {"Y": [f"asked {times}", "b"]}
