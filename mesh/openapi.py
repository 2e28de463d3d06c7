"""The OpenAPI 3.1 document of the HTTP door, at ``/openapi.json``: every path, what it takes and how it answers.

Source: the OIP specification and Triton's extensions, as this door speaks them. Not here: answering.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.oip.datatypes import DATATYPES

Json = dict[str, Any]

PARAMETERS: Json = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number", "boolean"]}}
SHAPE: Json = {"type": "array", "items": {"type": "integer"}}
NAME: Json = {"type": "string", "minLength": 1}
REGION: Json = {"name": "region", "in": "path", "required": True, "schema": NAME}
MODEL: Json = {"name": "name", "in": "path", "required": True, "schema": NAME}
VERSION: Json = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
}
FAILS = (400, 404, 413)


def _object(required: str = "", *, closed: bool = False, **properties: Json) -> Json:
    found: Json = {"type": "object", "required": required.split(), "properties": properties}
    return found | {"additionalProperties": False} if closed else found


def _many(of: Json) -> Json:
    return {"type": "array", "items": of}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer"}
FLAG: Json = {"type": "boolean"}
ANY: Json = {}
TENSOR = _object(
    "name shape datatype", name=NAME, shape=SHAPE, datatype=_ref("Datatype"), parameters=PARAMETERS, data=ANY
)
SPEC = _object("name datatype shape", name=TEXT, datatype=_ref("Datatype"), shape=SHAPE)
SCHEMAS: Json = {
    "Error": _object("error", closed=True, error=TEXT),
    "Datatype": {"type": "string", "enum": list(DATATYPES)},
    "Tensor": TENSOR,
    "InferRequest": _object(
        "inputs",
        id=TEXT,
        parameters=PARAMETERS,
        inputs=_many(_ref("Tensor")) | {"minItems": 1},
        outputs=_many(_object("name", name=NAME, parameters=PARAMETERS)),
    ),
    "InferResponse": _object(
        "model_name model_version outputs",
        model_name=TEXT,
        model_version=TEXT,
        id=TEXT,
        parameters=PARAMETERS,
        outputs=_many(_ref("Tensor")),
    ),
    "ServerMetadata": _object("name version extensions", name=TEXT, version=TEXT, extensions=_many(TEXT)),
    "ModelMetadata": _object(
        "name versions platform inputs outputs",
        name=TEXT, versions=_many(TEXT), platform=TEXT, inputs=_many(SPEC), outputs=_many(SPEC), parameters=PARAMETERS,
    ),
    "ModelReady": _object("name ready", name=TEXT, ready=FLAG),
    "Statistics": _object("model_stats", model_stats=_many(_object("name version", name=TEXT, version=TEXT))),
    "Index": _many(_object("name", name=TEXT, version=TEXT, state=TEXT, reason=TEXT)),
    "Regions": _many(_object("name key offset byte_size", name=TEXT, key=TEXT, offset=WHOLE, byte_size=WHOLE)),
    "Models": _object("models", models=_many(TEXT)),
    "Nodes": _object("nodes", nodes=_many(_object("node site state", node=TEXT, site=TEXT, state=TEXT))),
}  # fmt: skip


def _said(schema: Json | None, media: str = "application/json") -> Json:
    content = {} if schema is None else {"content": {media: {"schema": schema}}}
    return {"description": "as asked"} | content


def _does(summary: str, ok: Json, *fails: int, body: Json | None = None, needs_body: bool = False) -> Json:
    error = {"description": "why not", "content": {"application/json": {"schema": _ref("Error")}}}
    operation: Json = {"summary": summary, "responses": {"200": ok} | {str(status): error for status in fails}}
    if body is not None:
        operation["requestBody"] = {"required": needs_body, "content": {"application/json": {"schema": body}}}
    return operation


def _of_model(path: str, method: str, operation: Json) -> Json:
    """With a version and without."""
    plain = {"parameters": [MODEL], method: operation}
    versioned = {"parameters": [MODEL, VERSION], method: operation}
    return {f"/v2/models/{{name}}{path}": plain, f"/v2/models/{{name}}/versions/{{version}}{path}": versioned}


def _paths() -> Json:
    runs = (*FAILS, 409, 422, 429, 500, 501, 502, 503, 504)
    infer: Json = {"body": _ref("InferRequest"), "needs_body": True}
    answer, events = _said(_ref("InferResponse")), _said(TEXT, "text/event-stream")
    held = (400, 404, 502, 503, 504)
    ready = _does("whether it serves", _said(_object("ready", ready=FLAG)))
    ready["responses"]["503"] = _said(_object("ready", ready=FLAG))
    model_ready = _does("whether somebody serves it", _said(_ref("ModelReady")), 400, 404)
    model_ready["responses"]["503"] = _said(_ref("ModelReady"))
    return (
        {
            "/v2": {"get": _does("the server", _said(_ref("ServerMetadata")))},
            "/v2/health/live": {"get": _does("whether the process answers", _said(_object("live", live=FLAG)))},
            "/v2/health/ready": {"get": ready},
            "/v2/models/stats": {"get": _does("counts of all models", _said(_ref("Statistics")))},
            "/metrics": {"get": _does("for Prometheus", _said(TEXT, "text/plain"))},
            "/mesh/v1/nodes": {"get": _does("the fleet, as seen from here", _said(_ref("Nodes")))},
            "/mesh/v1/models": {"get": _does("models that anybody holds", _said(_ref("Models")))},
            "/mesh/v1/report": {"get": _does("what this node says of itself", _said({"type": "object"}))},
            "/openapi.json": {"get": _does("this document", _said({"type": "object"}))},
        }
        | _of_model("", "get", _does("its metadata", _said(_ref("ModelMetadata")), *held))
        | _of_model("/ready", "get", model_ready)
        | _of_model("/config", "get", _does("its configuration, in Triton's words", _said({"type": "object"}), *held))
        | _of_model("/stats", "get", _does("its counts", _said(_ref("Statistics")), 404))
        | _of_model("/infer", "post", _does("one answer", answer, *runs, **infer))
        | _of_model("/infer_stream", "post", _does("any number of answers, as events", events, *runs, **infer))
        | _repository()
        | _memory("system", _object("key byte_size", key=TEXT, offset=WHOLE, byte_size=WHOLE), 400, 404, 413, 501)
        | _memory("cuda", {"type": "object"}, 404, 501)
    )


def _repository() -> Json:
    asked, parameters = _object(ready=FLAG), _object(parameters={"type": "object"})
    fails, path = (400, 404, 422, 500, 501, 502, 503, 504), "/v2/repository/models/{name}"
    return {
        "/v2/repository/index": {"post": _does("what could be loaded", _said(_ref("Index")), *fails, body=asked)},
        f"{path}/load": {"parameters": [MODEL], "post": _does("load it", _said(None), *fails, body=parameters)},
        f"{path}/unload": {"parameters": [MODEL], "post": _does("unload it", _said(None), *fails, body=parameters)},
    }


def _memory(kind: str, asked: Json, *fails: int) -> Json:
    path, one = f"/v2/{kind}sharedmemory", {"parameters": [REGION]}
    status, away = _does("regions", _said(_ref("Regions")), *fails), _does("forget", _said(None), *fails)
    return {
        f"{path}/status": {"get": status},
        f"{path}/region/{{region}}/status": one | {"get": status},
        f"{path}/region/{{region}}/register": one
        | {"post": _does("remember", _said(None), *fails, body=asked, needs_body=True)},
        f"{path}/unregister": {"post": away},
        f"{path}/region/{{region}}/unregister": one | {"post": away},
    }


def document(version: str) -> Json:
    about = {
        "title": "inference-mesh",
        "version": version,
        "description": "The Open Inference Protocol v2 with Triton's extensions. Inference bodies may also hold binary "
        "tensors behind the JSON, whose length is then in Inference-Header-Content-Length.",
    }
    return {"openapi": "3.1.0", "info": about, "paths": _paths(), "components": {"schemas": SCHEMAS}}


def encoded(version: str) -> bytes:
    return msgspec.json.encode(document(version))
