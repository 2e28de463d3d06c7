"""``mesh infer``: run a model on what stands on the command line or in files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.table import Table

from mesh.cli.door import Url, url_or_default
from mesh.cli.files import is_file, tensor_from_file, tensor_from_json
from mesh.client import Client
from mesh.command import Json, console, fail, print_json, run
from mesh.errors import InvalidRequest
from mesh.oip.tensor import Tensor
from mesh.result import Result
from mesh.values import ModelMetadata

SHOWN = 8


def infer(
    model: Annotated[str, typer.Argument(help="Model, or MODEL/VERSION")],
    inputs: Annotated[
        list[str], typer.Option("--input", "-i", help="NAME=FILE.npy, NAME=JSON, or FILE (image, .npy or raw bytes)")
    ] = [],  # noqa: B006 - typer's way to take an option many times
    deadline: Annotated[float, typer.Option(help="Milliseconds until the answer must be there")] = 10_000.0,
    url: Url = "",
    json: Json = False,
) -> None:
    """Run MODEL once, anywhere in the mesh, and print its outputs."""
    name, _, version = model.partition("/")
    with fail():
        if not inputs:
            fail.usage("give at least one --input NAME=FILE.npy, NAME=JSON or FILE")
        result = run(_infer(url_or_default(url), name, version, inputs, deadline))
    if json:
        print_json(_document(result))
    else:
        _show(result)


async def _infer(url: str, model: str, version: str, inputs: list[str], deadline_ms: float) -> Result:
    async with Client(url, deadline_ms=deadline_ms) as client:
        metadata = await client.metadata(model, version)
        tensors = [_input(text, metadata) for text in inputs]
        return await client.infer(model, tensors, version=version, deadline_ms=deadline_ms)


def _input(text: str, metadata: ModelMetadata) -> Tensor:
    name, equals, value = text.partition("=")
    specs = {spec.name: spec for spec in metadata.inputs}
    if not equals or name not in specs:
        if is_file(text):
            return _only_input(text, metadata)
        known = ", ".join(specs)
        raise InvalidRequest(f"--input {text}: neither a file nor NAME=..., the model's inputs are {known}")
    if is_file(value):
        return tensor_from_file(specs[name], Path(value))
    try:
        return tensor_from_json(specs[name], msgspec.json.decode(value))
    except msgspec.DecodeError:
        raise InvalidRequest(f"--input {name}: {value!r} is neither a file nor JSON") from None


def _only_input(text: str, metadata: ModelMetadata) -> Tensor:
    if len(metadata.inputs) != 1:
        known = ", ".join(spec.name for spec in metadata.inputs)
        raise InvalidRequest(f"--input {text}: say which input it is, NAME={text}; the model's inputs are {known}")
    return tensor_from_file(metadata.inputs[0], Path(text))


def _document(result: Result) -> dict[str, Any]:
    outputs = [
        {"name": name, "datatype": str(array.dtype), "shape": list(array.shape), "data": _plain(array)}
        for name, array in result.outputs.items()
    ]
    where = {"node": result.node, "route": result.route, "hops": result.hops}
    return {"model_name": result.model, "model_version": result.version, "outputs": outputs, **where}


def _plain(array: np.ndarray[Any, Any]) -> list[Any]:
    flat = array.reshape(-1).tolist()
    return [item.decode(errors="replace") if isinstance(item, bytes) else item for item in flat]


def _show(result: Result) -> None:
    table = Table("output", "datatype", "shape", "values")
    for name, array in result.outputs.items():
        values = _plain(array)[:SHOWN]
        more = " ..." if array.size > SHOWN else ""
        table.add_row(name, str(array.dtype), str(list(array.shape)), f"{values}{more}")
    console().print(table)
    console().print(f"ran on {result.node} ({result.route}, {result.hops} hops)")
