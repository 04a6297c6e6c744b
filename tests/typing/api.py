"""Read by mypy, never run: what type checkers must know of the library's names."""

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from craft_easy_jobs import Chain, ChainStep, JobContext, JobResult, JobRunner, chain, job


@job(name="counted", timeout_seconds=60, isolation="process")
async def counted(ctx: JobContext) -> int:
    assert_type(ctx.params, dict[str, Any])
    assert_type(ctx.tenant_id, str | None)
    assert_type(ctx.iter_tenant_ids(), list[str])
    return 1


# A decorated job keeps its own type, so that it can be called in the author's tests.
same: Callable[[JobContext], Coroutine[Any, Any, int]] = counted


async def calls() -> None:
    assert_type(await counted(JobContext("r1", "counted")), int)
    await counted()  # type: ignore[call-arg]
    await counted("r1")  # type: ignore[arg-type]
    assert_type(await JobRunner().run("counted", params={"a": 1}, validate=True), JobResult)
    await JobRunner().run("counted", parameters={})  # type: ignore[call-arg]


@job(name="wrong-option", scope="world")  # type: ignore[arg-type]
async def wrong_option(ctx: JobContext) -> None: ...


@job(name="not-async")  # type: ignore[type-var]
def not_async(ctx: JobContext) -> int:
    return 1


@job(name="two-arguments")  # type: ignore[type-var]
async def two_arguments(ctx: JobContext, more: int) -> None: ...


assert_type(chain("c", steps=[ChainStep("counted", depends_on=["a"], on_failure="retry")]), Chain)
ChainStep("counted", on_failure="ignore")  # type: ignore[arg-type]
