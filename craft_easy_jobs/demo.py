"""Example jobs, each done in a couple of seconds: try them with `craft-easy-job run NAME --jobs craft_easy_jobs.demo`.

They only pretend to work; what they show is how a job talks, stops, fails and overruns.
"""

import asyncio
from typing import Any

from craft_easy_jobs import ChainStep, JobContext, chain, job

CUSTOMERS = 8
ROWS = 20
STEP_SECONDS = 0.1


@job(
    name="demo-settlement",
    description="Settle a billing period for one tenant, with progress",
    timeout_seconds=60,
    retries=2,
    per_tenant=True,
    params_schema={
        "period": {"type": "string", "pattern": r"^\d{4}-\d{2}$", "description": "billing period, YYYY-MM"},
    },
)
async def settlement(ctx: JobContext) -> dict[str, Any]:
    """Return what was settled; stops between two customers when it is asked to."""
    period = ctx.params.get("period", "2026-03")
    await ctx.log(f"Settling {period} for {ctx.tenant_id or 'nobody in particular'}")
    settled = 0
    for number in range(1, CUSTOMERS + 1):
        if ctx.should_stop():
            await ctx.warning(f"Stopped at {settled}/{CUSTOMERS}")
            break
        await asyncio.sleep(STEP_SECONDS)
        settled = number
        await ctx.progress(f"Settled {settled}/{CUSTOMERS}", percentage=settled * 100 // CUSTOMERS)
    return {"period": period, "tenant": ctx.tenant_id, "settled": settled, "total": CUSTOMERS}


@job(
    name="demo-export",
    description="Export rows until it is done or asked to stop",
    timeout_seconds=60,
    scope="system",
    params_schema={
        "type": "object",
        "properties": {"rows": {"type": "integer", "minimum": 1, "maximum": 100_000, "default": ROWS}},
        "additionalProperties": False,
    },
)
async def export(ctx: JobContext) -> dict[str, int]:
    """Return how far it came; it looks at should_stop() before each row."""
    total = ctx.params.get("rows", ROWS)
    exported = 0
    while exported < total and not ctx.should_stop():
        await asyncio.sleep(STEP_SECONDS)
        exported += 1
        await ctx.progress(f"Exported {exported}/{total}", percentage=exported * 100 // total)
    if exported < total:
        await ctx.warning(f"Stopped early at {exported}/{total}")
    return {"exported": exported, "total": total}


@job(
    name="demo-flaky",
    description="Fail until the last of its three attempts",
    timeout_seconds=60,
    retries=2,
    scope="system",
    retry_delay_seconds=0.5,
)
async def flaky(ctx: JobContext) -> dict[str, int]:
    """Return the number of the attempt that went well."""
    await ctx.log(f"Asking the bank, attempt {ctx.attempt}")
    await asyncio.sleep(STEP_SECONDS)
    if ctx.attempt < 3:
        raise ConnectionError("the bank hung up")
    return {"attempts": ctx.attempt}


@job(
    name="demo-overrun",
    description="Overrun its timeout of one second and be cut off",
    timeout_seconds=1,
    scope="system",
    grace_seconds=1,
)
async def overrun(ctx: JobContext) -> None:
    """Wait for ten minutes, which it does not have."""
    await ctx.log("Waiting for an answer that will not come")
    await asyncio.sleep(600)


month_end = chain(
    name="demo-month-end",
    description="Monthly close: settle, then export and tell the bank",
    steps=[
        ChainStep(job="demo-settlement", params={"period": "2026-03"}),
        ChainStep(job="demo-export", depends_on=["demo-settlement"]),
        ChainStep(job="demo-flaky", depends_on=["demo-settlement"], on_failure="continue"),
    ],
)
