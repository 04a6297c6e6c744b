"""params_schema: shorthand and full form, good and bad, and what users are told."""

import socket
from typing import Any

import pytest

from craft_easy_jobs.errors import DefinitionError, ParamsError
from craft_easy_jobs.params import MAX_PROBLEMS, check_schema, compile_params, full_schema, properties_of

TEXT = {"type": "string"}


def problems(schema: dict[str, Any], params: dict[str, Any]) -> list[str]:
    try:
        compile_params("j", schema).check(params)
    except ParamsError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("schema", "bad", "told"),
    [
        ({"period": {"type": "string", "pattern": r"^\d{4}$"}}, {"period": "x"}, "params.period: 'x' does not match"),
        ({"type": TEXT}, {"type": 1}, "params.type: 1 is not of type 'string'"),
        ({"required": {"type": "boolean"}}, {"required": 1}, "params.required: 1 is not of type 'boolean'"),
        ({"enum": {"type": "integer"}}, {"enum": "a"}, "params.enum: 'a' is not of type 'integer'"),
        ({"items": {"type": "array"}}, {"items": 1}, "params.items: 1 is not of type 'array'"),
        ({"properties": {"type": "object"}}, {"properties": 1}, "params.properties: 1 is not of type 'object'"),
        ({"anything": True, "n": {"type": "integer"}}, {"n": True}, "params.n: True is not of type 'integer'"),
        ({"never": False}, {"never": 1}, "params: False schema does not allow 1"),
        ({"type": "object", "required": ["a"]}, {}, "params: 'a' is a required property"),
        ({"required": ["a"]}, {}, "params: 'a' is a required property"),
        ({"type": ["object", "null"], "minProperties": 1}, {}, "params: {} should be non-empty"),
        ({"properties": {"a": TEXT}}, {"a": 1}, "params.a: 1 is not of type 'string'"),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {}, "params: {} is not valid under any of"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"required": ["a"]}}}, {}, "params: 'a' is a required property"),
        (
            {"type": "object", "properties": {"rows": {"type": "array", "items": {"properties": {"n": TEXT}}}}},
            {"rows": [{"n": "1"}, {"n": 2}]},
            "params.rows[1].n: 2 is not of type 'string'",
        ),
        ({"at": {"format": "date-time"}}, {"at": "yesterday"}, "params.at: 'yesterday' is not a 'date-time'"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"p": {"items": [TEXT]}}},
            {"p": [1]},
            "params.p[0]: 1 is not of type 'string'",
        ),
    ],
)
def test_a_mismatch_is_told_with_its_path(schema: dict[str, Any], bad: dict[str, Any], told: str) -> None:
    [problem] = problems(schema, bad)
    assert problem.startswith(told)


def test_what_matches_passes() -> None:
    for schema, params in [
        ({}, {"anything": 1}),
        ({"period": TEXT}, {}),
        ({"period": TEXT}, {"period": "2026-03", "other": 1}),
        ({"type": TEXT, "required": {}}, {"type": "x", "required": []}),
        ({"at": {"format": "date-time"}}, {"at": "2026-03-01T00:00:00Z"}),
        ({"n": {"type": "integer"}}, {"n": 1.0}),
        ({"properties": {}}, {"a": 1}),
    ]:
        assert problems(schema, params) == []


def test_all_problems_are_told_sorted_by_path() -> None:
    schema = {"type": "object", "required": ["z"], "properties": {"b": TEXT, "a": {"minimum": 5, "multipleOf": 2}}}
    assert problems(schema, {"b": 1, "a": 3}) == [
        "params: 'z' is a required property",
        "params.a: 3 is less than the minimum of 5",
        "params.a: 3 is not a multiple of 2",
        "params.b: 1 is not of type 'string'",
    ]
    with pytest.raises(ParamsError, match=r"^job 'j': params: 'z' is a required property; params\.a: 3 is"):
        compile_params("j", schema).check({"a": 3})


def test_what_is_told_stays_short() -> None:
    told = problems({"rows": {"items": TEXT}}, {"rows": list(range(10_000))})
    assert len(told) == MAX_PROBLEMS
    assert len(problems({"a": TEXT}, {"a": list(range(10_000))})[0]) < 400


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"a": "integer"}, "params_schema['a']: a sub-schema (dict) is expected, got 'integer'"),
        ({"a": int}, "got <class 'int'>"),
        ({1: TEXT}, "has the key 1; keys must be strings"),
        ({"type": "string"}, "has the type 'string', but params are always an object"),
        ({"type": []}, "has the type []"),
        ({"type": 5}, "params_schema['type']: a sub-schema (dict) is expected, got 5; for keywords write"),
        ({"minProperties": 1}, "for keywords write {'type': 'object'"),
        ({"a": TEXT, "additionalProperties": False}, "for keywords write {'type': 'object'"),
        ({"type": "object", "period": TEXT}, "mixes JSON Schema keywords with the parameter 'period'"),
        ({"a": {"$ref": "#/$defs/x"}, "$defs": {"x": TEXT}}, "mixes JSON Schema keywords with the parameter 'a'"),
        ({"a": {"typ": "string"}}, "none of 'typ' is a JSON Schema keyword"),
        ({"customer": {"id": TEXT}}, "none of 'id' is a JSON Schema keyword"),
        ({"$schema": 5}, "params_schema['$schema'] must be the address of a draft, not 5"),
    ],
)
def test_a_wrong_form_is_refused_at_once(schema: dict[Any, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        check_schema("j", schema)
    assert str(caught.value).startswith("job 'j': ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"a": {"type": "strin"}}, "params_schema.a.type: 'strin' is not valid"),
        ({"a": {"type": "string", "required": True}}, "params_schema.a.required: True is not of type 'array'"),
        ({"type": "object", "properties": {"a": {"minimum": "1"}}}, "params_schema.properties.a.minimum: '1' is not"),
        ({"a": {"pattern": "("}}, "params_schema.a.pattern: '(' is not a 'regex'"),
        ({"a": {"$ref": "#/nope"}}, "$ref '#/nope' leads nowhere"),
        ({"a": {"enum": {1}}}, "a.enum is not a JSON value"),
        ({"a": {"default": float("nan")}}, "a.default is not a JSON value"),
    ],
)
def test_a_wrong_schema_is_refused_when_it_is_compiled(schema: dict[str, Any], told: str) -> None:
    check_schema("j", schema)
    with pytest.raises(DefinitionError) as caught:
        compile_params("j", schema)
    assert str(caught.value).startswith("job 'j': ")
    assert told in str(caught.value)


def test_a_remote_ref_is_refused_and_never_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for schema in ({"a": {"$ref": address}}, {"$ref": address}, {"a": {"items": {"$ref": address}}}):
            with pytest.raises(DefinitionError, match="only targets inside the schema"):
                compile_params("j", schema)
        # One that the search for references does not see must still not be fetched when params are checked.
        hidden = {"$ref": "#/x-own/deep", "x-own": {"deep": {"$ref": address}}}
        [problem] = problems(hidden, {})
        assert "the job's params_schema cannot be applied" in problem
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_schema_that_fails_on_params_is_an_answer() -> None:
    assert problems({"$ref": "#"}, {}) == ["params: the job's params_schema cannot be applied: it recurses without end"]


def test_declared_parameters_can_be_listed() -> None:
    assert properties_of({"a": TEXT, "b": True}) == {"a": TEXT, "b": {}}
    assert properties_of({"type": "object", "properties": {"a": TEXT}}) == {"a": TEXT}
    assert properties_of({}) == properties_of({"required": ["a"]}) == {}
    assert full_schema({"a": TEXT}) == {"type": "object", "properties": {"a": TEXT}}
