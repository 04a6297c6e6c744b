"""params_schema: what an author may write, compiled into a check of what a user sends."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from craft_easy_jobs.errors import DefinitionError, ParamProblem, ParamsError, ResultValueError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_PROBLEMS = 100
MAX_MESSAGE_LENGTH = 300

_KEYWORD_LIST = """
$anchor $comment $defs $dynamicAnchor $dynamicRef $id $ref $schema $vocabulary additionalProperties allOf anyOf const
contains contentEncoding contentMediaType contentSchema default definitions dependencies dependentRequired
dependentSchemas deprecated description else enum examples exclusiveMaximum exclusiveMinimum format if items
maxContains maxItems maxLength maxProperties maximum minContains minItems minLength minProperties minimum multipleOf
not oneOf pattern patternProperties prefixItems properties propertyNames readOnly required then title type
unevaluatedItems unevaluatedProperties uniqueItems writeOnly
"""
_KEYWORDS = frozenset(_KEYWORD_LIST.split())
_LIST_KEYWORDS = ("allOf", "anyOf", "oneOf", "enum", "required", "prefixItems")


def check_schema(job: str, schema: dict[str, Any]) -> None:
    """Refuse at once what is cheap to see, as it runs at import; `compile_params` does the rest.

    Raises:
        DefinitionError: the schema is neither a JSON Schema nor the shorthand, property name → sub-schema.
    """
    for key in schema:
        if not isinstance(key, str):
            raise DefinitionError(f"job {job!r}: params_schema has the key {key!r}; keys must be strings")
    problem = _problem_of_full(schema) if _is_full(schema) else _problem_of_shorthand(schema)
    if problem:
        raise DefinitionError(f"job {job!r}: {problem}")


def full_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema that a params_schema stands for; the shorthand's properties are optional, others allowed."""
    return schema if _is_full(schema) else {"type": "object", "properties": schema}


def properties_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The declared parameters by name, for listing; `True` and `False` as a sub-schema show as empty."""
    properties = full_schema(schema).get("properties", {})
    return {name: sub if isinstance(sub, dict) else {} for name, sub in properties.items()}


class ParamsValidator:
    """A compiled params_schema of one job."""

    def __init__(self, job: str, validator: "Validator") -> None:
        self._job = job
        self._validator = validator

    def check(self, params: dict[str, Any]) -> None:
        """Compare params with the schema.

        Raises:
            ParamsError: with every mismatch (the first MAX_PROBLEMS), sorted by path; also when the schema itself
                fails on these params, such as a `$ref` that recurses without end.
        """
        try:
            errors = islice(self._validator.iter_errors(params), MAX_PROBLEMS)
            problems = {ParamProblem(_path(error.absolute_path), _shorten(error.message)) for error in errors}
        except Exception as error:
            # Schemas are the authors': whatever they make the library raise is an answer to the user, not a crash.
            text = "it recurses without end" if isinstance(error, RecursionError) else f"{error}"
            problems = {ParamProblem("params", _shorten(f"the job's params_schema cannot be applied: {text}"))}
        if problems:
            raise ParamsError(self._job, sorted(problems, key=lambda problem: (problem.path, problem.message)))


def compile_params(job: str, schema: dict[str, Any]) -> ParamsValidator:
    """Compile a params_schema, once per job: Draft 2020-12 unless its `$schema` names another draft.

    Raises:
        DefinitionError: it is no valid schema, holds what JSON cannot, or a `$ref` leads out of it. Nothing is ever
            fetched.
    """
    check_schema(job, schema)
    # These three cost 0.1 s to import; only commands that check params pay it.
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    full = full_schema(schema)
    try:
        _require_json(schema)
        kind = validator_for(full, default=Draft202012Validator)
        kind.check_schema(full)
        _require_own_refs(full)
    except SchemaError as error:
        where = _path(error.absolute_path if full is schema else islice(error.absolute_path, 1, None), "params_schema")
        raise DefinitionError(f"job {job!r}: {where}: {_shorten(error.message)}") from None
    except Exception as error:
        # What the checks themselves cannot digest (a `$schema` that is a number) is as wrong as what they refuse.
        raise DefinitionError(f"job {job!r}: params_schema: {_shorten(str(error))}") from None
    return ParamsValidator(job, kind(full, registry=Registry(), format_checker=kind.FORMAT_CHECKER))


def _is_full(schema: dict[str, Any]) -> bool:
    """True for a JSON Schema; keywords are told from parameters of the same name by the kind of their value."""
    return (
        isinstance(schema.get("type"), str | list)
        or any(key.startswith("$") for key in schema)
        or any(isinstance(schema.get(key), list) for key in _LIST_KEYWORDS)
        or _are_schemas(schema.get("properties"))
    )


def _are_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict | bool) for item in value.values())


def _problem_of_full(schema: dict[str, Any]) -> str | None:
    if not isinstance(schema.get("$schema", ""), str):
        return f"params_schema['$schema'] must be the address of a draft, not {schema['$schema']!r}"
    kinds = schema.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        return f"params_schema has the type {kinds!r}, but params are always an object"
    strays = [key for key, value in schema.items() if key not in _KEYWORDS and _has_keyword(value)]
    if strays and "properties" not in schema:
        return f"params_schema mixes JSON Schema keywords with the parameter {strays[0]!r}; put it under 'properties'"
    return None


def _problem_of_shorthand(schema: dict[str, Any]) -> str | None:
    for key, value in schema.items():
        where = f"params_schema[{key!r}]"
        if not isinstance(value, dict | bool) or (isinstance(value, bool) and key in _KEYWORDS):
            hint = "; for keywords write {'type': 'object', 'properties': {...}, ...}" if key in _KEYWORDS else ""
            return f"{where}: a sub-schema (dict) is expected, got {value!r}{hint}"
        if value and isinstance(value, dict) and not _has_keyword(value):
            return f"{where}: none of {', '.join(map(repr, value))} is a JSON Schema keyword; it would accept anything"
    return None


def _has_keyword(value: Any) -> bool:
    return isinstance(value, dict) and not _KEYWORDS.isdisjoint(value)


def _require_json(schema: dict[str, Any]) -> None:
    """Refuse what could not be shown or sent to the daemon."""
    from craft_easy_jobs.model import encode_value

    try:
        encode_value(schema)
    except ResultValueError as error:
        raise ValueError(f"{error.path.removeprefix('result.')} is not a JSON value") from None


def _require_own_refs(schema: dict[str, Any]) -> None:
    """Refuse each `$ref` that leads out of the schema or nowhere, however deep it lies."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    waiting = [(root, Registry[Any]().resolver_with_root(root))]
    while waiting:
        resource, resolver = waiting.pop()
        target = resource.contents.get("$ref") if isinstance(resource.contents, dict) else None
        try:
            if target is not None:
                resolver.lookup(target)
        except Unresolvable:
            raise ValueError(f"$ref {target!r} leads nowhere; only targets inside the schema are followed") from None
        waiting += [(part, resolver.in_subresource(part)) for part in resource.subresources()]


def _path(parts: Iterable[str | int], root: str = "params") -> str:
    return root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[:MAX_MESSAGE_LENGTH]}..."
