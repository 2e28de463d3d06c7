"""What an error of the mesh is called in gRPC. Not here: the errors themselves (``errors``)."""

from __future__ import annotations

import math

import grpc

from mesh.errors import MeshError

Code = grpc.StatusCode

CODES = {
    400: Code.INVALID_ARGUMENT,
    404: Code.NOT_FOUND,
    409: Code.FAILED_PRECONDITION,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.INVALID_ARGUMENT,
    422: Code.FAILED_PRECONDITION,
    429: Code.RESOURCE_EXHAUSTED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""By the status of the one error table (``mesh.errors``)."""


def code_of(error: MeshError) -> grpc.StatusCode:
    return CODES.get(error.status, Code.UNKNOWN)


def trailers(error: MeshError) -> tuple[tuple[str, str], ...]:
    """``mesh-error`` names the error; ``retry-after`` is in whole seconds, as over HTTP."""
    said = [("mesh-error", error.code)]
    if error.retry_after_s is not None:
        said.append(("retry-after", str(max(math.ceil(error.retry_after_s), 1))))
    return tuple(said)
