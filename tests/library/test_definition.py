"""@job: defaults as specified, and a clear error for every wrong option."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from craft_easy_jobs import JobContext, job
from craft_easy_jobs.definition import JobOptions, Registry
from craft_easy_jobs.errors import DefinitionError, UnknownJobError

pytestmark = pytest.mark.usefixtures("fresh_registry")


async def good(ctx: JobContext) -> int:
    return 1


def test_the_defaults_and_their_order_are_the_specifications(fresh_registry: Registry) -> None:
    assert job(name="a")(good) is good
    options = fresh_registry["a"].options
    assert options == JobOptions("a", "", 300, 0, False, "tenant", {})
    assert fresh_registry["a"].function is good
    line = inspect.getsourcelines(good)[1]
    assert fresh_registry["a"].source == f"{__file__}:{line}"
    names = list(inspect.signature(job).parameters.values())
    assert [p.name for p in names] == [field.name for field in fields(JobOptions)]
    assert [p.kind.name for p in names] == ["POSITIONAL_OR_KEYWORD"] * 7 + ["KEYWORD_ONLY"] * 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": ""}, "@job: name must be a non-empty string, not ''"),
        ({"name": None}, "@job: name must be a non-empty string, not None"),
        ({"name": good}, "@job needs a name"),
        ({"description": 3}, "job 'a': description must be a string, not 3"),
        ({"timeout_seconds": 0}, "job 'a': timeout_seconds must be a whole number, at least 1, not 0"),
        ({"timeout_seconds": 1.5}, "timeout_seconds must be a whole number"),
        ({"timeout_seconds": True}, "timeout_seconds must be a whole number"),
        ({"retries": -1}, "retries must be a whole number, at least 0, not -1"),
        ({"retries": "2"}, "retries must be a whole number, at least 0, not '2'"),
        ({"per_tenant": 1}, "per_tenant must be True or False, not 1"),
        ({"scope": "world"}, "scope must be one of 'tenant', 'parent_tenant', 'system', not 'world'"),
        ({"params_schema": []}, "params_schema must be a dict, not []"),
        ({"params_schema": {"a": "integer"}}, "job 'a': params_schema['a']: a sub-schema (dict) is expected"),
        ({"isolation": "thread"}, "isolation must be one of 'shared', 'process'"),
        ({"on_interrupt": "panic"}, "on_interrupt must be one of 'retry', 'fail'"),
        ({"grace_seconds": -0.1}, "grace_seconds must be a number of seconds, at least 0"),
        ({"grace_seconds": float("nan")}, "grace_seconds must be a number of seconds"),
        ({"retry_delay_seconds": "1"}, "retry_delay_seconds must be a number of seconds"),
        ({"memory_limit_mb": 31}, "memory_limit_mb must be a whole number, at least 32 (megabytes; a worker uses most"),
        ({"memory_limit_mb": "64"}, "memory_limit_mb must be a whole number, at least 32"),
        ({"memory_limit_mb": 64.5}, "memory_limit_mb must be a whole number, at least 32"),
        (
            {"memory_limit_mb": 64, "isolation": "shared"},
            "job 'a': memory_limit_mb needs a worker of its own; leave isolation out, or say 'process'",
        ),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], told: str, fresh_registry: Registry) -> None:
    with pytest.raises(DefinitionError) as caught:
        job(**({"name": "a"} | options))(good)
    assert told in str(caught.value)
    assert not fresh_registry


def test_a_memory_limit_implies_a_worker_of_its_own(fresh_registry: Registry) -> None:
    job(name="a", memory_limit_mb=64)(good)
    job(name="b", memory_limit_mb=64, isolation="process")(good)
    assert [each.options.isolation for each in fresh_registry.values()] == ["process", "process"]
    assert fresh_registry["a"].options.memory_limit_bytes == 64 * 1024**2


def takes_nothing() -> Callable[..., Any]:
    async def f() -> None: ...

    return f


def takes_two() -> Callable[..., Any]:
    async def f(ctx: JobContext, more: int) -> None: ...

    return f


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda ctx: None, "must be an async function: async def f(ctx: JobContext)"),
        (3, "must be an async function"),
        (takes_nothing(), "must take exactly one argument, ctx"),
        (takes_two(), "must take exactly one argument, ctx"),
    ],
)
def test_a_wrong_function_is_refused(function: Any, told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        job(name="a")(function)
    assert told in str(caught.value)


def test_a_decorator_without_a_name_is_explained() -> None:
    with pytest.raises(DefinitionError, match="@job needs a name"):
        job(good)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        job()  # type: ignore[call-arg]


def test_a_name_is_given_once(fresh_registry: Registry) -> None:
    job(name="a")(good)
    job(name="a")(good)

    async def other(ctx: JobContext) -> None: ...

    with pytest.raises(
        DefinitionError, match=r"job 'a' at .*:\d+ is already registered by .*:\d+; names must be unique"
    ):
        job(name="a")(other)
    assert len(fresh_registry) == 1


def test_a_wrapped_function_is_placed_at_its_source(fresh_registry: Registry) -> None:
    @functools.wraps(good)
    async def wrapper(ctx: JobContext) -> int:
        return await good(ctx)

    job(name="a")(wrapper)
    assert fresh_registry["a"].source.endswith(f":{inspect.getsourcelines(good)[1]}")


def test_an_unknown_job_comes_with_a_hint(fresh_registry: Registry) -> None:
    with pytest.raises(UnknownJobError, match="unknown job 'x'; registered: none"):
        fresh_registry["x"]
    job(name="settlement")(good)
    with pytest.raises(UnknownJobError, match="did you mean 'settlement'"):
        fresh_registry["setlement"]
    assert "x" not in fresh_registry
    assert fresh_registry.get("x") is None


def test_the_backoff_grows_with_jitter_up_to_a_limit() -> None:
    options = JobOptions("a", retry_delay_seconds=2.0)
    assert [options.backoff_seconds(failures, 0.5) for failures in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert options.backoff_seconds(1, 0.0) == 0.0
    assert options.backoff_seconds(10_000, 1.0) == 3600.0
