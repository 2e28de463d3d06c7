"""What stands on the command line as the input of a model: JSON, or a file: .npy, an image as pixels, else bytes.

What an image becomes follows from the declared shape: RGB scaled to 0..1 for float inputs, resized to the declared
height and width or, where those are free, to multiples of 32. Not here: any model's own preprocessing.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from mesh.errors import InvalidRequest, Unsupported
from mesh.oip.datatypes import DATATYPES
from mesh.oip.tensor import Tensor
from mesh.values import TensorSpec

MAX_FILE_BYTES = 256 << 20
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
STRIDE = 32


def is_file(text: str) -> bool:
    """Whether ``text`` names a file; long JSON is no name that any file could have."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def tensor_from_file(spec: TensorSpec, path: Path) -> Tensor:
    """Raises ``InvalidRequest`` naming the input and the file."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidRequest(f"--input {spec.name}: {path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    data = path.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        return _npy(spec, path, data)
    if spec.datatype == "BYTES":
        shape = tuple(1 for _ in spec.shape) or (1,)
        return Tensor.from_numpy(spec.name, np.array([data], dtype=object).reshape(shape), "BYTES")
    if data.startswith(IMAGE_MAGIC) and len(spec.shape) == 4:
        return _image(spec, path, data)
    if spec.datatype == "UINT8":
        return _raw(spec, path, data)
    raise InvalidRequest(f"--input {spec.name}: {path} is no .npy file, which a {spec.datatype} input needs")


def tensor_from_json(spec: TensorSpec, value: Any) -> Tensor:
    """Raises ``InvalidRequest`` for what is not of the declared datatype; nothing is cut or wrapped to make it fit."""
    if spec.datatype == "BYTES":
        return Tensor.from_numpy(spec.name, np.array(value, dtype=object), "BYTES")
    dtype = _dtype(spec)
    wrong = InvalidRequest(f"--input {spec.name}: the JSON is no {spec.datatype} array")
    try:
        given = np.array(value)
    except ValueError:  # rows of different lengths
        raise wrong from None
    if given.dtype.kind not in "biuf":
        raise wrong
    with np.errstate(all="ignore"):  # what does not fit is found by comparing
        array = given.astype(dtype)
        if dtype.kind != "f" and not np.array_equal(array, given):
            raise wrong
    return Tensor.from_numpy(spec.name, array, spec.datatype)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Numpy's type for values of the input; BF16 has none of its own and is made from ``float32``."""
    return DATATYPES["FP32" if spec.datatype == "BF16" else spec.datatype].dtype


def _npy(spec: TensorSpec, path: Path, data: bytes) -> Tensor:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise InvalidRequest(f"--input {spec.name}: {path} cannot be read: {error}") from None
    if spec.datatype not in ("BYTES", "BF16") and array.dtype.newbyteorder("<") != DATATYPES[spec.datatype].dtype:
        raise InvalidRequest(f"--input {spec.name}: {path} holds {array.dtype}, the model takes {spec.datatype}")
    return Tensor.from_numpy(spec.name, array, spec.datatype)


def _raw(spec: TensorSpec, path: Path, data: bytes) -> Tensor:
    free = [axis for axis, dim in enumerate(spec.shape) if dim < 0]
    shape = [1 if dim < 0 else dim for dim in spec.shape]
    if free:
        shape[free[-1]] = len(data)
    if int(np.prod(shape)) != len(data):
        raise InvalidRequest(f"--input {spec.name}: {path} has {len(data)} bytes, the shape is {list(spec.shape)}")
    return Tensor(spec.name, "UINT8", tuple(shape), data, {})


def _image(spec: TensorSpec, path: Path, data: bytes) -> Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise Unsupported("images need Pillow: install 'inference-mesh[demo]', or give a .npy file") from None
    channels_first = spec.shape[1] in (1, 3)
    height, width, channels = _image_shape(spec, channels_first)
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = (width or _rounded(image.width), height or _rounded(image.height))
            pixels: np.ndarray[Any, Any] = np.asarray(image.convert("L" if channels == 1 else "RGB").resize(size))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise InvalidRequest(f"--input {spec.name}: {path} is no image that can be read") from None
    pixels = pixels.reshape(size[1], size[0], channels)
    pixels = pixels.transpose(2, 0, 1) if channels_first else pixels
    dtype = _dtype(spec)
    scaled = pixels.astype(dtype) / dtype.type(255) if dtype.kind == "f" else pixels.astype(dtype)
    return Tensor.from_numpy(spec.name, np.ascontiguousarray(scaled[None]), spec.datatype)


def _image_shape(spec: TensorSpec, channels_first: bool) -> tuple[int, int, int]:
    """Height, width (0 where free) and channels of a declared 4-dimensional input."""
    _, one, two, three = spec.shape
    height, width, channels = (two, three, one) if channels_first else (one, two, three)
    if channels not in (1, 3):
        raise InvalidRequest(f"--input {spec.name}: shape {list(spec.shape)} is not that of an image, give a .npy file")
    return max(height, 0), max(width, 0), channels


def _rounded(pixels: int) -> int:
    return max(round(pixels / STRIDE), 1) * STRIDE
