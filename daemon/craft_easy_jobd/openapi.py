"""The OpenAPI 3.1 document of the control API, made from its routes and the structs that they take and answer."""

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from craft_easy_jobd.documents import Problem
from craft_easy_jobs import __version__

JSON = "application/json"
LINES = "application/x-ndjson"
PROBLEM = "application/problem+json"

_REF = "#/components/schemas/{name}"


class Route(NamedTuple):
    """One call: how it is made and what it answers; its handler's docstring says what it does.

    `answer` is the shape of a good answer with `status`, `body` that of the request's body, None when there is none.
    A shape is a type, a tuple of shapes (any of them), or a list with one shape (an array of it).
    """

    method: str
    path: str
    handler: Any
    answer: Any
    status: int = 200
    query: type[msgspec.Struct] | None = None
    body: Any = None
    media: str = JSON


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document that describes these routes."""
    kinds = {kind for route in routes for shape in (route.answer, route.query, route.body) for kind in _kinds(shape)}
    # Sorted, so that the document is the same each time.
    ordered = sorted({*kinds, Problem}, key=str)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    known = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, known, components)
    queries = {route.query.__name__ for route in routes if route.query}
    return {
        "openapi": "3.1.0",
        "info": {"title": "craft-easy-jobd", "version": __version__, "description": "Control API of the job daemon."},
        "paths": paths,
        "components": {"schemas": {name: each for name, each in components.items() if name not in queries}},
    }


def _operation(route: Route, known: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation = {
        "operationId": route.handler.__name__,
        "summary": route.handler.__doc__.strip().splitlines()[0],
        "parameters": [*_path_parameters(route.path), *_query_parameters(route.query, components)],
        "responses": {
            str(route.status): {
                "description": HTTPStatus(route.status).phrase,
                "content": {route.media: {"schema": _schema(route.answer, known)}},
            },
            "default": {
                "description": "Refused",
                "content": {PROBLEM: {"schema": known[Problem]}},
            },
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"content": {JSON: {"schema": _schema(route.body, known)}}}
    return operation


def _kinds(shape: Any) -> Iterator[Any]:
    if isinstance(shape, tuple | list):
        for part in shape:
            yield from _kinds(part)
    elif shape is not None:
        yield shape


def _schema(shape: Any, known: dict[Any, Any]) -> Any:
    if isinstance(shape, tuple):
        return {"anyOf": [_schema(part, known) for part in shape]}
    if isinstance(shape, list):
        return {"type": "array", "items": _schema(shape[0], known)}
    return known[shape]


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(query: type[msgspec.Struct] | None, components: dict[str, Any]) -> list[dict[str, Any]]:
    properties = components[query.__name__]["properties"] if query else {}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
