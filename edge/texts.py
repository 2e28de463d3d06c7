"""Small text files that a person put into a model's folder. Not here: what they say."""

from __future__ import annotations

from pathlib import Path

from mesh.errors import ModelRejected


def text_of(path: Path, max_bytes: int) -> str:
    """All of it. Raises ``ModelRejected`` naming the file where it is too large, no UTF-8, or cannot be read."""
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
        if len(text) > max_bytes:
            raise ModelRejected(f"{where} is larger than {max_bytes} bytes")
        return text.decode("utf-8")
    except OSError as error:
        raise ModelRejected(f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelRejected(f"{where} is not UTF-8 text") from None
