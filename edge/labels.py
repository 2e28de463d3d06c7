"""What the classes of an output are called: ``[labels]`` in ``model.toml``, ``label_filename`` in ``config.pbtxt``.

They stand there, or one a line in a file of the model's folder. Not here: classes (``mesh.oip.classification``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from edge.declared import Declared
from edge.texts import text_of

MAX_BYTES = 256 * 1024
"""Of all the labels of a model: they travel in its metadata, whole, through one message of the bus."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")


class Labels(Declared):
    """``names`` by the index of the class; an empty one is a class without a name."""

    names: tuple[str, ...] = Field(min_length=1)
    file: str = ""
    """Where they were read, empty if they are declared themselves."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, declared: Any, info: ValidationInfo) -> Any:
        """Of a name of a file what the file says now; the context of the validation is the model's folder."""
        if isinstance(declared, list | tuple):
            return {"names": declared}
        if not isinstance(declared, str):
            raise ValueError("labels are a list of texts, or the name of a file that has one a line")  # noqa: TRY004
        return {"names": _lines(_file(info.context, declared)), "file": declared}

    @model_validator(mode="after")
    def _are_lines(self) -> Labels:
        wrong = next((index for index, name in enumerate(self.names) if _CONTROL.search(name)), None)
        if wrong is not None:
            raise ValueError(f"label {wrong} has a control character")
        return self


def _file(folder: Path | None, name: str) -> str:
    if folder is None:
        raise ValueError("a file of labels is read with a model's folder")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("a file of labels stands in the model's own folder, and only its name is given")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{folder.name} has no regular file {name!r}")
    return text_of(path, MAX_BYTES)


def _lines(text: str) -> list[str]:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    return lines.split("\n") if lines else []


def _bounded(labels: dict[str, Labels]) -> dict[str, Labels]:
    size = sum(len(name.encode()) + 1 for each in labels.values() for name in each.names)
    if size > MAX_BYTES:
        raise ValueError(f"all labels of a model may have {MAX_BYTES} bytes, these have {size}")
    return labels


LabelsByOutput = Annotated[dict[str, Labels], AfterValidator(_bounded)]
